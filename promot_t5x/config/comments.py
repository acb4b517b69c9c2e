"""What the comments of a gin file say about its macros, for messages and for the documentation.

A macro's meaning is the comment that ends its line, with the indented comments that continue it, or
the lines of comment right above it; a blank line parts a macro from a comment that introduces a
group.
"""

import io
import tokenize
from dataclasses import dataclass
from pathlib import Path

from promot_t5x.config import gin_reader


@dataclass(frozen=True, kw_only=True)
class MacroComment:
    """A macro of one gin file.

    **Attributes:**

    - `name`: the macro.
    - `default`: its value as gin text; `%gin.REQUIRED` for what the user must give.
    - `meaning`: the comment, in one line; empty where there is none.
    """

    name: str
    default: str
    meaning: str


def read(path: Path) -> list[MacroComment]:
    """Return the macros of a gin file, in its order.

    **Raises** `UserError` for a syntax error.
    """
    text = path.read_text(encoding="utf-8-sig")
    values = gin_reader.plain_bindings(text, str(path))
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    lines = text.splitlines()
    found = []
    for number, line in enumerate(lines, 1):
        name = line.partition(" = ")[0]
        if name not in values or not name.isidentifier():
            continue
        above: list[str] = []
        row = number - 1
        while row in comments and lines[row - 1].startswith("#"):
            above.insert(0, comments[row])
            row -= 1
        behind = []
        row = number
        while row in comments and (row == number or lines[row - 1].startswith(" ")):
            behind.append(comments[row])
            row += 1
        meaning = " ".join([*above, *behind])
        found.append(MacroComment(name=name, default=values[name], meaning=meaning))
    return found


def first_comment(path: Path) -> list[str]:
    """Return the lines of the comment that a file begins with, without their marks."""
    lines = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines
