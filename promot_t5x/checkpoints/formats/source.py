"""An opened checkpoint, whatever its format: parameters by path, read when they are asked for."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from etils import epath

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.reading import reading

Shapes = Mapping[str, jax.ShapeDtypeStruct]


@runtime_checkable
class ParamSource(Protocol):
    """The parameters of an opened checkpoint, under the names of T5X's networks."""

    @property
    def shapes(self) -> Shapes:
        """{'/'-joined path: shape and dtype as stored}."""

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""


class ArraySource:
    """Opened arrays of a directory as a `ParamSource`."""

    def __init__(self, directory: epath.Path, arrays: Mapping[str, Any]):
        self.directory = directory
        self.arrays = arrays
        self.shapes: Shapes = {p: read_arrays.stored_as(array) for p, array in arrays.items()}

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        with reading(self.directory):
            return read_arrays.read(self.arrays, wanted)


def nbytes(shape: Any) -> int:
    """Return the bytes of an array of a shape and dtype."""
    size: int = shape.size * shape.dtype.itemsize
    return size


def total_bytes(shapes: Shapes) -> int:
    """Return the bytes of all arrays of some shapes and dtypes."""
    return sum(nbytes(leaf) for leaf in shapes.values())


def as_stored(source: ParamSource) -> Shapes:
    """Return what `read` takes to read all of a source as it is stored, as numpy arrays."""
    return {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in source.shapes.items()}
