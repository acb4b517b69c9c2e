"""Writing the two checkpoint formats of T5X, array by array, without T5X."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import serialization, traverse_util

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.t5x import LEGACY_FILE, SLOTS
from promot_t5x.checkpoints.formats.write_arrays import OrbaxWriter, write_zarr, zarr_metadata
from promot_t5x.files import write_json

_GZIP = {"id": "gzip", "level": 1}  # T5X's
_HANDLER = "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler"


class LegacyWriter:
    """Writes `checkpoint_<step>/` in T5X's msgpack + zarr format.

    Every array gets a zarr directory, but for the scalars, the (1,) slots and Adafactor's factors,
    which T5X keeps in the msgpack file and would not find elsewhere. That file, which makes the
    directory a checkpoint, comes last.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory
        self._leaves: dict[str, Any] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path, which begins with `target/` or `state/`."""
        inline = {p: np.array(a) for p, a in arrays.items() if _is_inline(p, a)}
        apart = {p: a for p, a in arrays.items() if p not in inline}
        names = {path: path.replace("/", ".") + "/" for path in apart}
        stores = {path: read_arrays.kvstore(self._directory / name) for path, name in names.items()}
        write_zarr(apart, stores, _GZIP)
        self._leaves |= inline
        for path, array in apart.items():
            self._leaves[path] = {
                "driver": "zarr",
                "dtype": array.dtype.name,
                "kvstore": {"driver": "file", "path": names[path]},
                "metadata": zarr_metadata(array.shape, array.dtype, _GZIP),
            }

    def close(self, absent: Sequence[str] = ()) -> None:
        """Write the msgpack file; `absent` are slots that are None."""
        leaves = {**self._leaves, **dict.fromkeys(absent)}
        tree = traverse_util.unflatten_dict(leaves, sep="/")
        tree["state"].setdefault(SLOTS, {})
        _write_msgpack(self._directory, tree)


def _is_inline(path: str, array: np.ndarray) -> bool:
    return array.shape in ((), (1,)) or path.endswith(("/v_row", "/v_col"))


class T5xOrbaxWriter(OrbaxWriter):
    """Writes `checkpoint_<step>/` in orbax's format as T5X lays it out: `state/` and marks."""

    def __init__(self, directory: epath.Path):
        super().__init__(directory / "state")
        self._step_directory = directory
        self._began = time.time_ns()

    def close(self, absent: Iterable[str] = ()) -> None:
        """Write the marks of a complete checkpoint; orbax keeps no record of absent slots."""
        del absent
        has_slots = any(path.startswith(f"state/{SLOTS}/") for path in self.paths)
        super().close(empty=() if has_slots else (f"state/{SLOTS}",))
        write_orbax_marks(self._step_directory, self._began)


def write_orbax_marks(directory: epath.Path, began_ns: int) -> None:
    """Write what orbax's managers look for in a step's directory that holds `state/`."""
    metadata = {
        "item_handlers": {"state": _HANDLER},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": began_ns,
        "commit_timestamp_nsecs": time.time_ns(),
        "custom_metadata": {},
    }
    write_json(directory / "_CHECKPOINT_METADATA", metadata)
    for place in (directory / "state", directory):
        (place / "commit_success.txt").write_text(f"Checkpoint commit was successful to {place}")


def write_inline(directory: epath.Path, params: Mapping[str, Any], step: int) -> None:
    """Write parameters as a legacy checkpoint of one file, without optimizer slots.

    T5X reads it. The whole of it is in memory twice, so it is for small models.

    **Arguments:**

    - `directory`: created if need be; gets the file `checkpoint`.
    - `params`: a nested dict of arrays.
    - `step`: recorded as the optimizer's.
    """
    state = {"step": np.asarray(step, np.int32), SLOTS: {}}
    directory.mkdir(parents=True, exist_ok=True)
    _write_msgpack(directory, {"target": jax.tree.map(np.asarray, dict(params)), "state": state})


def _write_msgpack(directory: epath.Path, tree: dict[str, Any]) -> None:
    # Not `to_bytes`, which rewrites lists; T5X's own reader expects plain msgpack.
    data = serialization.msgpack_serialize({"version": 3, "optimizer": tree})
    (directory / LEGACY_FILE).write_bytes(data)
