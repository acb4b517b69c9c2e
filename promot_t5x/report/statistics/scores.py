"""Means of scores over runs and tasks, and the differences between two of them."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from promot_t5x.report.statistics import estimates, significance, variance
from promot_t5x.report.statistics.bootstrap import LEVEL, Interval
from promot_t5x.report.statistics.estimates import ScoreEstimate
from promot_t5x.report.statistics.variance import Influences, Variance

MCNEMAR = "exact McNemar"
QUESTIONS = "z over questions"
PAIRED_SEEDS = "paired seeds × questions"
SEEDS = "seeds × questions"
ONE_SIDE = "seeds × questions, against one model"

Right = Bool[np.ndarray, " examples"]


@dataclasses.dataclass(frozen=True)
class MeanScore:
    """The mean over runs of the mean over tasks: what a cell of a table holds.

    **Attributes:**

    - `runs`: of each run, with a seed of its own, its score of each task, by the task's name.
    """

    runs: Sequence[Mapping[str, ScoreEstimate]]

    @functools.cached_property
    def values(self) -> list[float]:
        """The mean over the tasks of each run, in percent."""
        return [math.fsum(e.value for e in run.values()) / len(run) for run in self.runs]

    @property
    def value(self) -> float:
        """The mean over runs and tasks, in percent."""
        return math.fsum(self.values) / len(self.values)

    @functools.cached_property
    def influences(self) -> Influences:
        """The influence of every question of every task on each run's value."""
        return np.stack(
            [np.concatenate([e.influence for e in run.values()]) / len(run) for run in self.runs]
        )

    @functools.cached_property
    def variance(self) -> Variance:
        """The variance of the value."""
        return variance.of_mean(self.values, self.influences)

    @property
    def unit(self) -> float:
        """The largest influence, in percent, that a single question could have on the value."""
        (run, *_) = self.runs
        return 100.0 / len(run) / min(len(estimate.influence) for estimate in run.values())

    @functools.cached_property
    def interval(self) -> Interval:
        """The 95% interval, about the choice of questions and, with several runs, of seeds.

        Tasks are independent of each other: the distances of their intervals' ends from their
        means square and add.
        """
        (first, *_) = self.runs
        below = above = 0.0
        for task in first:
            of_task = [run[task] for run in self.runs]
            low, high = estimates.mean_interval(of_task)
            mean = math.fsum(estimate.value for estimate in of_task) / len(of_task)
            below += ((mean - low) / len(first)) ** 2
            above += ((high - mean) / len(first)) ** 2
        low = self.value - self.variance.reach(questions=math.sqrt(below))
        high = self.value + self.variance.reach(questions=math.sqrt(above))
        # NaN stays: `max` and `min` return their first argument then.
        return Interval(max(low, 0.0), min(high, 100.0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreDifference:
    """One mean score minus another, in percentage points.

    The p-value is below 0.05 exactly where the interval leaves zero out.

    **Attributes:**

    - `values`: of each pair of runs with one seed; the difference of the means alone where runs
      are not paired.
    - `variance`: of the value.
    - `test`: the name of the test.
    - `changes`: examples that the second model alone has right, that the first alone has right,
      and all; None where examples are not right or wrong, or runs several.
    """

    value: float
    values: Sequence[float]
    variance: Variance
    test: str
    changes: tuple[int, int, int] | None = None

    @functools.cached_property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the difference is zero; NaN where none is known."""
        if self.changes is not None:
            return significance.mcnemar(*self.changes[:2])
        return self.variance.p_value(self.value)

    @functools.cached_property
    def interval(self) -> Interval:
        """The 95% interval: Tango's where McNemar's test decides."""
        if self.changes is None:
            reach = self.variance.reach()
            return Interval(max(self.value - reach, -100.0), min(self.value + reach, 100.0))
        low, high = (100 * end for end in significance.tango_interval(*self.changes))
        if self.p_value < 1 - LEVEL:
            return Interval(low, high)
        # Tango's interval goes with the asymptotic test; the exact one finds a little less.
        return Interval(min(low, 0.0), max(high, 0.0))

    @functools.cached_property
    def detectable(self) -> float:
        """The minimum detectable effect: the true difference found four times out of five."""
        least = significance.smallest_share(self.changes[2]) if self.changes is not None else 0.0
        return min(max(self.variance.detectable(), least), 100.0)


def difference(
    first: MeanScore,
    second: MeanScore,
    *,
    seeds: tuple[Sequence[str], Sequence[str]] | None = None,
    right: tuple[Right, Right] | None = None,
) -> ScoreDifference:
    """Return how much higher the score `second` is than the score `first` of the same tasks.

    **Arguments:**

    - `seeds`: of the runs of each; where both have the same, their runs are compared seed by seed.
    - `right`: of two single runs on one task whether each answer is right, where that is all that
      the score counts and no question is asked twice.
    """
    value = second.value - first.value
    runs = len(first.runs), len(second.runs)
    influence = second.influences.mean(axis=0) - first.influences.mean(axis=0)
    values = [value]
    if runs == (1, 1):
        test = QUESTIONS
        known = variance.of_mean(values, influence[None])
    elif seeds is not None and sorted(seeds[0]) == sorted(seeds[1]):
        test = PAIRED_SEEDS
        order = [seeds[0].index(seed) for seed in seeds[1]]
        values = [b - first.values[a] for a, b in zip(order, second.values, strict=True)]
        known = variance.of_mean(values, second.influences - first.influences[order])
    else:
        test = ONE_SIDE if 1 in runs else SEEDS
        known = variance.of_difference(first.variance, second.variance, influence)
    known = variance.with_few_changes(known, influence, second.unit)
    changes = None
    if right is not None and runs == (1, 1):
        test, (before, after) = MCNEMAR, right
        changes = (int((after & ~before).sum()), int((before & ~after).sum()), len(before))
    return ScoreDifference(value=value, values=values, variance=known, test=test, changes=changes)
