"""Rows of plain Python values as a `tf.data.Dataset`.

A column has one kind for the whole split. Numbers keep, beside their value, the text that their
row writes, so that questions and answers spell 2 and 2.0 as the file does; a column that has no
kind is left out, and the reason is given to the code that asks for it.
"""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from promot_t5x.errors import UserError
from promot_t5x.tasks.files import lone_surrogate

Row = Mapping[str, Any]
# How a row is spoken of, by its place from 0.
NameRow = Callable[[int], str]

# Beside the value of the number "n" stands its text, under the name "n as written".
WRITTEN = " as written"
_INT64 = range(-(2**63), 2**63)
_TEXT, _INTEGER, _NUMBER = "text", "integer", "number"


class LeftOut:
    """Why fields of the rows are none of the data set, by field; filled when a split is opened.

    It has slots so that a data set is recognized by what it reads, and not by what was found in it.
    """

    __slots__ = ("reasons",)

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}


class _NoKindError(Exception):
    """A column whose values no tensor can hold; the message says why."""


def dataset_of(
    rows: Sequence[Row],
    left_out: LeftOut | None = None,
    name_row: NameRow = lambda place: f"row {place + 1}",
) -> Any:
    """Make a `tf.data.Dataset` of the rows, in order.

    Text, numbers, truth values (as the text True or False), lists and nested objects of these
    become fields. A list of objects becomes an object of lists: `answers.text`. Text that is null
    is empty; integers beyond 64 bits are text.

    **Arguments:**

    - `rows`: at least one.
    - `left_out`: gets, by field, why a field of the rows is none of the data set.
    - `name_row`: how messages name a row.

    **Raises:** `UserError` where there are no rows, or none of their fields can be read.
    """
    import tensorflow as tf

    if not rows:
        raise UserError("a split has no rows")
    reasons: dict[str, str] = {}
    kinds = _kinds_of_columns(rows, "", list(range(len(rows))), reasons, name_row)
    if left_out is not None:
        left_out.reasons = reasons
    if not kinds:
        raise UserError(f"no field of the rows can be read: {'; '.join(reasons.values())}")
    signature = _specs(kinds)
    return tf.data.Dataset.from_generator(
        lambda: (_converted(row, kinds) for row in rows), output_signature=signature
    )


def map_rows(dataset: Any, function: Callable[..., Any]) -> Any:
    """Return a data set with a function on each row, several at once, in the rows' order.

    AutoGraph does not rewrite the function, which must do without: the package's own need none of
    it, and it would take half a second for each of them, again for every task of a suite.
    """
    import tensorflow as tf

    return dataset.map(
        tf.autograph.experimental.do_not_convert(function), tf.data.AUTOTUNE, deterministic=True
    )


def _kinds_of_columns(
    rows: Sequence[Row],
    inside: str,
    places: Sequence[int],
    reasons: MutableMapping[str, str],
    name_row: NameRow,
) -> dict[str, Any]:
    """Find the kind of each column: a name, a list of one kind, or a dict of columns.

    `places` are the places of the split's rows that these (perhaps nested) rows come from.
    """
    kinds: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        where = f"{inside}{name}"
        lacking = next((n for n, row in zip(places, rows, strict=True) if name not in row), None)
        if lacking is not None:
            reasons[where] = (
                f"row {lacking + 1} has no field {where!r}, which other rows have "
                f"({name_row(lacking)})"
            )
            continue
        try:
            kinds[name] = _kind([row[name] for row in rows], where, places, reasons, name_row)
        except _NoKindError as reason:
            reasons[where] = str(reason)
    return {name: kind for name, kind in kinds.items() if kind not in ({}, [{}])}


def _kind(
    values: Sequence[Any],
    where: str,
    places: Sequence[int],
    reasons: MutableMapping[str, str],
    name_row: NameRow,
) -> Any:
    def all_are(*types: type) -> bool:
        return all(isinstance(value, types) for value in values)

    if all_are(Mapping):
        return _kinds_of_columns(values, f"{where}.", places, reasons, name_row)
    if all_are(list, tuple):
        items = [item for value in values for item in value]
        their_places = [n for n, value in zip(places, values, strict=True) for _ in value]
        inner = _kind(items, where, their_places, reasons, name_row) if items else _TEXT
        if isinstance(inner, list) or (
            isinstance(inner, dict) and not all(isinstance(each, str) for each in inner.values())
        ):
            raise _NoKindError(f"the field {where!r} holds lists within lists")
        return [inner]
    if all_are(str, bool, type(None)) and any(value is not None for value in values):
        for place, value in zip(places, values, strict=True):
            if isinstance(value, str) and (half := lone_surrogate(value)):
                raise _NoKindError(
                    f"the field {where!r} holds half a character, {half}, in {name_row(place)}"
                )
        return _TEXT
    # To Python a truth value is an integer too.
    numbers = all_are(int, float) and not any(isinstance(value, bool) for value in values)
    if numbers and all_are(int):
        return _INTEGER if all(value in _INT64 for value in values) else _TEXT
    if numbers:
        whole = (value for value in values if isinstance(value, int))
        return _NUMBER if all(value in _INT64 for value in whole) else _TEXT
    raise _NoKindError(_mixed(values, where, places, name_row))


def _mixed(values: Sequence[Any], where: str, places: Sequence[int], name_row: NameRow) -> str:
    """Why a column of these values has no kind, with a row of each type."""
    first: dict[str, int] = {}
    for place, value in zip(places, values, strict=True):
        first.setdefault("null" if value is None else type(value).__name__, place)
    if "null" in first:
        return f"the field {where!r} is null in {name_row(first['null'])}"
    found = sorted(first)
    if len(found) == 1:
        return f"the field {where!r} holds a {found[0]} in {name_row(first[found[0]])}"
    rows = " and ".join(f"{kind} in {name_row(first[kind])}" for kind in found)
    return f"the field {where!r} holds {' in some rows and '.join(found)} in others: {rows}"


def _specs(kinds: Mapping[str, Any], shape: Sequence[None] = ()) -> dict[str, Any]:
    import tensorflow as tf

    dtypes = {_TEXT: tf.string, _INTEGER: tf.int64, _NUMBER: tf.float64}
    specs: dict[str, Any] = {}
    for name, kind in kinds.items():
        inner, inner_shape = (kind[0], [None]) if isinstance(kind, list) else (kind, shape)
        if isinstance(inner, dict):
            specs[name] = _specs(inner, inner_shape)
            continue
        specs[name] = tf.TensorSpec(inner_shape, dtypes[inner])
        if inner == _NUMBER:
            specs[f"{name}{WRITTEN}"] = tf.TensorSpec(inner_shape, tf.string)
    return specs


def _converted(row: Row, kinds: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, kind in kinds.items():
        value = row[name]
        if isinstance(kind, dict):
            made[name] = _converted(value, kind)
        elif isinstance(kind, list) and isinstance(kind[0], dict):
            objects = [_converted(item, kind[0]) for item in value]
            fields = _specs(kind[0])
            made[name] = {field: [each[field] for each in objects] for field in fields}
        else:
            inner = kind[0] if isinstance(kind, list) else kind
            made[name] = _each(_SCALARS[inner], value)
            if inner == _NUMBER:
                made[f"{name}{WRITTEN}"] = _each(str, value)
    return made


def _each(convert: Callable[[Any], Any], value: Any) -> Any:
    return [convert(item) for item in value] if isinstance(value, list | tuple) else convert(value)


_SCALARS: dict[str, Callable[[Any], Any]] = {
    _TEXT: lambda value: "" if value is None else str(value),
    _INTEGER: int,
    _NUMBER: float,
}
