"""A run's own checkpoints, written while training goes on; `paths` says where their parts lie.

Only what trains is saved: a stage that trains a prompt writes a few MB. All happens in the
background of training: orbax writes and commits, every process reads its own shards back and
compares their checksums, and then process 0 writes the manifest, from which moment the step
counts. A kill at any moment leaves either a step that counts or leavings that `pending_<step>`
names, removed at the next start. A newest checkpoint that turns out damaged is passed over,
with a warning, for the one before.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from promot_t5x import versions
from promot_t5x.checkpoints import restoring
from promot_t5x.checkpoints.checksums import (
    find_damage,
    host_blocks,
    merge_records,
    record_arrays,
)
from promot_t5x.checkpoints.finite import non_finite_state
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.manifest import (
    SHOWN,
    ArrayRecord,
    BrokenCheckpointError,
    Manifest,
    file_sizes,
    load_manifest,
    read_manifest,
    write_manifest,
)
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    METRICS_FILE,
    PENDING_PREFIX,
    PIN_FILE,
    STATE_DIRECTORY,
    absolute,
    numbered_steps,
    pending_marker,
    step_directory,
)
from promot_t5x.checkpoints.restoring import Restored
from promot_t5x.checkpoints.state_tree import state_leaves
from promot_t5x.checkpoints.steps import best_step, complete_steps, step_metrics
from promot_t5x.distributed import processes
from promot_t5x.errors import NonFiniteError, SaveError, UserError, listed
from promot_t5x.files import write_atomically

_PEER_TIMEOUT_SECONDS = 1200.0
_PEER_POLL_SECONDS = 2.0
_FAILED = "failed"
TEMPORARY = "temporary"  # in the metadata of a step that SIGTERM had saved
_log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage of a run. One instance, in the training run, owns them.

    **Arguments:**

    - `directory`: MODEL_DIR/<stage>, created if need be.
    - `keep`: how many of the newest checkpoints to keep; None keeps all.
    - `keep_period`: steps that this divides are never removed; None: no others than those.
    - `best_metric`: the metric whose best checkpoint is never removed, if any.
    - `best_mode`: 'max' or 'min'.
    - `best_ties`: which of equals is the best, the 'earliest' or the 'latest'.

    A checkpoint whose directory holds a file `PINNED` is never removed either, and one that was
    saved as temporary is as soon as there is a later one.
    What an interrupted save or removal left in the directory is removed; to look on while
    another process trains, use the functions of `restoring` and `steps`. Checkpoints of other
    programs are neither counted nor removed. Every process of a run makes the same calls, process 0
    decides what there is, and each call first waits for the save under way.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int | None = 1,
        keep_period: int | None = None,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        best_ties: str = "earliest",
    ):
        if keep is not None and keep < 1:
            raise UserError(f"keep = {keep}: keep at least 1 checkpoint, or None for all of them")
        if keep_period is not None and keep_period < 1:
            raise UserError(f"keep_period = {keep_period}: name a number of steps, or None")
        self.directory = absolute(directory)
        self.keep, self.keep_period = keep, keep_period
        self.best_metric = best_metric
        self.best_mode = best_mode
        self.best_ties = best_ties
        self._is_primary = processes.is_primary()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(STATE_DIRECTORY))
        self._damaged: set[int] = set()
        self._is_abandoned = False  # a save that another process has failed at
        self._is_untold = False  # a failure of which the other processes cannot be told
        if self._is_primary:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the save under way and release the threads; raises if that save failed."""
        try:
            self.wait()
        finally:
            self._pool.shutdown(wait=not self._is_abandoned)
            if not self._is_abandoned:
                self._orbax.close()

    def wait(self) -> None:
        """Wait for the save under way, if any.

        **Raises:** `SaveError` if it failed, here or in another process; the cause is attached.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        failed = self._await(pending)
        if self._is_untold:
            pending.result()  # at once: that this process is gone tells the others
        with processes.raise_on_all(SaveError):
            if failed:
                raise SaveError(f"a save in {self.directory} failed elsewhere: {listed(failed)}")
            pending.result()

    def _await(self, pending: Future[None]) -> list[str]:
        """Wait for a save here, but not for one that has failed elsewhere; return why it has.

        Orbax would wait ten minutes for the process that will never say that it has written.
        """
        while jax.process_count() > 1 and not pending.done():
            futures.wait([pending], timeout=_PEER_POLL_SECONDS)
            if not pending.done() and (failed := self._failures()):
                self._is_abandoned = True
                return failed
        futures.wait([pending])
        return []

    def _failures(self) -> list[str]:
        """Return what other processes say of saves that have failed."""
        said = []
        for part in self.directory.glob(f"{PENDING_PREFIX}*/process_*.json"):
            with contextlib.suppress(FileNotFoundError):  # by then, the step is complete
                said.append(json.loads(part.read_text()))
        return [part[_FAILED] for part in said if _FAILED in part]

    def check(self) -> None:
        """Raise `SaveError` if the save under way has failed already.

        In a run of several processes only `wait` does, in which all of them take part.
        """
        pending = self._pending
        if pending is not None and pending.done() and jax.process_count() == 1:
            self.wait()

    def steps(self) -> list[int]:
        """Return the complete steps, ascending, less those that `restore` found damaged."""
        self.wait()
        return processes.broadcast_from_primary(self._steps() if self._is_primary else [])

    def _steps(self) -> list[int]:
        return [s for s in complete_steps(self.directory) if s not in self._damaged]

    def latest(self) -> int | None:
        """Return the newest complete step, or None."""
        return max(self.steps(), default=None)

    def metrics(self, step: int) -> dict[str, float]:
        """Return the metrics of a complete step: those saved with it and those added since."""
        self.wait()
        return step_metrics(self.directory, step)

    def has_metrics(self, step: int) -> bool:
        """Whether `add_metrics` has been called on a step, in this launch or an earlier one."""
        self.wait()
        path = step_directory(self.directory, step) / METRICS_FILE
        return bool(processes.broadcast_from_primary([path.exists()])[0])

    def best(self, metric: str | None = None) -> int | None:
        """Return the complete step with the best value of a metric, of equals as `best_ties` says.

        **Arguments:**

        - `metric`: its name; the instance's `best_metric` if None.
        """
        self.wait()
        best = self._best(metric or self.best_metric) if self._is_primary else None
        return next(iter(processes.broadcast_from_primary([] if best is None else [best])), None)

    def _best(self, metric: str | None) -> int | None:
        if metric is None:
            return None
        return best_step(self.directory, self._steps(), metric, self.best_mode, self.best_ties)

    def restore(
        self, *, trainable: Any, opt_state: Any = None, step: int | None = None, verify: bool = True
    ) -> Restored | None:
        """Read a step, by default the newest valid one; see `restoring.restore`.

        A newer step that was passed over no longer counts, and saving it again replaces it. Where
        the newest is read, what a run that was killed would have removed next is removed.
        """
        self.wait()
        found = restoring.restore(
            self.directory, trainable=trainable, opt_state=opt_state, step=step, verify=verify
        )
        if found is not None and step is None:
            newer = numbered_steps(self.directory)
            self._damaged |= {s for s in newer if s > found.step}
            if self._is_primary:
                self._retain()
        return found

    def save(
        self,
        step: int,
        *,
        trainable: Any,
        opt_state: Any,
        metadata: Mapping[str, Any],
        temporary: bool = False,
    ) -> bool:
        """Start saving a step; returns once the arrays are copied, to be written meanwhile.

        The arrays may be donated or changed at once.

        **Arguments:**

        - `step`: the training step.
        - `trainable`: the tree that trains (arrays).
        - `opt_state`: the optimizer's state, any pytree of arrays.
        - `metadata`: JSON to keep with the step: config text, base_path, base_hash, seed, and
          metrics (name -> number) where some are known already.
        - `temporary`: not one of the steps that the run would keep, but a place to go on from.

        **Returns:** False if a complete checkpoint of this step is there, which is left alone.

        **Raises:** `SaveError` if the save before this one failed or the disk is too small;
        `NonFiniteError` if an array holds NaN or an infinity (see `finite.non_finite_state`), in
        which case nothing is written.
        """
        extra = {TEMPORARY: True} if temporary else {}
        kept = json.loads(json.dumps({**metadata, **extra}))
        leaves = state_leaves(np.asarray(step, np.int32), trainable, opt_state)
        if step in self.steps():
            return False
        self._refuse_non_finite(step, leaves)
        blocks = _host_copies(leaves)
        with processes.raise_on_all(SaveError):
            self._check_room(step, blocks)
        if self._is_primary:
            self._make_way(step)
        # Orbax would write a numpy leaf as it is by then, so it gets the copy.
        safe = {p: x if isinstance(x, jax.Array) else np.array(x) for p, x in leaves.items()}
        tree = traverse_util.unflatten_dict(safe, sep="/")
        target = step_directory(self.directory, step)
        self._orbax.save(target, args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
        self._pending = self._pool.submit(self._finish, step, blocks, kept)
        return True

    def _refuse_non_finite(self, step: int, leaves: Mapping[str, Any]) -> None:
        if wrong := non_finite_state(leaves):
            raise NonFiniteError(
                f"Step {step} is not saved in {self.directory}: {len(wrong)} of its {len(leaves)} "
                f"arrays hold numbers that are not finite: {listed(wrong)}. The checkpoints before "
                "it are as they were.",
                wrong,
            )

    def add_metrics(self, step: int, metrics: Mapping[str, float | int]) -> None:
        """Add evaluation results to a saved step, for `best`."""
        if step not in self.steps():
            raise ValueError(f"no complete checkpoint of step {step} in {self.directory}")
        if self._is_primary:
            known = step_metrics(self.directory, step)
            known |= {name: float(value) for name, value in metrics.items()}
            path = step_directory(self.directory, step) / METRICS_FILE
            write_atomically(path, json.dumps(known, indent=1, sort_keys=True))
            self._retain()

    def _finish(self, step: int, blocks: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Complete a save, in the background: checksums, commit, verification, manifest."""
        part = self._part(step, jax.process_index())
        try:
            records = record_arrays(blocks)
            blocks.clear()
            self._orbax.wait_until_finished()
            self._verify(step, records)
            if self._is_primary:
                self._complete(step, [records, *self._peer_records(step)], metadata)
                self._retain()
            else:
                write_atomically(part, json.dumps(records))
        except Exception as error:
            self._is_untold = jax.process_count() > 1
            with contextlib.suppress(Exception):  # the first error is the one to report
                # What is left takes room. The mark stays, for the next launch to clean up by: other
                # threads of Orbax may still be writing.
                if self._is_primary:
                    self._remove_files(step)
                if jax.process_count() > 1:
                    part.parent.mkdir(exist_ok=True)
                    write_atomically(part, json.dumps({_FAILED: str(error)}))
                    self._is_untold = False
            raise SaveError(
                f"Saving step {step} in {self.directory} failed: {read_arrays.reason(error)}. The "
                "checkpoints before it are as they were; once the cause is fixed (is the disk "
                "full?), the same command goes on from the newest."
            ) from error

    def _verify(self, step: int, records: Mapping[str, Any]) -> None:
        """Read back what this process vouches for, before the step may count."""
        state = step_directory(self.directory, step) / STATE_DIRECTORY
        own = {path: ArrayRecord.from_json(r) for path, r in records.items() if r["blocks"]}
        if wrong := find_damage(state, own):
            damaged = [f"{path} {problem}" for path, problem in wrong.items()]
            raise BrokenCheckpointError(listed(damaged, SHOWN, "; "))

    def _complete(self, step: int, records: list[dict[str, Any]], metadata: dict[str, Any]) -> None:
        step_dir = step_directory(self.directory, step)
        manifest = Manifest(
            step=step,
            arrays=merge_records(records),
            files=file_sizes(step_dir),
            metadata=metadata,
            versions=versions.installed(),
        )
        write_manifest(step_dir, manifest)
        self._damaged.discard(step)
        pending_marker(self.directory, step).rmtree()

    def _part(self, step: int, process: int) -> Any:
        return pending_marker(self.directory, step) / f"process_{process}.json"

    def _peer_records(self, step: int) -> list[dict[str, Any]]:
        """Wait for the checksums of the shards that other processes hold."""
        paths = [self._part(step, i) for i in range(1, jax.process_count())]
        deadline = time.monotonic() + _PEER_TIMEOUT_SECONDS
        while missing := [p.name for p in paths if not p.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no checksums came: {missing}")
            time.sleep(0.1)
        parts = [json.loads(path.read_text()) for path in paths]
        for part in parts:
            if _FAILED in part:
                raise BrokenCheckpointError(part[_FAILED])
        return parts

    def _check_room(self, step: int, blocks: Mapping[str, Any]) -> None:
        """Raise `SaveError`, before anything is written, if the disk has no room for the step."""
        if "://" in str(self.directory):
            return
        needed = sum(block.nbytes for _, _, own in blocks.values() for _, block in own)
        free = shutil.disk_usage(self.directory).free
        if free < needed:
            raise SaveError(
                f"Step {step} needs {needed:,} bytes in {self.directory}, and its disk has "
                f"{free:,} left. The checkpoints before it are as they were: make room, and the "
                "same command goes on from the newest."
            )

    def _make_way(self, step: int) -> None:
        """Mark a step as being written, after clearing away what stands in its place."""
        step_dir = step_directory(self.directory, step)
        marker = pending_marker(self.directory, step)
        if marker.exists() or (step_dir / MANIFEST_FILE).exists():
            self._remove(step)
        elif step_dir.exists():
            self._set_aside(step_dir)
        marker.mkdir(parents=True)

    def _set_aside(self, step_dir: Any) -> None:
        """Rename a directory that has no manifest: it may be another program's checkpoint."""
        names = (self.directory / f"set_aside_{step_dir.name}.{i}" for i in range(1000))
        aside = next(name for name in names if not name.exists())
        _log.warning("%s is not a complete checkpoint of ours; renamed to %s", step_dir, aside)
        step_dir.rename(aside)

    def _remove(self, step: int) -> None:
        """Remove a step so that a kill in between leaves nothing that counts."""
        self._remove_files(step)
        pending_marker(self.directory, step).rmtree()

    def _remove_files(self, step: int) -> None:
        """Remove a step's files, and leave its mark."""
        pending_marker(self.directory, step).mkdir(parents=True, exist_ok=True)
        step_dir = step_directory(self.directory, step)
        (step_dir / MANIFEST_FILE).unlink(missing_ok=True)
        for path in [step_dir, *self.directory.glob(f"{step_dir.name}.orbax-checkpoint-tmp*")]:
            if path.exists():
                path.rmtree()

    def _clean(self) -> None:
        """Remove what saves and removals that were cut short have left."""
        for step in numbered_steps(self.directory, PENDING_PREFIX):
            try:
                read_manifest(step_directory(self.directory, step))
            except BrokenCheckpointError:
                _log.warning("removing the unfinished checkpoint_%d in %s", step, self.directory)
                self._remove(step)
            else:
                pending_marker(self.directory, step).rmtree()

    def _retain(self) -> None:
        """Remove the checkpoints that nothing asks to keep."""
        if self.keep is None:
            return
        steps = self._steps()
        lasting = [step for step in steps if not self._is_temporary(step)]
        kept = {*steps[-1:], *lasting[-self.keep :], self._best(self.best_metric)}
        for step in steps:
            if step not in kept and not self._is_kept_for_good(step):
                self._remove(step)

    def _is_temporary(self, step: int) -> bool:
        step_dir = step_directory(self.directory, step)
        return TEMPORARY in load_manifest(step_dir).metadata

    def _is_kept_for_good(self, step: int) -> bool:
        periodic = self.keep_period is not None and step % self.keep_period == 0
        pinned = (step_directory(self.directory, step) / PIN_FILE).exists()
        return pinned or (periodic and not self._is_temporary(step))


def _host_copies(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return {path: (global shape, dtype name, blocks on this host)}."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return {
        path: (tuple(leaf.shape), np.dtype(leaf.dtype).name, host_blocks(leaf))
        for path, leaf in leaves.items()
    }
