"""Small files, local or on `gs://`, that a kill leaves either as they were or as they should be."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from etils import epath

from promot_t5x.errors import UserError

T = TypeVar("T")


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


def read_json(path: epath.Path, kind: Callable[..., T]) -> T:
    """Read a file of one JSON object, and make something of its fields.

    **Arguments:**

    - `path`: of a file that exists.
    - `kind`: what to call with the fields by name.

    **Raises:** `UserError` that names the file where it is damaged.
    """
    try:
        return kind(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}). Delete it and start the same "
            "command again, which makes it anew."
        ) from error


def append_json_line(path: epath.Path, record: Mapping[str, Any]) -> None:
    """Append one JSON object to a file of JSON lines."""
    with path.open("a") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_json_lines(path: epath.Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file of JSON lines by these records in one step."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_atomically(path, "".join(lines))


def read_json_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines; a last line that a kill cut short is dropped.

    **Raises:** `UserError` that names a line before it that is no JSON.
    """
    if not path.exists():
        return []
    rows = []
    # A complete line ends in a newline, so what follows the last newline is a torn write.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path} is damaged: line {number} is no JSON ({error}). Remove that line, or give "
                "this run a directory of its own."
            ) from error
    return rows


def keep_until(path: epath.Path, step: int) -> None:
    """Drop the rows of a file of JSON lines whose `step` is later: a resumed run writes them."""
    if path.exists():
        write_json_lines(path, [row for row in read_json_lines(path) if row["step"] <= step])
