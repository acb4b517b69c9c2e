"""The table of a comparison, for the terminal, Markdown, LaTeX and CSV.

Rows are models, columns the targets, the suite, its mean, the change of the mean and the share of
answers in the target's format. Each number stands with its 95% interval.
"""

import csv
import io
import math
from collections.abc import Sequence

from promot_t5x.report.comparison import SUITE, TARGET, Cell, Column, Comparison, Row
from promot_t5x.report.pairs import Pair
from promot_t5x.report.rows import number
from promot_t5x.report.statistics.bootstrap import RESAMPLES, Interval

_GAP = "  "
_MISSING = "–"


def value(cell: Cell | None, column: Column) -> str:
    """A cell's number, to one decimal; with its sign where it is a change."""
    return _MISSING if cell is None else _number(cell.value, column)


def interval(cell: Cell | None, column: Column) -> str:
    """A cell's interval, as `41.9–53.4`; empty where there is none."""
    return "" if cell is None else span(cell.interval, signed=column.kind == "change")


def span(ends: Interval, *, signed: bool = False) -> str:
    """An interval as `41.9–53.4`, or as `-1.2…+3.4` where it is a difference's."""
    if math.isnan(ends.low):
        return ""
    if signed:
        return f"{signed_number(ends.low)}…{signed_number(ends.high)}"
    return f"{ends.low:.1f}–{ends.high:.1f}"


def signed_number(made: float) -> str:
    """A difference to one decimal with its sign; none for what rounds to nothing."""
    text = f"{made:+.1f}"
    return text[1:] if float(text) == 0 else text


def terminal(comparison: Comparison, width: int | None = None) -> str:
    """Each row's numbers with their intervals below.

    **Arguments:**

    - `width`: columns that do not fit go into a second block, and so on.
    """
    heads = ["", *(line for row in comparison.rows for line in (row.label, seeds(row)))]
    first = max(map(len, heads))
    blocks: list[list[list[str]]] = [[]]
    left = width or math.inf
    for column in comparison.columns:
        lines = [column.title]
        for row in comparison.rows:
            cell = row.cells.get(column)
            lines += [value(cell, column), interval(cell, column)]
        wide = max(map(len, lines))
        taken = first + sum(len(_GAP) + len(other[0]) for other in blocks[-1])
        if blocks[-1] and taken + len(_GAP) + wide > left:
            blocks.append([])
        blocks[-1].append([line.rjust(wide) for line in lines])
    return "\n\n".join(
        "\n".join(
            _GAP.join([head.ljust(first), *cells]).rstrip()
            for head, *cells in zip(heads, *block, strict=True)
        )
        for block in blocks
    )


def markdown(comparison: Comparison) -> str:
    """A Markdown table whose columns also line up as text."""
    lines = [["", *(column.title for column in comparison.columns)]]
    for row in comparison.rows:
        cells = [(row.cells.get(column), column) for column in comparison.columns]
        lines.append([label(row), *(_with_interval(*cell) for cell in cells)])
    return markdown_table(lines)


