"""Reading a run's own checkpoints; changes nothing on disk.

`checkpoints.py` writes them and describes their layout. Everything here may run while
another process trains and saves.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from promot_t5x.checkpoints import manifest as manifests
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.manifest import BrokenCheckpointError, Manifest
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError
from promot_t5x.paths import is_remote, user_path

PREFIX = "checkpoint_"
PENDING = "pending_"
STATE = "state"
METRICS_FILE = "metrics.json"
_SHOWN = 5
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What `restore` read.

    Attributes:
      step: the training step.
      trainable: the tree that trains, structured and sharded as asked.
      opt_state: the optimiser state likewise; None if it was not asked for.
      metadata: the JSON that was saved with the step.
      versions: of the libraries that wrote it.
      warnings: one line for each newer checkpoint that was passed over, and why.
    """

    step: int
    trainable: Any
    opt_state: Any
    metadata: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def absolute(path: str | os.PathLike) -> epath.Path:
    """Return a path that orbax accepts: absolute, or a bucket's as it is."""
    place = user_path(path, "a checkpoint's path")
    # etils would make '<current directory>/gs:/bucket' of it.
    return place if is_remote(place) else place.resolve()


def step_directory(directory: str | os.PathLike, step: int) -> epath.Path:
    """Return the directory of a step's checkpoint."""
    return absolute(directory) / f"{PREFIX}{step}"


def pending_marker(directory: str | os.PathLike, step: int) -> epath.Path:
    """Return the directory that exists while a step is being saved or removed."""
    return absolute(directory) / f"{PENDING}{step}"


def numbered(directory: epath.Path, prefix: str) -> list[int]:
    """Return the n of the entries `<prefix><n>` of a directory, ascending."""
    if not directory.is_dir():
        return []
    matches = (re.fullmatch(rf"{prefix}(\d+)", p.name) for p in directory.iterdir())
    return sorted(int(m[1]) for m in matches if m)


def complete_steps(directory: str | os.PathLike) -> list[int]:
    """Return the steps, ascending, whose checkpoints have a manifest and all their files.

    Reads no arrays: a flipped byte shows only in `restore`.
    """
    steps = []
    for step in numbered(absolute(directory), PREFIX):
        with contextlib.suppress(BrokenCheckpointError):
            manifests.read(step_directory(directory, step))
            steps.append(step)
    return steps


def step_metrics(directory: str | os.PathLike, step: int) -> dict[str, float]:
    """Return the metrics known for a step: those saved with it and those added since."""
    step_dir = step_directory(directory, step)
    known = dict(manifests.read(step_dir).metadata.get("metrics", {}))
    with contextlib.suppress(FileNotFoundError):
        known |= json.loads((step_dir / METRICS_FILE).read_text())
    return known


TIES = ("loss", "earliest", "latest")
LOSS = "validation_loss"  # among a step's metrics


