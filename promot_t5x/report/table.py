"""The table of a comparison, for the terminal, Markdown, LaTeX and CSV.

Rows are models, columns the targets, the suite, its mean, the change of the mean and the share of
answers in the target's format. Below the titles stand the score's name and the split; each number
stands with its 95% interval, and † marks it where its own questions chose the checkpoint.
"""

import csv
import io
import math
from collections.abc import Sequence

from promot_t5x.report.comparison import (
    CHANGE,
    MEAN,
    SUITE,
    TARGET,
    Cell,
    Column,
    ComparedRow,
    RunComparison,
)
from promot_t5x.report.pairs import PairedComparison
from promot_t5x.report.rows import number, signed_number, span
from promot_t5x.report.statistics.bootstrap import RESAMPLES
from promot_t5x.report.statistics.scores import MeanScore

SELECTED = "†"
SCORES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "rouge2": "ROUGE-2",
    "f1": "F1",
}
_GAP = "  "
_MISSING = "–"


def score_name(column: Column) -> str:
    """Return what a column's score is called; empty where it is no task's."""
    return SCORES.get(column.score, column.score)


def about(column: Column) -> str:
    """Return the score and the split that a column's numbers are of."""
    return ", ".join(part for part in (score_name(column), column.split) if part)


def value(row: ComparedRow, column: Column) -> str:
    """Return a row's number to one decimal: with its sign if a change, marked if flattered."""
    cell = row.cells.get(column)
    if cell is None:
        return _MISSING
    mark = SELECTED if row.selected(column) is not None else ""
    return _number(cell.value, column) + mark


def interval(cell: Cell | None, column: Column) -> str:
    """Return a cell's interval, as `41.9–53.4`; empty where there is none."""
    return "" if cell is None else span(cell.interval, signed=column.kind == CHANGE)


def terminal(comparison: RunComparison, width: int | None = None) -> str:
    """Return each row's numbers with their intervals below.

    **Arguments:**

    - `width`: columns that do not fit go into a second block, and so on.
    """
    heads = ["", "", "", *(line for row in comparison.rows for line in (row.label, seeds(row)))]
    first = max(map(len, heads))
    blocks: list[list[list[str]]] = [[]]
    left = width or math.inf
    for column in comparison.columns:
        lines = [column.title, score_name(column), column.split]
        for row in comparison.rows:
            lines += [value(row, column), interval(row.cells.get(column), column)]
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


def markdown(comparison: RunComparison) -> str:
    """Return a Markdown table whose columns also line up as text."""
    columns = comparison.columns
    lines = [["", *(column.title for column in columns)], ["", *map(about, columns)]]
    for row in comparison.rows:
        lines.append([label(row), *(_with_interval(row, column) for column in columns)])
    return markdown_table(lines)


