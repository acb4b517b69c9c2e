"""Files with a JSON object a line."""

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file; `ValueError` names the line that is none."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(parsed(line))
        except ValueError as error:
            raise ValueError(f"line {number} is {error}") from error
    return rows


def parsed(line: str | bytes) -> dict[str, Any]:
    """Read a row; `ValueError` says what the line is instead."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object: {line[:80]!r}")
    return row
