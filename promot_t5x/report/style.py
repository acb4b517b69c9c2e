"""How figures look: colors that the color-blind tell apart, and that are not needed in gray.

The palette is Okabe and Ito's (2008), without its yellow, which is too light for lines. Every row
also has a marker, a dash pattern and a hatch of its own.
"""

import contextlib
import dataclasses
import io
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class RowStyle:
    """The marks that tell one row from another."""

    color: str
    marker: str
    dashes: Any
    hatch: str


_STYLES = (
    RowStyle("#7f7f7f", "s", "-", ""),
    RowStyle("#56B4E9", "^", (0, (4, 2)), "////"),
    RowStyle("#D55E00", "X", (0, (1, 1.2)), "...."),
    RowStyle("#0072B2", "o", "-", ""),
    RowStyle("#009E73", "D", (0, (6, 2, 1, 2)), "xxxx"),
    RowStyle("#E69F00", "v", (0, (3, 1, 1, 1, 1, 1)), "\\\\\\\\"),
    RowStyle("#CC79A7", "P", (0, (8, 2)), "++++"),
    RowStyle("#000000", "*", (0, (2, 3)), "oooo"),
)

_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "path",
    # Element names in an SVG would else change from call to call.
    "svg.hashsalt": "promot-t5x",
    "savefig.bbox": "tight",
    "savefig.pad_inches": 0.05,
}


def style(index: int) -> RowStyle:
    """Return the style of a row; after eight, the colors come again with other marks."""
    lap, place = divmod(index, len(_STYLES))
    marks = _STYLES[(place + 3 * lap) % len(_STYLES)]
    return dataclasses.replace(marks, color=_STYLES[place].color)


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Apply the settings of every figure."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        yield


def svg(figure: Any) -> str:
    """Return a figure as an `<svg>` element, the same for the same numbers."""
    out = io.StringIO()
    with applied():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Any) -> bytes:
    """Return a figure as a picture, for a README."""
    out = io.BytesIO()
    with applied():
        figure.savefig(out, format="png", dpi=200, metadata={"Software": None})
    return out.getvalue()