def best_step(
    directory: str | os.PathLike,
    steps: list[int],
    metric: str,
    mode: str = "max",
    ties: str = "earliest",
) -> int | None:
    """Return the step with the best value of a metric, of equals the one that `ties` names.

    `ties` is the `earliest`, the `latest`, or the one with the least validation `loss`: of equal
    losses, and where there is none, the earliest.
    Steps without the metric, or where it is not a number, do not take part; None if no
    step does. `mode` is 'max' or 'min'.
    """
    metrics = {s: step_metrics(directory, s) for s in steps}
    scores = {s: metrics[s].get(metric, math.nan) for s in steps}
    sign = 1 if mode == "max" else -1
    taking_part = [s for s in steps if not math.isnan(scores[s])]
    later = 1 if ties == "latest" else -1
    losses = {s: metrics[s].get(LOSS, math.inf) if ties == "loss" else 0.0 for s in steps}
    order = {s: (sign * scores[s], -losses[s], later * s) for s in taking_part}
    return max(taking_part, key=order.__getitem__, default=None)


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"cannot name the tree node {entry!r}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by '/'-joined path, in the tree's own order.

    Dict keys, sequence indices and named tuples' field names are the parts of a path, so
    an optimiser state becomes plain nested names: '0/mu/encoder/prompt/prompt'.
    """
    leaves = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [_entry_name(entry) for entry in entries]
        # Orbax joins the names with '.', so 'a.b' and 'a' / 'b' would be one array.
        if any(c in part for part in parts for c in "/."):
            raise ValueError(f"{'/'.join(parts)!r}: a name may not hold '/' or '.'")
        leaves["/".join(parts)] = leaf
    return leaves


def state_leaves(step: Any, trainable: Any, opt_state: Any) -> dict[str, Any]:
    """Return the leaves of a training state under the names that they have on disk."""
    leaves = {f"target/{p}": x for p, x in named_leaves(trainable).items()}
    leaves |= {f"state/opt_state/{p}": x for p, x in named_leaves(opt_state).items()}
    for path, leaf in leaves.items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(f"{path} is a {type(leaf).__name__}, not an array")
        if 0 in leaf.shape:
            raise ValueError(f"{path} has no elements: shape {leaf.shape}")
    return leaves | {"state/step": step}


def read_verified(
    step_dir: epath.Path, like: Mapping[str, Any], manifest: Manifest, *, verify: bool = True
) -> dict[str, Any]:
    """Read some arrays of one of our checkpoints and check them against its manifest.

    Args:
      step_dir: the `checkpoint_<step>` directory.
      like: {'/'-joined path below `state/`: array or ShapeDtypeStruct}, with shapes and
        dtypes as in the manifest. With a sharding the result is a JAX array so sharded,
        without one a numpy array.
      manifest: what `manifest.read` returned for the directory.
      verify: compare checksums.

    Raises:
      BrokenCheckpointError: unreadable or with wrong checksums; the message names what.
    """
    arrays: dict[str, Any] = {}
    try:
        for part in read_arrays.portions(like):
            stores = read_arrays.open_orbax(step_dir / STATE, part)
            manifests.check_types(stores, manifest.arrays)
            arrays |= read_arrays.read(stores, part)
            if verify:
                read = {path: arrays[path] for path in part}
                manifests.verify(read, manifest.arrays, functools.partial(_fetch, stores))
    except (BrokenCheckpointError, ValueError) as error:
        raise BrokenCheckpointError(f"{step_dir / STATE}: {error}") from error
    return arrays


def _fetch(stores: Mapping[str, Any], path: str, block: Any) -> np.ndarray:
    return read_arrays.read_block(stores[path], block)


def read_trainable(directory: str | os.PathLike, step: int) -> dict[str, Any]:
    """Read what a step's stage trained, as a nested dict of numpy arrays, verified.

    Raises:
      UserError: the checkpoint is missing or damaged.
    """
    step_dir = step_directory(directory, step)
    try:
        manifest = manifests.read(step_dir)
        like = {
            f"target/{path}": jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
            for path, record in manifest.subtree("target").items()
        }
        arrays = read_verified(step_dir, like, manifest)
    except BrokenCheckpointError as error:
        raise UserError(f"{step_dir} is damaged: {error}") from error
    return traverse_util.unflatten_dict(arrays, sep="/")["target"]


def restore(
    directory: str | os.PathLike,
    *,
    trainable: Any,
    opt_state: Any = None,
    step: int | None = None,
    verify: bool = True,
) -> Restored | None:
    """Read a step, bit for bit as it was saved.

    Args:
      directory: MODEL_DIR/<stage>.
      trainable: a tree of arrays or ShapeDtypeStructs: what to read, and through their
        shardings where to put it (numpy arrays if there are none).
      opt_state: likewise; None leaves the optimiser state unread.
      step: which step; None for the newest that is sound.
      verify: compare the arrays' checksums with the manifest's.

    Returns:
      What was read, or None if the directory holds no checkpoint at all.

    Raises:
      UserError: the step asked for is missing, all steps are damaged, or the arrays in the
        checkpoint are not those asked for.
    """
    steps = numbered(absolute(directory), PREFIX)
    steps = [s for s in steps if not pending_marker(directory, s).exists()]
    steps = processes.leaders(steps)
    if step is not None and step not in steps:
        raise UserError(f"{directory} has no checkpoint of step {step}; it has {steps}")
    passed_over: list[str] = []
    for candidate in [step] if step is not None else reversed(steps):
        try:
            restored = _restore_step(directory, candidate, trainable, opt_state, verify)
            return dataclasses.replace(restored, warnings=tuple(passed_over))
        except BrokenCheckpointError as error:
            passed_over.append(f"{PREFIX}{candidate} is damaged: {error}")
            _log.warning("%s", passed_over[-1])
    if not passed_over:
        return None
    raise UserError(
        f"No sound checkpoint in {directory}: {'; '.join(passed_over)}. To start again without "
        "them, remove them or choose another model directory."
    )


def _restore_step(
    directory: str | os.PathLike, step: int, trainable: Any, opt_state: Any, verify: bool
) -> Restored:
    step_dir = step_directory(directory, step)
    with processes.agreement(BrokenCheckpointError):
        manifest = _read_manifest(step_dir)
    like = state_leaves(jax.ShapeDtypeStruct((), np.int32), trainable, opt_state)
    if opt_state is None:
        del like["state/step"]
    _check_structure(step_dir, like, manifest)
    with processes.agreement(BrokenCheckpointError):
        arrays = read_verified(step_dir, like, manifest, verify=verify)

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
    """Read a manifest and check the files' lengths; what is amiss is said of arrays too."""
    manifest = manifests.load(step_dir)
    wrong = manifests.wrong_files(step_dir, manifest.files)
    if wrong:
        harmed = manifests.damage(step_dir / STATE, manifest.arrays) if processes.leads() else {}
        arrays = [f"{path} {problem}" for path, problem in harmed.items()]
        raise BrokenCheckpointError("; ".join(map(manifests.some, filter(None, [wrong, arrays]))))
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
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise UserError(
            f"{step_dir} does not fit this run: {'; '.join(problems[:_SHOWN])}{more}. Restore it "
            "with the model, optimiser and stage that wrote it, or choose another model directory."
        )
