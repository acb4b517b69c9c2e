"""Slices of splits, `train[:100]` or `validation[50%:]`, of any source, written as TFDS does.

A slice is of a split's raw rows, before any preprocessing, in the order of the source.
"""

import re
from dataclasses import dataclass
from typing import Any

from promot_t5x.errors import UserError

_SLICE = re.compile(r"(?P<name>[^\[\]]+)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")


@dataclass(frozen=True)
class Slice:
    """A split, or some rows of it that follow one another.

    **Attributes:**

    - `name`: the split.
    - `start`, `stop`: row numbers, negative ones from the end, or with `%`, shares of all rows;
      None for the first and the last row.
    """

    name: str
    start: str | None = None
    stop: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the split."""
        return self.start is None and self.stop is None

    def bounds(self, rows: int) -> tuple[int, int]:
        """Return the numbers of the first row and of the one after the last, of a split of `rows`.

        Shares are rounded to the nearest row.
        """
        start = 0 if self.start is None else _place(self.start, rows)
        stop = rows if self.stop is None else _place(self.stop, rows)
        return start, max(start, stop)


def parse(split: str) -> Slice:
    """Read a split's name with its slice, if it has one.

    **Raises:** `UserError` for brackets that hold no slice.
    """
    if "[" not in split:
        return Slice(split)
    match = _SLICE.fullmatch(split)
    if match is None:
        raise UserError(
            f"The split {split!r} is no slice: write rows or shares of one split, as in "
            "'train[:100]', 'train[-100:]' or 'validation[50%:]'."
        )
    return Slice(match["name"], match["start"], match["stop"])


def open_rows(source: Any, split: str) -> Any:
    """Return the raw rows of a split or slice of a SeqIO source as a `tf.data.Dataset`."""
    part = parse(split)
    rows = source.get_dataset(split=part.name, shuffle=False)
    if part.is_whole:
        return rows
    start, stop = part.bounds(_count(source, part.name, rows))
    return rows.skip(start).take(stop - start)


def _count(source: Any, split: str, rows: Any) -> int:
    """Return how many rows a split has, counted where the source does not know."""
    try:
        known = source.num_input_examples(split)
    except (KeyError, NotImplementedError, TypeError, ValueError):
        known = None
    if known:
        return int(known)
    return sum(1 for _ in rows)


def _place(written: str, rows: int) -> int:
    number = float(written.removesuffix("%")) * (rows / 100 if written.endswith("%") else 1)
    place = round(number)
    return min(max(place + rows if written.startswith("-") else place, 0), rows)
