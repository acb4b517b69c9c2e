"""The rows of files, in any order.

Files with a JSON object a line are read where they lie. Others (compressed ones, CSV, TSV, Parquet)
cannot be read from the middle: they are decoded once, into lines in the token cache.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from promot_t5x.data import cache_folder, record_index
from promot_t5x.data.python_rows import PythonRows
from promot_t5x.errors import UserError
from promot_t5x.tasks import files, sources
from promot_t5x.tasks.rows import dataset_of

# The kinds of the fields are those of so many rows, evenly spread; of all, if there are no more.
_ROWS_LOOKED_AT = 1 << 15
# Files of fewer bytes in all are not worth a copy.
_SMALL_BYTES = 1 << 20
_LINES = "rows.jsonl"


def open_rows(
    source: Any, split: str, cache_dir: str | os.PathLike[str] | None
) -> PythonRows | None:
    """Open the rows of a source of `tasks.sources`, or return None where they are no lines.

    **Arguments:** those of `rows.open_rows`.

    **Raises:** `UserError` that names the line that cannot be read.
    """
    named = getattr(source, "files", None)
    if not isinstance(named, sources.Files):
        return None
    listed = named.named_files(split)
    try:
        lines = _files_of_lines(named.kind, [path for path, _ in listed], cache_dir)
        if lines is None:
            return None
        index = record_index.open_index(lines, record_index.lines, cache_dir)
    except (OSError, UserError) as error:
        raise UserError(f"the {split} rows cannot be read: {error}") from error

    def name_row(place: int) -> str:
        file, _, start, _ = index.places[place].tolist()
        with open(lines[file], "rb") as opened:
            number = opened.read(start).count(b"\n") + 1
        return f"{listed[file][0]}, {named.counted} {number}"

    def rows_at(places: np.ndarray) -> list[dict[str, Any]]:
        rows = []
        found = index.places[places]
        numbered = zip(found["file"].tolist(), found["number"].tolist(), strict=True)
        for place, line, (file, number) in zip(
            places.tolist(), index.read(places), numbered, strict=True
        ):
            try:
                row = files.parsed(line)
            except ValueError as error:
                path, _, at = name_row(place).rpartition(", ")
                raise UserError(f"{path}: {at} is {error}") from error
            row[sources.ROW_ID] = f"{listed[file][1]}-{number + 1}"
            rows.append(row)
        return rows

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


def _files_of_lines(
    kind: str, paths: list[str], cache_dir: str | os.PathLike[str] | None
) -> list[str] | None:
    """Return local files of lines that hold the same rows; None where that is not worth it."""
    packed = [path for path in paths if kind != "jsonl" or not files.is_plain_lines(path)]
    if not packed:
        return paths
    if cache_dir is None or not all(map(os.path.isfile, packed)):
        return None
    if sum(map(os.path.getsize, packed)) < _SMALL_BYTES:
        return None
    decode = functools.partial(_decoded, kind, cache_dir=Path(cache_dir))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        decoded = dict(zip(packed, threads.map(decode, packed), strict=True))
    return [decoded.get(path, path) for path in paths]


def _decoded(kind: str, path: str, cache_dir: Path) -> str:
    state = os.stat(path)
    definition = repr((kind, os.path.abspath(path), state.st_size, state.st_mtime_ns))
    folder = cache_dir / f"rows-{hashlib.sha256(definition.encode()).hexdigest()[:32]}"
    if not folder.exists():
        print(f"decoding {path} into the token cache, once", file=sys.stderr, flush=True)
        cache_folder.publish(folder, functools.partial(_write, kind, path))
    return str(folder / _LINES)


def _write(kind: str, path: str, folder: Path) -> None:
    """Write each row to the line of its number, so that messages can name it."""
    read, _ = files.KINDS[kind]

    def lines() -> Iterator[str]:
        if kind == "jsonl" and (texts := files.object_lines(path)) is not None:
            yield from (f"{text}\n" for text in texts)
            return
        line = 1
        for number, row in read(path):
            yield "\n" * (number - line)
            # Of a value that JSON does not have, as a date, no field is made.
            yield json.dumps(row, default=lambda value: {}) + "\n"
            line = number + 1

    cache_folder.write_lines(folder / _LINES, lines())
