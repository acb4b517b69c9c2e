"""Rows of plain Python values in any order, as columns of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.errors import UserError

Row = Mapping[str, Any]
# Beside a number "n" may stand, as text, how its row spells it.
_SPELLED = " as written"
_INT64 = range(-(2**63), 2**63)


class PythonRows:
    """Rows as dicts of plain values, each field of one kind in all of them.

    **Attributes:**

    - `content_hash`: as of `rows.Rows`.
    """

    def __init__(
        self,
        *,
        size: int,
        read: Callable[[Int64[np.ndarray, " rows"]], Sequence[Row]],
        name: Callable[[int], str],
        spec: Mapping[str, Any],
        content_hash: str,
    ):
        """Read nothing yet.

        **Arguments:**

        - `size`: how many rows there are.
        - `read`: gives the rows at some places.
        - `name`: how messages speak of the row at a place.
        - `spec`: the `tf.TensorSpec` of each field of a row, nested as the rows are.
        - `content_hash`: of the rows.
        """
        self._size, self._read, self._name, self._spec = size, read, name, spec
        self.content_hash = content_hash

    def __len__(self) -> int:
        return self._size

    def columns(self, rows: Int64[np.ndarray, " rows"]) -> dict[str, Any]:
        """Give the fields of some rows as tensors with a value a row.

        **Raises:** `UserError` that names the row and the field that is of another kind.
        """
        values = self._read(rows)
        try:
            return _columns(values, self._spec, "")
        except _UnlikeError as error:
            where = self._name(int(rows[error.place]))
            raise UserError(f"{where}: the field {error.field!r} {error.what}") from error

    def dataset(self, columns: dict[str, Any]) -> Any:
        """Make the `tf.data.Dataset` of the rows."""
        return import_tensorflow().data.Dataset.from_tensor_slices(columns)


class _UnlikeError(Exception):
    """A value that is not of its column's kind."""

    def __init__(self, place: int, field: str, what: str):
        super().__init__(what)
        self.place, self.field, self.what = place, field, what


def _columns(rows: Sequence[Any], spec: Mapping[str, Any], inside: str) -> dict[str, Any]:
    return {
        name: _column(_values(rows, name, f"{inside}{name}"), kind, f"{inside}{name}")
        for name, kind in spec.items()
    }


def _column(values: Sequence[Any], kind: Any, field: str) -> Any:
    tf = import_tensorflow()
    if isinstance(kind, Mapping):
        return _columns(values, kind, f"{field}.")
    if kind.shape.rank == 0:
        made = _texts(values) if kind.dtype == tf.string else None
        if made is None:
            made = [_converted(value, kind.dtype, n, field) for n, value in enumerate(values)]
        return tf.constant(made, kind.dtype)
    for place, value in enumerate(values):
        if not isinstance(value, list | tuple):
            raise _UnlikeError(place, field, f"holds {value!r}, but lists in other rows")
    flat = [
        _converted(item, kind.dtype, n, field) for n, value in enumerate(values) for item in value
    ]
    lengths = [len(value) for value in values]
    return tf.RaggedTensor.from_row_lengths(tf.constant(flat, kind.dtype), lengths)


def _values(rows: Sequence[Any], name: str, field: str) -> list[Any]:
    """Return a field of each row; rows that are not plain are looked at one by one."""
    try:
        return [row[name] for row in rows]
    except (KeyError, TypeError):
        return [_item(row, name, place, field) for place, row in enumerate(rows)]


def _texts(values: Sequence[Any]) -> list[bytes] | None:
    """Return texts as bytes; None where one is something else, or no Unicode."""
    try:
        return list(map(str.encode, values))
    except (TypeError, UnicodeEncodeError):
        return None


def _item(row: Any, name: str, place: int, field: str) -> Any:
    if isinstance(row, list | tuple):
        return [_item(each, name, place, field) for each in row]
    if not isinstance(row, Mapping):
        raise _UnlikeError(place, field, f"is part of an object in other rows, but of {row!r} here")
    if name in row:
        return row[name]
    if name.endswith(_SPELLED) and name.removesuffix(_SPELLED) in row:
        value = row[name.removesuffix(_SPELLED)]
        return [str(item) for item in value] if isinstance(value, list) else str(value)
    raise _UnlikeError(place, field, "is missing, which other rows have")


def _converted(value: Any, dtype: Any, place: int, field: str) -> Any:
    if dtype.name == "string":
        if value is None:
            return ""
        if isinstance(value, str | bool | int | float):
            try:
                return str(value).encode()
            except UnicodeEncodeError as error:
                raise _UnlikeError(
                    place, field, f"holds text that is no Unicode: {error}"
                ) from error
        kind = "text"
    elif dtype.is_integer:
        kind = "a whole number of 64 bits"
        if isinstance(value, int) and not isinstance(value, bool) and value in _INT64:
            return value
    else:
        kind = "a number"
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    raise _UnlikeError(place, field, f"holds {value!r}, but {kind} in other rows")
