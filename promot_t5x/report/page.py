"""One HTML page that needs nothing but itself: sections in, page out."""

import dataclasses
from collections.abc import Sequence
from html import escape
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page.

    **Attributes:**

    - `title`: over it, and in the contents; the first section may do without.
    - `html`: its content.
    """

    title: str = ""
    html: str


def render(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """Return a whole page; it loads nothing, neither from the network nor from beside it.

    **Arguments:**

    - `title`: plain text.
    - `lead`: HTML below the title.
    """
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    named = [section.title for section in sections if section.title]
    contents = " ".join(f'<a href="#{anchor(name)}">{escape(name)}</a>' for name in named)
    body = "\n".join(
        f'<section id="{anchor(section.title)}"><h2>{escape(section.title)}</h2>\n'
        f"{section.html}</section>"
        if section.title
        else f"<section>{section.html}</section>"
        for section in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{lead}<nav>{contents}</nav></header>
<main>
{body}
</main>
</body>
</html>
"""


def paragraphs(texts: Sequence[str], css: str = "") -> str:
    """Return plain texts as paragraphs."""
    mark = f' class="{css}"' if css else ""
    return "".join(f"<p{mark}>{escape(text)}</p>\n" for text in texts)


def figure(svg: str, caption: str, *, alternative: str = "") -> str:
    """Return an inline SVG with its caption.

    **Arguments:**

    - `alternative`: a screen reader's text for the picture; the caption if empty.
    """
    said = escape(alternative or caption, quote=True)
    drawn = svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>\n"


def table(lines: Sequence[Sequence[str]], css: str = "") -> str:
    """Return rows of plain cells as a table: the first row its head, the first column row heads."""
    head, *rest = lines
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for first, *cells in rest
    )
    mark = f' class="{css}"' if css else ""
    return f"<table{mark}><thead><tr>{heads}</tr></thead>\n<tbody>{rows}</tbody></table>\n"


def anchor(title: str) -> str:
    """Return the id of a section."""
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
