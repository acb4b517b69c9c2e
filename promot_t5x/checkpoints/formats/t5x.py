"""Reading the two checkpoint formats of T5X, without T5X.

Legacy (all public checkpoints): a msgpack file `checkpoint` holding
`{version: 3, optimizer: {target, state}}`, whose leaves are arrays or tensorstore specs of
zarr directories beside it. Orbax (T5X since 2024): `checkpoint_<step>/state/` holding
`{target, state}`. Opening reads names and shapes; of the arrays, and of the optimizer's slots
under `state`, only what is asked for is ever read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import serialization, traverse_util

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.reading import (
    DamagedCheckpointError,
    NotACheckpointError,
    reading,
    refuse_stand_in,
)
from promot_t5x.checkpoints.formats.source import ArraySource
from promot_t5x.checkpoints.paths import MANIFEST_FILE
from promot_t5x.errors import UserError

LEGACY_FILE = "checkpoint"
SLOTS = "param_states"
_SPEC_KEYS = {"driver", "kvstore", "metadata"}
_BFLOAT16_AS_UINT16 = 2  # the legacy format's version that stored bfloat16 as uint16


class T5xLegacyCheckpoint(ArraySource):
    """The parameters of a legacy T5X checkpoint; `step` is None where it records none."""

    format = "t5x-legacy"

    def __init__(self, directory: epath.Path):
        tree = _read_msgpack(directory / LEGACY_FILE)
        self._state = tree["optimizer"].get("state", {})
        super().__init__(directory, _open_leaves(directory, tree["optimizer"]["target"]))
        if tree.get("version") == _BFLOAT16_AS_UINT16 and any(
            s.dtype == np.uint16 for s in self.shapes.values()
        ):
            raise UserError(
                f"{directory} is of T5X's checkpoint version 2, which kept bfloat16 as "
                "uint16; T5X itself no longer reads it. Convert it to version 3."
            )

    @property
    def step(self) -> int | None:
        """The training step."""
        return as_step(self.slots(only_step=True).get("step"))

    def slots(self, *, only_step: bool = False) -> dict[str, Any]:
        """Open the optimizer's arrays, {path under `state`: array or None for an empty slot}."""
        state = {"step": self._state.get("step")} if only_step else self._state
        leaves = _flatten(state)
        opened = _open_leaves(self.directory, {p: x for p, x in leaves.items() if x is not None})
        return {path: opened.get(path) for path in leaves}


def _flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = traverse_util.flatten_dict(
        tree, is_leaf=lambda _, node: _is_spec(node), sep="/"
    )
    return flat


def _open_leaves(directory: epath.Path, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Open the leaves of a tree, inline ones and those that lie beside the msgpack file."""
    leaves = _flatten(tree)
    specs = {p: leaf for p, leaf in leaves.items() if _is_spec(leaf)}
    with reading(directory):
        opened = read_arrays.open_zarr({p: directory / _array_name(s) for p, s in specs.items()})
    return {p: opened[p] if p in specs else np.asarray(leaf) for p, leaf in leaves.items()}


def _read_msgpack(path: epath.Path) -> dict[str, Any]:
    refuse_stand_in(path)
    with reading(path):
        data = path.read_bytes()
    expected = f"{path} is not a T5X checkpoint: it should hold optimizer/target"
    try:
        tree = serialization.msgpack_restore(data)
        if isinstance(tree, dict) and "target" in tree.get("optimizer", {}):
            return tree
    except (ValueError, AttributeError) as error:  # msgpack's errors are ValueErrors
        raise DamagedCheckpointError(f"{expected}; {error}") from error
    found = f"top-level keys {sorted(tree)}" if isinstance(tree, dict) else "no tree"
    raise NotACheckpointError(f"{expected}; {found}")


def _is_spec(node: Any) -> bool:
    return isinstance(node, dict) and set(node) >= _SPEC_KEYS


def _array_name(spec: Mapping[str, Any]) -> str:
    # Before tensorstore 0.1.14 the path stood beside the kvstore. The driver says who wrote
    # the checkpoint (gfile, gcs, file), not where it is now.
    return str(spec["kvstore"].get("path") or spec["path"])


class T5xOrbaxCheckpoint(ArraySource):
    """The parameters of an orbax checkpoint in T5X's layout, `checkpoint_<step>/state`."""

    format = "t5x"

    def __init__(self, directory: epath.Path):
        with reading(directory):
            self._paths = read_arrays.orbax_paths(directory)
            params = [p for p in self._paths if p.startswith("target/")]
            opened = read_arrays.open_orbax(directory, params)
        if any(path.startswith("state/opt_state/") for path in self._paths):
            raise DamagedCheckpointError(
                f"{directory.parent} is damaged: it is a checkpoint of this project, and its "
                f"{MANIFEST_FILE} is missing"
            )
        if not params:
            raise UserError(
                f"{directory} holds no parameters: they should be under 'target', but there is "
                f"only {sorted({p.split('/')[0] for p in self._paths})}"
            )
        super().__init__(directory, {p.removeprefix("target/"): a for p, a in opened.items()})

    @property
    def step(self) -> int | None:
        """The training step."""
        return as_step(self.slots(only_step=True).get("step"))

    def slots(self, *, only_step: bool = False) -> dict[str, Any]:
        """Open the optimizer's arrays, {path under `state`: array}; orbax keeps no empty slots."""
        names = [p for p in self._paths if p.startswith("state/")]
        names = [p for p in names if p == "state/step" or not only_step]
        with reading(self.directory):
            opened = read_arrays.open_orbax(self.directory, names)
        return {path.removeprefix("state/"): array for path, array in opened.items()}


T5xCheckpoint = T5xLegacyCheckpoint | T5xOrbaxCheckpoint


def whole_state(source: T5xCheckpoint) -> tuple[ArraySource, list[str]]:
    """Return parameters, step and optimizer slots, and the paths of slots that are None.

    The paths begin with `target/` and `state/`. The step is int32, as T5X makes it, whatever it was
    restored as.
    """
    leaves = {f"state/{path}": array for path, array in source.slots().items()}
    absent = [path for path, array in leaves.items() if array is None]
    arrays = {path: array for path, array in leaves.items() if array is not None}
    arrays["state/step"] = np.asarray(source.step or 0, np.int32)
    arrays |= {f"target/{path}": array for path, array in source.arrays.items()}
    return ArraySource(source.directory, arrays), absent


def as_step(array: Any) -> int | None:
    """Return a step as an integer: T5X has saved int32, int64 and, in some ways, float32."""
    if array is None:
        return None
    value = array if isinstance(array, np.ndarray) else array.read().result()
    return int(np.asarray(value).reshape(-1)[0])
