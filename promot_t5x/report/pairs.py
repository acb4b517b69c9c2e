"""Two models compared on every column, example by example."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from promot_t5x.report.comparison import SUITE, TARGET, Cell, Column, Comparison, Row
from promot_t5x.report.statistics import estimates, significance
from promot_t5x.report.statistics.bootstrap import Interval
from promot_t5x.report.statistics.estimates import Estimate
from promot_t5x.report.statistics.seeds import OverSeeds, over_seeds, unpaired_difference

MCNEMAR, BOOTSTRAP = "exact McNemar", "paired bootstrap"
PAIRED_SEEDS, WELCH = "paired t over seeds", "Welch's t over seeds"
ONE_SAMPLE = "one-sample t over seeds"  # the other side is a single model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The second model's score minus the first's, in percentage points.

    **Attributes:**

    - `estimate`: of the difference; its interval is about the choice of examples.
    - `seeds`: the same over seeds, where a side has several.
    - `test`, `p_value`: of the hypothesis of no difference.
    - `adjusted`: Holm's p-value over the suite's tasks; NaN for other columns.
    - `smallest`: the difference that such a sample shows with 80% power.
    - `gained`, `lost`: examples that the second model alone, or the first alone, has right; None
      where examples are not right or wrong, or seeds several.
    """

    column: Column
    first: float
    second: float
    estimate: Estimate
    seeds: OverSeeds | None
    test: str
    p_value: float
    adjusted: float
    smallest: float
    gained: int | None
    lost: int | None

    @property
    def interval(self) -> Interval:
        """Over seeds where there are several, else over examples."""
        return self.seeds.interval if self.seeds else self.estimate.interval


@dataclasses.dataclass(frozen=True)
class Pair:
    """Every difference between two rows."""

    first: str
    second: str
    differences: Sequence[Difference]


def pair(comparison: Comparison, first: str, second: str) -> Pair:
    """Compare the row `second` with the row `first`.

    **Raises** `UserError` if there are no such rows.
    """
    rows = comparison.row(first), comparison.row(second)
    shared = [
        column
        for column in comparison.columns
        if column.kind != "change" and all(column in row.cells for row in rows)
    ]
    found = [_difference(column, *rows) for column in shared]
    tasks = [d for d in found if d.column.kind == SUITE and not math.isnan(d.p_value)]
    adjusted = significance.holm([d.p_value for d in tasks])
    by_column = dict(zip([d.column for d in tasks], adjusted, strict=True))
    return Pair(
        first,
        second,
        [dataclasses.replace(d, adjusted=by_column.get(d.column, math.nan)) for d in found],
    )


def of_interest(comparison: Comparison) -> list[tuple[str, str]]:
    """Which rows to compare where nobody says: all of few, else each with the baseline.

    The last row, a report's subject as a rule, comes first.
    """
    labels = [row.label for row in comparison.rows]
    labels.sort(key=lambda label: label != comparison.baseline)
    firsts = labels if len(labels) <= 4 else labels[:1]
    every = [(a, b) for a in firsts for b in labels[labels.index(a) + 1 :]]
    return sorted(every, key=lambda pair: -labels.index(pair[1]))


def _difference(column: Column, first: Row, second: Row) -> Difference:
    cells = first.cells[column], second.cells[column]
    estimate, seeds, test = _over_seeds(first, second, *cells)
    gained = lost = examples = None
    p_value = seeds.p_value if seeds else estimate.p_value
    if not seeds and column.kind in (SUITE, TARGET):
        right = [_right(row, column) for row in (first, second)]
        if right[0] is not None and right[1] is not None:
            test = MCNEMAR
            p_value = significance.mcnemar(right[0], right[1])
            gained = int((right[1] & ~right[0]).sum())
            lost = int((right[0] & ~right[1]).sum())
            examples = len(right[0])
    return Difference(
        column=column,
        first=cells[0].value,
        second=cells[1].value,
        estimate=estimate,
        seeds=seeds,
        test=test,
        p_value=p_value,
        adjusted=math.nan,
        smallest=significance.smallest_difference(
            seeds.standard_error if seeds else estimate.standard_error,
            freedom=seeds.freedom if seeds else None,
            examples=examples,
        ),
        gained=gained,
        lost=lost,
    )


def _over_seeds(
    first: Row, second: Row, before: Cell, after: Cell
) -> tuple[Estimate, OverSeeds | None, str]:
    if len(first.runs) == len(second.runs) == 1:
        return after.estimate - before.estimate, None, BOOTSTRAP
    if sorted(first.seeds) == sorted(second.seeds):
        of_seed = dict(zip(first.seeds, before.runs, strict=True))
        each = [run - of_seed[seed] for seed, run in zip(second.seeds, after.runs, strict=True)]
        return estimates.mean(each), over_seeds([d.value for d in each]), PAIRED_SEEDS
    values = [[run.value for run in cell.runs] for cell in (after, before)]
    test = ONE_SAMPLE if 1 in (len(first.runs), len(second.runs)) else WELCH
    return after.estimate - before.estimate, unpaired_difference(*values), test


def _right(row: Row, column: Column) -> Bool[np.ndarray, " examples"] | None:
    (run,) = row.runs
    answers = (run.targets if column.kind == TARGET else run.suite)[column.task]
    return answers.right
