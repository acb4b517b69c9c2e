"""The safetensors file: read in parts, and written array by array.

The format is a length, a JSON header and raw bytes. It is read and written here, and not with the
library of the name, because that one needs all arrays of a file in memory to write it, and a file
on local disk to read it.
"""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError, refuse_stand_in
from promot_t5x.errors import UserError

_DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the format's own bound
assert sys.byteorder == "little"  # the format is


class Tensor:
    """An array in a file, read when it is indexed.

    **Arguments:**

    - `path`: the file.
    - `shape`, `dtype`: of the array as it is stored.
    - `start`: the number of its first byte in the file.
    - `transposed`: swap the axes of a matrix.
    """

    def __init__(
        self,
        path: epath.Path,
        shape: tuple[int, ...],
        dtype: np.dtype,
        start: int,
        *,
        transposed: bool = False,
    ):
        self.path, self._stored_shape, self._start = path, shape, start
        self._transposed = transposed
        self.dtype = dtype
        self.shape = shape[::-1] if transposed else shape

    def transpose(self) -> "Tensor":
        """Return the same array with its axes swapped."""
        return Tensor(
            self.path, self._stored_shape, self.dtype, self._start, transposed=not self._transposed
        )

    def __getitem__(self, index: Any) -> np.ndarray:
        size = math.prod(self._stored_shape) * self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(self._start)
            data = file.read(size)
        if len(data) != size:
            raise ValueError(f"{self.path} ends {size - len(data)} bytes too early")
        stored = np.frombuffer(data, self.dtype).reshape(self._stored_shape)
        array: np.ndarray = (stored.T if self._transposed else stored)[index]
        return array


def open_file(path: epath.Path) -> dict[str, Tensor]:
    """Open the arrays of a file by name; reads its header only.

    **Raises:** `UserError` for what is no safetensors file, and for a number type that numpy does
    not have.
    """
    refuse_stand_in(path)
    found = {}
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"its header would have {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            shape, kind = tuple(entry["shape"]), entry["dtype"]
            if kind not in _DTYPES:
                raise UserError(
                    f"{path}: {name} is stored as {kind}, a type of quantized or packed numbers "
                    f"that cannot be read; take the model in one of {', '.join(_DTYPES)}, such as "
                    "its BF16 release."
                )
            dtype = _DTYPES[kind]
            if stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} has {stop - start} bytes")
            found[name] = Tensor(path, shape, dtype, _LENGTH_BYTES + length + start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(
            f"{path} is not a readable safetensors file: {error}"
        ) from error
    return found


class FileWriter:
    """Writes a file whose arrays are known beforehand by name, shape and dtype, in any order."""

    def __init__(self, path: epath.Path, shapes: Mapping[str, Any]):
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name, leaf in shapes.items():
            dtype = np.dtype(leaf.dtype)
            stop = offset + math.prod(leaf.shape) * dtype.itemsize
            header[name] = {
                "dtype": _NAMES[dtype],
                "shape": [*leaf.shape],
                "data_offsets": [offset, stop],
            }
            offset = stop
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # so that the arrays are aligned
        self._start = _LENGTH_BYTES + len(text)
        self._offsets = {n: header[n]["data_offsets"] for n in shapes}
        self._path = path
        with path.open("wb") as file:
            file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)

    def add(self, name: str, array: np.ndarray) -> None:
        """Write one array."""
        start, stop = self._offsets.pop(name)
        data = np.ascontiguousarray(array)
        assert data.nbytes == stop - start, name
        # Opened for each array, so that nothing stays open where an array cannot be had.
        with open(self._path, "r+b") as file:
            file.seek(self._start + start)
            file.write(data.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Finish the file; every array must have been written."""
        if self._offsets:
            raise ValueError(f"never written: {sorted(self._offsets)}")
