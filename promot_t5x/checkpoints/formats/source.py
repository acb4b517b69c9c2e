"""What an opened checkpoint is: parameters by path, read when asked for."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
from etils import epath

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.errors import UserError

Shapes = Mapping[str, jax.ShapeDtypeStruct]
_SHOWN = 5
_REFUSED = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|\b40[13]\b|credential", re.IGNORECASE)
_UNREACHABLE = re.compile(r"UNAVAILABLE|CURL|resolve host|timed? ?out|\b50[0-9]\b", re.IGNORECASE)


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


@contextlib.contextmanager
def reading(directory: epath.Path) -> Iterator[None]:
    """Turn what reading a checkpoint raises into a `UserError` that says what is amiss."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # tensorstore's are ValueErrors
        raise UserError(_explain(directory, error)) from error
    except Exception as error:
        if not _is_tensorflows(error):
            raise
        raise UserError(_explain(directory, error)) from error


def _is_tensorflows(error: Exception) -> bool:
    """Whether etils read `gs://` through TensorFlow, whose errors are of a class of its own."""
    return any(kind.__module__.startswith("tensorflow.") for kind in type(error).__mro__)


def _explain(directory: epath.Path, error: Exception) -> str:
    reason = str(error).strip().split(" [tensorstore_spec")[0].split(" [source locations")[0][:600]
    if str(directory).startswith("gs://"):
        if _REFUSED.search(str(error)):
            return (
                f"{directory} may not be read: {reason}. Log in with `gcloud auth "
                "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file "
                "of an account that may read the bucket."
            )
        if _UNREACHABLE.search(str(error)):
            return f"{directory} cannot be reached: {reason}. Check this machine's network."
    return f"{directory} is damaged: {reason}"


def some(names: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more


def nbytes(shape: Any) -> int:
    """Bytes of an array of a shape and dtype."""
    return int(shape.size) * shape.dtype.itemsize


def total_bytes(shapes: Shapes) -> int:
    """Bytes of all arrays of some shapes and dtypes."""
    return sum(nbytes(leaf) for leaf in shapes.values())


def whole(source: ParamSource) -> Shapes:
    """What `read` takes to read all of a source as it is stored."""
    return {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in source.shapes.items()}
