"""What several runs of one method, with different seeds, say about the method.

This is variance between runs. It says nothing about the choice of examples, which the bootstrap
does, and the two are reported apart.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from promot_t5x.statistics.bootstrap import LEVEL, Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """Mean over runs with Student's t interval; p-value of the hypothesis that it is zero.

    Interval and p-value are NaN for a single run.
    """

    mean: float
    deviation: float
    interval: Interval
    p_value: float
    runs: int


def over_seeds(values: Sequence[float], level: float = LEVEL) -> OverSeeds:
    """Mean and t interval of independent runs' values, or of their paired differences."""
    runs = len(values)
    mean = float(np.mean(values))
    if runs < 2:
        nan = float("nan")
        return OverSeeds(
            mean=mean, deviation=nan, interval=Interval(nan, nan), p_value=nan, runs=runs
        )
    deviation = float(np.std(values, ddof=1))
    return _student(mean, deviation / math.sqrt(runs), runs - 1.0, deviation, runs, level)


def unpaired_difference(
    first: Sequence[float], second: Sequence[float], level: float = LEVEL
) -> OverSeeds:
    """Mean of `first` minus mean of `second`, runs that have nothing to do with each other.

    Welch's interval, for at least two runs of one of them; where the other has a single run (a
    pretrained model, say), that is taken as a fixed number.
    """
    mean = float(np.mean(first) - np.mean(second))
    parts = [(float(np.var(v, ddof=1)) / len(v), len(v)) for v in (first, second) if len(v) > 1]
    if not parts:
        return over_seeds([mean], level)
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / (runs - 1) for part, runs in parts)
    freedom = variance**2 / squares if squares > 0 else float(sum(runs - 1 for _, runs in parts))
    error = math.sqrt(variance)
    return _student(mean, error, freedom, float("nan"), sum(runs for _, runs in parts), level)


def _student(
    mean: float, error: float, freedom: float, deviation: float, runs: int, level: float
) -> OverSeeds:
    from scipy.special import stdtr, stdtrit

    reach = float(stdtrit(freedom, (1 + level) / 2)) * error
    if error > 0:
        p = 2 * float(stdtr(freedom, -abs(mean) / error))
    else:
        p = 1.0 if mean == 0 else 0.0
    return OverSeeds(
        mean=mean,
        deviation=deviation,
        interval=Interval(mean - reach, mean + reach),
        p_value=p,
        runs=runs,
    )
