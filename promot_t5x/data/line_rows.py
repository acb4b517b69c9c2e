"""The rows of a file with a row a line, in any order."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from promot_t5x.data import record_index
from promot_t5x.data.python_rows import PythonRows
from promot_t5x.errors import UserError
from promot_t5x.tasks import files, sources
from promot_t5x.tasks.rows import dataset_of

# The kinds of the fields are those of so many rows, evenly spread; of all, if there are no more.
_ROWS_LOOKED_AT = 1 << 15


def open_rows(
    source: Any, split: str, cache_dir: str | os.PathLike[str] | None
) -> PythonRows | None:
    """Open the rows of a source of `tasks.sources`, or return None where they are no lines.

    **Arguments:** those of `rows.open_rows`.

    **Raises:** `UserError` that names the line that cannot be read.
    """
    named = getattr(source, "files", None)
    lines_of = named.lines_of(split) if isinstance(named, sources.Files) else None
    if lines_of is None:
        return None
    path = Path(lines_of)
    try:
        index = record_index.open_index([str(path)], record_index.lines, cache_dir)
    except OSError as error:
        raise UserError(f"the {split} rows cannot be read: {error}") from error

    def line_number(place: int) -> int:
        with open(path, "rb") as file:
            return file.read(int(index.places[place]["start"])).count(b"\n") + 1

    def rows_at(places: np.ndarray) -> list[dict[str, Any]]:
        rows = []
        for place, line in zip(places.tolist(), index.read(places), strict=True):
            try:
                row = files.parsed(line)
            except ValueError as error:
                raise UserError(f"{path}: line {line_number(place)} is {error}") from error
            rows.append(row | {sources.ROW_ID: f"{files.stem(lines_of)}-{place + 1}"})
        return rows

    def name_row(place: int) -> str:
        return f"{path}, line {line_number(place)}"

    looked_at = min(len(index), _ROWS_LOOKED_AT)
    sample = np.arange(looked_at) * len(index) // max(looked_at, 1)
    return PythonRows(
        size=len(index),
        read=rows_at,
        name=name_row,
        spec=dataset_of(
            rows_at(sample), source.left_out, lambda place: name_row(int(sample[place]))
        ).element_spec,
        content_hash=index.content_hash,
    )
