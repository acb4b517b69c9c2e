"""The two checkpoint formats of T5X without T5X: both read, the first written too.

Legacy (all public checkpoints): a msgpack file `checkpoint` holding
`{version: 3, optimizer: {target, state}}`, whose leaves are arrays or tensorstore specs of
zarr directories beside it. Orbax (T5X since 2024): `checkpoint_<step>/state/` holding
`{target, state}`. Only the parameters, `target`, are ever read; optimiser slots are not.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from etils import epath
from flax import serialization, traverse_util

from promot_t5x import tensors
from promot_t5x.errors import UserError

LEGACY_FILE = "checkpoint"
_SPEC_KEYS = {"driver", "kvstore", "metadata"}
_BFLOAT16_AS_UINT16 = 2  # the legacy format's version that stored bfloat16 as uint16


@runtime_checkable
class ParamSource(Protocol):
    """The parameters of an opened checkpoint."""

    shapes: dict[str, jax.ShapeDtypeStruct]

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""


class LegacySource:
    """The parameters of a legacy T5X checkpoint.

    Attributes:
      shapes: {'/'-joined path: shape and dtype as stored}.
    """

    def __init__(self, directory: epath.Path):
        tree = _read_msgpack(directory / LEGACY_FILE)
        leaves = traverse_util.flatten_dict(
            tree["optimizer"]["target"], is_leaf=lambda _, node: _is_spec(node), sep="/"
        )
        specs = {p: leaf for p, leaf in leaves.items() if _is_spec(leaf)}
        self._arrays: dict[str, Any] = {
            p: np.asarray(leaf) for p, leaf in leaves.items() if p not in specs
        }
        try:
            self._arrays |= tensors.open_zarr(
                {p: directory / _array_name(spec) for p, spec in specs.items()}
            )
        except ValueError as error:
            raise _damaged(directory, error) from error
        self._directory = directory
        self.shapes = {p: tensors.stored_as(array) for p, array in self._arrays.items()}
        if tree.get("version") == _BFLOAT16_AS_UINT16 and any(
            s.dtype == np.uint16 for s in self.shapes.values()
        ):
            raise UserError(
                f"{directory} is of T5X's checkpoint version 2, which kept bfloat16 as "
                "uint16; T5X itself no longer reads it. Convert it to version 3."
            )

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        return _read(self._directory, self._arrays, wanted)


def _read(
    directory: epath.Path, arrays: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    try:
        return tensors.read(arrays, wanted)
    except ValueError as error:
        raise _damaged(directory, error) from error


def _damaged(directory: epath.Path, error: Exception) -> UserError:
    return UserError(f"{directory} is damaged: {str(error).split(' [tensorstore_spec')[0][:600]}")


def _read_msgpack(path: epath.Path) -> dict[str, Any]:
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
        if isinstance(tree, dict) and "target" in tree.get("optimizer", {}):
            return tree
        found = f"top-level keys {sorted(tree)}" if isinstance(tree, dict) else "no tree"
    except (ValueError, AttributeError) as error:  # msgpack's errors are ValueErrors
        found = str(error)
    raise UserError(f"{path} is not a T5X checkpoint: it should hold optimizer/target; {found}")


def _is_spec(node: Any) -> bool:
    return isinstance(node, dict) and _SPEC_KEYS <= set(node)


def _array_name(spec: Mapping[str, Any]) -> str:
    # Before tensorstore 0.1.14 the path stood beside the kvstore. The driver says who wrote
    # the checkpoint (gfile, gcs, file), not where it is now.
    return spec["kvstore"].get("path") or spec["path"]


def write_inline(directory: epath.Path, params: Mapping[str, Any], step: int) -> None:
    """Write parameters as a legacy checkpoint of one file, without optimiser slots.

    T5X reads it. The whole of it is in memory twice, so it is for small models.

    Args:
      directory: created if need be; gets the file `checkpoint`.
      params: a nested dict of arrays.
      step: recorded as the optimiser's.
    """
    state = {"step": np.asarray(step, np.int32), "param_states": {}}
    target = jax.tree.map(np.asarray, dict(params))
    tree = {"version": 3, "optimizer": {"target": target, "state": state}}
    directory.mkdir(parents=True, exist_ok=True)
    # Not `to_bytes`, which rewrites lists; T5X's own reader expects plain msgpack.
    (directory / LEGACY_FILE).write_bytes(serialization.msgpack_serialize(tree))


class OrbaxSource:
    """The parameters of an orbax checkpoint in T5X's layout.

    Attributes:
      shapes: {'/'-joined path: shape and dtype as stored}.
    """

    def __init__(self, directory: epath.Path):
        self._directory = directory
        try:
            paths = tensors.orbax_paths(directory)
            params = [p for p in paths if p.startswith("target/")]
            opened = tensors.open_orbax(directory, params)
        except ValueError as error:
            raise _damaged(directory, error) from error
        if not params:
            raise UserError(
                f"{directory} holds no parameters: they should be under 'target', but there is "
                f"only {sorted({p.split('/')[0] for p in paths})}"
            )
        self._arrays = {p.removeprefix("target/"): array for p, array in opened.items()}
        self.shapes = {p: tensors.stored_as(array) for p, array in self._arrays.items()}

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        return _read(self._directory, self._arrays, wanted)