def document(comparison: RunComparison) -> str:
    """Return the Markdown table and what its numbers are: `report.md`."""
    notes = "\n".join(f"- {line}" for line in legend(comparison))
    return f"{markdown(comparison)}\n\n{notes}\n"


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as a Markdown table, the first row its head."""
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
    """Return rows of cells lined up for a terminal, the first column to the left."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        _GAP.join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def latex(comparison: RunComparison) -> str:
    """Return a `tabular` for the package booktabs, intervals as sub- and superscripts."""
    columns = comparison.columns
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["", *(_escaped(column.title) for column in columns)]) + " \\\\",
        " & ".join(["", *(_escaped(about(column)) for column in columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in comparison.rows:
        cells = [_latex_cell(row, column) for column in columns]
        lines.append(" & ".join([_escaped(label(row)), *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def tidy_csv(comparison: RunComparison) -> str:
    """Return a line for each number, every score of every task, for a program to read.

    `low` and `high` end the interval that all tables show. `questions_error` and `seeds_error` are
    the standard errors of its two sources; the latter is empty for a single run. `optimism` is set
    where the score's own questions chose the checkpoint, `demonstrations_sd` where the suite was
    asked after several draws of demonstrations.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            *("row", "kind", "task", "split", "score", "value", "low", "high", "seeds"),
            *("questions_error", "seeds_error", "optimism", "demonstrations_sd"),
        ]
    )
    for row in comparison.rows:
        for column, score, cell in every_score(comparison, row):
            task = column.tasks[0] if column.kind in (TARGET, SUITE) else column.title
            optimism = row.selected(column) if score == column.score else None
            seeds_error = math.sqrt(cell.variance.seeds) if len(row.runs) > 1 else math.nan
            primary = score in (column.score, column.kind)
            moved = row.over_demonstrations(column) if primary else None
            errors = (math.sqrt(cell.variance.questions), seeds_error, optimism, moved)
            writer.writerow(
                [
                    *(row.label, column.kind, task, column.split, score, _exact(cell.value)),
                    *(*map(_exact, cell.interval), len(row.runs), *map(_exact, errors)),
                ]
            )
    return out.getvalue()


def every_score(comparison: RunComparison, row: ComparedRow) -> list[tuple[Column, str, Cell]]:
    """Return (column, score, cell) of each of a row's numbers, secondary scores included."""
    found: list[tuple[Column, str, Cell]] = []
    for column in comparison.columns:
        if column.kind not in (TARGET, SUITE):
            if column in row.cells:
                found.append((column, column.kind, row.cells[column]))
            continue
        runs = [
            comparison.scores.get((row.label, seed, column.kind, column.task), {})
            for seed in row.seeds
        ]
        for score in runs[0]:
            if all(score in scores for scores in runs):
                cell = MeanScore([{column.task: scores[score]} for scores in runs])
                found.append((column, score, cell))
    return found


def legend(comparison: RunComparison) -> list[str]:
    """Return what the table's numbers are, a sentence each."""
    lines = [
        "Scores in percent, with 95% intervals about the choice of questions: BCa bootstrap "
        f"({RESAMPLES:,} resamples)."
    ]
    if any(len(row.runs) > 1 for row in comparison.rows):
        lines.append(
            "Rows of several seeds show the mean over seeds; their intervals are about the choice "
            "of seeds and of questions."
        )
    for column in comparison.of_kind(CHANGE):
        of = comparison.columns[comparison.columns.index(column) - 1].title
        lines.append(f"{column.title}: of the {of} over the suite, from {comparison.baseline}.")
    if comparison.measure is not None and comparison.of_kind("format"):
        titles = [c.title for c in comparison.of_kind(SUITE) if c.task in comparison.measured]
        lines.append(
            f"target's format: share of answers that are {comparison.measure.description} where "
            f"these are no right answers; the mean over {', '.join(titles)}."
        )
    return [*lines, *_selected(comparison), *_demonstrations(comparison), *comparison.notes]


def _demonstrations(comparison: RunComparison) -> list[str]:
    """Return what other demonstrations do to the suite's means, where that was measured."""
    spreads = [
        f"{row.label}, {column.title}: {spread:.2f}"
        for row in comparison.rows
        for column in comparison.of_kind(MEAN)
        if (spread := row.over_demonstrations(column)) is not None
    ]
    if not spreads:
        return []
    return [
        "Asked after other demonstrations, these means have standard deviations, in percentage "
        f"points, that no interval counts: {'; '.join(spreads)}."
    ]


def _selected(comparison: RunComparison) -> list[str]:
    """Return the sentence about scores whose questions chose the checkpoint, if there are any."""
    scores = [
        f"{row.label}, {column.title}"
        + (f": {signed_number(optimism)}" if not math.isnan(optimism) else ": unknown")
        for row in comparison.rows
        for column in comparison.of_kind(TARGET)
        if (optimism := row.selected(column)) is not None
    ]
    if not scores:
        return []
    return [
        f"{SELECTED}: the checkpoint was chosen on the very questions of this score, which is "
        "therefore too high on average, in percentage points (bootstrap over the choice): "
        f"{'; '.join(scores)}."
    ]


def pair_lines(found: PairedComparison) -> list[list[str]]:
    """Return a pair's differences as rows of cells, the first row their head."""
    head = ["", "split", found.first, found.second, "difference", "95% interval", "p", "p (Holm)"]
    lines = [[*head, "lost / won", "MDE (80%)", "test"]]
    for d in found.differences:
        changed = ""
        if d.found.changes is not None:
            gained, lost, _ = d.found.changes
            changed = f"{lost} / {gained}"
        lines.append(
            [
                d.column.title,
                d.column.split,
                number(d.first),
                number(d.second),
                signed_number(d.found.value),
                span(d.found.interval, signed=True) or _MISSING,
                p_text(d.found.p_value),
                p_text(d.adjusted) if not math.isnan(d.adjusted) else "",
                changed,
                number(d.found.detectable),
                d.found.test,
            ]
        )
    return lines


def p_text(p: float) -> str:
    """Return a p-value to two or three digits."""
    if math.isnan(p):
        return _MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def label(row: ComparedRow) -> str:
    """Return a row's name, with the number of its seeds where there are several."""
    return f"{row.label} ({seeds(row)})" if seeds(row) else row.label


def seeds(row: ComparedRow) -> str:
    """Return how many seeds a row has, where there are several."""
    return f"{len(row.runs)} seeds" if len(row.runs) > 1 else ""


def _number(made: float, column: Column) -> str:
    if math.isnan(made):
        return _MISSING
    return signed_number(made) if column.kind == CHANGE else f"{made:.1f}"


def _exact(made: float | None) -> str:
    return f"{made:.6g}" if made is not None and math.isfinite(made) else ""


def _with_interval(row: ComparedRow, column: Column) -> str:
    ends = interval(row.cells.get(column), column)
    return f"{value(row, column)} ({ends})" if ends else value(row, column)


def _latex_cell(row: ComparedRow, column: Column) -> str:
    cell = row.cells.get(column)
    if cell is None or math.isnan(cell.value):
        return "--"
    low, high = cell.interval
    ends = "" if math.isnan(low) else f"_{{{_number(low, column)}}}^{{{_number(high, column)}}}"
    mark = "" if row.selected(column) is None else "\\dagger"
    return f"${_number(cell.value, column)}{mark}{ends}$"


def _escaped(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, f"\\{letter}")
    return text