def document(comparison: Comparison) -> str:
    """The Markdown table and what its numbers are: `report.md`."""
    notes = "\n".join(f"- {line}" for line in legend(comparison))
    return f"{markdown(comparison)}\n\n{notes}\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table, the first row its head, the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells lined up for a terminal, the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def latex(comparison: Comparison) -> str:
    """A `tabular` for the package booktabs, intervals as sub- and superscripts."""
    columns = comparison.columns
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["", *(_escaped(column.title) for column in columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in comparison.rows:
        cells = [_latex_cell(row.cells.get(column), column) for column in columns]
        lines.append(" & ".join([_escaped(label(row)), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def tidy_csv(comparison: Comparison) -> str:
    """A line a number, every score of every task, for a program to read.

    `low` and `high` end the interval over examples, `seeds_low` and `seeds_high` that over seeds.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["row", "kind", "task", "score", "value", "low", "high", "seeds", "seeds_low", "seeds_high"]
    )
    for row in comparison.rows:
        for kind, task, score, cell in every_score(comparison, row):
            ends = [*cell.estimate.interval]
            over = [*cell.seeds.interval] if len(cell.runs) > 1 else []
            told = [f"{end:.6g}" if math.isfinite(end) else "" for end in (*ends, *over)]
            told += [""] * (4 - len(told))
            writer.writerow(
                [
                    *(row.label, kind, task, score),
                    f"{cell.value:.6g}",
                    *(*told[:2], len(cell.runs), *told[2:]),
                ]
            )
    return out.getvalue()


def every_score(comparison: Comparison, row: Row) -> list[tuple[str, str, str, Cell]]:
    """(kind, task, score, cell) of each of a row's numbers, secondary scores included."""
    found = []
    for column in comparison.columns:
        if column.kind not in (TARGET, SUITE):
            if column in row.cells:
                found.append((column.kind, "", column.kind, row.cells[column]))
            continue
        runs = [
            comparison.scores.get((row.label, seed, column.kind, column.task), {})
            for seed in row.seeds
        ]
        for score in runs[0]:
            if all(score in scores for scores in runs):
                cell = Cell([scores[score] for scores in runs])
                found.append((column.kind, column.task, score, cell))
    return found


def legend(comparison: Comparison) -> list[str]:
    """What the table's numbers are, a sentence each."""
    lines = [
        "Scores in percent, with 95% intervals: BCa bootstrap over examples "
        f"({RESAMPLES:,} resamples, paired across rows)."
    ]
    several = [row for row in comparison.rows if len(row.runs) > 1]
    if several:
        lines.append(
            "Rows of several seeds show the mean over seeds and Student's t interval over seeds."
        )
    if comparison.of_kind("change"):
        lines.append(f"change: of the mean over the suite, from {comparison.baseline}.")
    if comparison.measure is not None and comparison.of_kind("format"):
        titles = [c.title for c in comparison.of_kind(SUITE) if c.task in comparison.measured]
        lines.append(
            f"target's format: share of answers that are {comparison.measure.said} where these "
            f"are no right answers; the mean over {', '.join(titles)}."
        )
    return [*lines, *comparison.notes]


def pair_lines(found: Pair) -> list[list[str]]:
    """A pair's differences as rows of cells, the first row their head."""
    head = ["", found.first, found.second, "difference", "95% interval", "p", "p (Holm)"]
    lines = [[*head, "lost / won", "shows at 80%", "test"]]
    for d in found.differences:
        changed = "" if d.gained is None else f"{d.lost} / {d.gained}"
        lines.append(
            [
                d.column.title,
                number(d.first),
                number(d.second),
                signed_number(d.estimate.value),
                span(d.interval, signed=True) or _MISSING,
                p_text(d.p_value),
                p_text(d.adjusted) if not math.isnan(d.adjusted) else "",
                changed,
                number(d.smallest) if d.smallest else _MISSING,
                d.test,
            ]
        )
    return lines


def p_text(p: float) -> str:
    """A p-value to two or three digits."""
    if math.isnan(p):
        return _MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def label(row: Row) -> str:
    """A row's name, with the number of its seeds where there are several."""
    return f"{row.label} ({seeds(row)})" if seeds(row) else row.label


def seeds(row: Row) -> str:
    """How many seeds a row has, where there are several."""
    return f"{len(row.runs)} seeds" if len(row.runs) > 1 else ""


def _number(made: float, column: Column) -> str:
    if math.isnan(made):
        return _MISSING
    return signed_number(made) if column.kind == "change" else f"{made:.1f}"


def _with_interval(cell: Cell | None, column: Column) -> str:
    ends = interval(cell, column)
    return f"{value(cell, column)} ({ends})" if ends else value(cell, column)


def _latex_cell(cell: Cell | None, column: Column) -> str:
    if cell is None or math.isnan(cell.value):
        return "--"
    low, high = cell.interval
    ends = "" if math.isnan(low) else f"_{{{_number(low, column)}}}^{{{_number(high, column)}}}"
    return f"${_number(cell.value, column)}{ends}$"


def _escaped(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    return text
