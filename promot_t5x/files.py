"""Small files, local or on `gs://`, that a kill leaves either as they were or as they should be."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath


def write_atomically(path: epath.Path, contents: str | bytes) -> None:
    """Replace the file at `path` by `contents` in one step: a kill leaves the old file or the new.

    **Arguments:**

    - `path`: local or on `gs://`; its directory exists.
    - `contents`: text, written as UTF-8, or bytes.
    """
    part = path.with_name(path.name + ".part")
    part.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    part.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
    """Replace a file of JSON in one step."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def append_json_line(path: epath.Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of JSON lines."""
    with path.open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_json_lines(path: epath.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines by these records in one step."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomically(path, "".join(lines))


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a last line that a kill cut short is dropped."""
    if not path.exists():
        return []
    # A complete line ends in a newline, so what follows the last newline is a torn write.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def keep_until(path: epath.Path, step: int) -> None:
    """Drop the rows of a file of JSON lines whose `step` is later: a resumed run writes them."""
    if path.exists():
        write_json_lines(path, [row for row in read_json_lines(path) if row["step"] <= step])
