"""Two models compared on every column, question by question."""

import dataclasses
import math
from collections.abc import Sequence

from promot_t5x.errors import UserError
from promot_t5x.report.comparison import (
    CHANGE,
    MEAN,
    SUITE,
    TARGET,
    Column,
    ComparedRow,
    RunComparison,
)
from promot_t5x.report.rows import signed_number, span
from promot_t5x.report.statistics import significance
from promot_t5x.report.statistics.scores import MeanScore, Right, ScoreDifference, difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnDifference:
    """The second row's number in a column minus the first's.

    **Attributes:**

    - `first`, `second`: the numbers, in percent.
    - `found`: their difference.
    - `adjusted`: Holm's p-value over the suite's tasks; NaN for other columns.
    """

    column: Column
    first: float
    second: float
    found: ScoreDifference
    adjusted: float


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Every difference between two rows.

    **Attributes:**

    - `first`, `second`: the labels of the rows.
    - `differences`: of the columns that both rows have.
    - `statements`: which tasks the difference of each suite's mean comes from, a sentence each.
    """

    first: str
    second: str
    differences: Sequence[ColumnDifference]
    statements: Sequence[str]


def pair(comparison: RunComparison, first: str, second: str) -> PairedComparison:
    """Compare the row `second` with the row `first`.

    **Raises:** `UserError` if there are no such rows, or if they share no column.
    """
    rows = comparison.row(first), comparison.row(second)
    found = []
    for column in comparison.columns:
        cells = [row.cells.get(column) for row in rows]
        if all(isinstance(cell, MeanScore) for cell in cells):
            found.append(_difference(column, *rows, *cells))  # type: ignore[arg-type]
    if not found:
        raise UserError(
            f"{first!r} and {second!r} cannot be compared: no task was evaluated for both. "
            f"{first!r} has {_tasks(rows[0])}; {second!r} has {_tasks(rows[1])}."
        )
    tasks = [d for d in found if d.column.kind == SUITE and not math.isnan(d.found.p_value)]
    adjusted = significance.holm([d.found.p_value for d in tasks])
    by_column = dict(zip([d.column for d in tasks], adjusted, strict=True))
    return PairedComparison(
        first,
        second,
        [dataclasses.replace(d, adjusted=by_column.get(d.column, math.nan)) for d in found],
        [
            text
            for d in found
            if d.column.kind == MEAN and (text := _statement(comparison, d, *rows))
        ],
    )


def of_interest(comparison: RunComparison) -> list[tuple[str, str]]:
    """Return the rows to compare where nobody says: all of few, else each with the baseline.

    The last row, a report's subject as a rule, comes first. Rows that share no column are left out.
    """
    labels = [row.label for row in comparison.rows]
    labels.sort(key=lambda label: label != comparison.baseline)
    firsts = labels if len(labels) <= 4 else labels[:1]
    every = [(a, b) for a in firsts for b in labels[labels.index(a) + 1 :]]
    shared = [pair for pair in every if share_a_column(comparison, *pair)]
    return sorted(shared, key=lambda pair: -labels.index(pair[1]))


def share_a_column(comparison: RunComparison, first: str, second: str) -> bool:
    """Whether there is a column in which both rows have a score."""
    columns = [set(comparison.row(label).cells) for label in (first, second)]
    return any(column.kind != CHANGE for column in columns[0] & columns[1])


def _difference(
    column: Column, first: ComparedRow, second: ComparedRow, before: MeanScore, after: MeanScore
) -> ColumnDifference:
    right = None
    if len(first.runs) == len(second.runs) == 1 and column.kind in (SUITE, TARGET):
        each = [_right(row, column) for row in (first, second)]
        right = (each[0], each[1]) if each[0] is not None and each[1] is not None else None
    found = difference(before, after, seeds=(first.seeds, second.seeds), right=right)
    return ColumnDifference(
        column=column, first=before.value, second=after.value, found=found, adjusted=math.nan
    )


def _right(row: ComparedRow, column: Column) -> Right | None:
    """Return which answers of a single run are right, where each is to a question of its own."""
    (run,) = row.runs
    answers = run.answers[column.task]
    return answers.right if answers.questions is None else None


def _tasks(row: ComparedRow) -> str:
    return ", ".join(dict.fromkeys(task for run in row.runs for task in run.answers)) or "none"


def _statement(
    comparison: RunComparison, mean: ColumnDifference, first: ComparedRow, second: ComparedRow
) -> str:
    """Return which tasks a mean's difference comes from; empty where there is none to speak of.

    Tasks are left out, the largest differences first, until no difference of the mean remains.
    """
    low, high = mean.found.interval
    if len(mean.column.tasks) < 3 or not (low > 0 or high < 0):
        return ""
    up = mean.found.value > 0
    titles = {c.tasks[0]: c.title for c in comparison.of_kind(SUITE)}
    cells = [row.cells[mean.column] for row in (first, second)]
    scores = [cell for cell in cells if isinstance(cell, MeanScore)]
    seeds = (first.seeds, second.seeds)

    def over(tasks: Sequence[str]) -> ScoreDifference:
        parts = [MeanScore([{t: run[t] for t in tasks} for run in score.runs]) for score in scores]
        return difference(parts[0], parts[1], seeds=seeds)

    own = {task: over([task]).value for task in mean.column.tasks}
    order = sorted(own, key=lambda task: own[task], reverse=up)
    start = f"{mean.column.title}: the difference of {signed_number(mean.found.value)} comes from"
    for count in range(1, len(order) // 2 + 1):
        rest = over(order[count:])
        if rest.interval.low <= 0 <= rest.interval.high or (rest.value > 0) != up:
            carried = ", ".join(f"{titles[t]} ({signed_number(own[t])})" for t in order[:count])
            return (
                f"{start} {carried}; over the other {len(order) - count} tasks it is "
                f"{signed_number(rest.value)} ({span(rest.interval, signed=True)})."
            )
    rest = over(order[1:])
    return (
        f"{start} no few tasks; without {titles[order[0]]} ({signed_number(own[order[0]])}) it is "
        f"{signed_number(rest.value)} ({span(rest.interval, signed=True)})."
    )
