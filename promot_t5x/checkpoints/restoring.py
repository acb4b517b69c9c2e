"""Restoring the state of training from a stage's checkpoints; changes nothing on disk.

Everything here may run while another process trains and saves.
"""

import dataclasses
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints.checksums import find_damage
from promot_t5x.checkpoints.finite import non_finite_state
from promot_t5x.checkpoints.manifest import (
    SHOWN,
    BrokenCheckpointError,
    Manifest,
    load_manifest,
    wrong_files,
)
from promot_t5x.checkpoints.paths import (
    CHECKPOINT_PREFIX,
    STATE_DIRECTORY,
    numbered_steps,
    pending_marker,
    step_directory,
)
from promot_t5x.checkpoints.promot_checkpoint import read_verified
from promot_t5x.checkpoints.state_tree import named_leaves, state_leaves
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError, listed

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """A training state that `restore` read.

    **Attributes:**

    - `step`: the training step.
    - `trainable`: the tree that trains, structured and sharded as asked.
    - `opt_state`: the optimizer state likewise; None if it was not asked for.
    - `metadata`: the JSON that was saved with the step.
    - `versions`: of the libraries that wrote it.
    - `warnings`: one line for each newer checkpoint that was passed over, and why.
    """

    step: int
    trainable: Any
    opt_state: Any
    metadata: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def restore(
    directory: str | os.PathLike[str],
    *,
    trainable: Any,
    opt_state: Any = None,
    step: int | None = None,
    verify: bool = True,
) -> Restored | None:
    """Read a step, bit for bit as it was saved.

    **Arguments:**

    - `directory`: MODEL_DIR/<stage>.
    - `trainable`: a tree of arrays or ShapeDtypeStructs: what to read, and through their shardings
      where to put it (numpy arrays if there are none).
    - `opt_state`: likewise; None leaves the optimizer state unread.
    - `step`: which step; None for the newest that is valid. A step is not where a file or an array
      is damaged, nor where an array holds numbers that are not finite.
    - `verify`: compare the arrays' checksums with the manifest's.

    **Returns:** None if the directory holds no checkpoint at all.

    **Raises:** `UserError` where the step asked for is missing, no step is valid, or the arrays in
    the checkpoint are not those asked for.
    """
    steps = numbered_steps(directory)
    steps = [s for s in steps if not pending_marker(directory, s).exists()]
    steps = processes.broadcast_from_primary(steps)
    if step is not None and step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}; it has {steps}")
    passed_over: list[str] = []
    for candidate in [step] if step is not None else reversed(steps):
        try:
            restored = _restore_step(directory, candidate, trainable, opt_state, verify)
            return dataclasses.replace(restored, warnings=tuple(passed_over))
        except BrokenCheckpointError as error:
            passed_over.append(f"{CHECKPOINT_PREFIX}{candidate} is damaged: {error}")
            _log.warning("%s", passed_over[-1])
    if not passed_over:
        return None
    raise UserError(
        f"No valid checkpoint in {directory}: {'; '.join(passed_over)}. To start again without "
        "them, remove them or choose another model directory."
    )


def _restore_step(
    directory: str | os.PathLike[str], step: int, trainable: Any, opt_state: Any, verify: bool
) -> Restored:
    step_dir = step_directory(directory, step)
    with processes.raise_on_all(BrokenCheckpointError):
        manifest = _read_manifest(step_dir)
    like = state_leaves(jax.ShapeDtypeStruct((), np.int32), trainable, opt_state)
    if opt_state is None:
        del like["state/step"]
    _check_structure(step_dir, like, manifest)
    with processes.raise_on_all(BrokenCheckpointError):
        arrays = read_verified(step_dir, like, manifest, verify=verify)
    if wrong := non_finite_state(arrays):
        raise BrokenCheckpointError(f"numbers that are not finite in {listed(wrong, SHOWN)}")

    def rebuild(tree: Any, prefix: str) -> Any:
        leaves = [arrays[f"{prefix}/{path}"] for path in named_leaves(tree)]
        structure: Any = jax.tree_util.tree_structure(tree)
        return structure.unflatten(leaves)

    return Restored(
        step=manifest.step,
        trainable=rebuild(trainable, "target"),
        opt_state=rebuild(opt_state, "state/opt_state"),
        metadata=manifest.metadata,
        versions=manifest.versions,
    )


def _read_manifest(step_dir: epath.Path) -> Manifest:
    """Read a manifest and check the files' lengths; of wrong files, name the arrays in them too."""
    manifest = load_manifest(step_dir)
    if wrong := wrong_files(step_dir, manifest.files):
        state = step_dir / STATE_DIRECTORY
        harmed = find_damage(state, manifest.arrays) if processes.is_primary() else {}
        arrays = [f"{path} {problem}" for path, problem in harmed.items()]
        parts = [listed(each, SHOWN, "; ") for each in (wrong, arrays) if each]
        raise BrokenCheckpointError("; ".join(parts))
    return manifest


def _check_structure(step_dir: epath.Path, like: Mapping[str, Any], manifest: Manifest) -> None:
    """Refuse a checkpoint whose arrays are not those asked for; no older one would fit either."""
    parts = {path.split("/")[0] for path in like}
    saved = {p: r for p, r in manifest.arrays.items() if p.split("/")[0] in parts}
    problems = [f"{p} is not in the checkpoint" for p in sorted(set(like) - set(saved))]
    problems += [f"{p} is not in this run" for p in sorted(set(saved) - set(like))]
    for path in sorted(set(saved) & set(like)):
        theirs = f"{saved[path].dtype}{list(saved[path].shape)}"
        ours = f"{np.dtype(like[path].dtype).name}{list(like[path].shape)}"
        if theirs != ours:
            problems.append(f"{path} is {theirs} in the checkpoint, {ours} in this run")
    if problems:
        raise UserError(
            f"{step_dir} does not fit this run: {listed(problems, separator='; ')}. Restore it "
            "with the model, optimizer and stage that wrote it, or choose another model directory."
        )
