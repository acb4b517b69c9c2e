"""What several runs of one method, with different seeds, say about the method.

This is variance between runs. It says nothing about the choice of examples, which the bootstrap
does, and the two are reported apart.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from promot_t5x.report.statistics.bootstrap import LEVEL, Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverSeeds:
    """The mean over runs, or a difference of means, with what Student's t says about it.

    **Attributes:**

    - `mean`: in percent, as are the others.
    - `standard_error`, `freedom`: of the mean, and its degrees of freedom; NaN for a single run.
    - `runs`: how many.
    """

    mean: float
    standard_error: float
    freedom: float
    runs: int

    @property
    def interval(self) -> Interval:
        """95%; NaN for a single run."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + LEVEL) / 2)) * self.standard_error
        return Interval(self.mean - reach, self.mean + reach)

    @property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the mean is zero; NaN for a single run."""
        from scipy.special import stdtr

        if self.standard_error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * float(stdtr(self.freedom, -abs(self.mean) / self.standard_error))


def over_seeds(values: Sequence[float]) -> OverSeeds:
    """Mean of independent runs' values, or of the differences of runs with equal seeds."""
    runs = len(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(runs) if runs > 1 else math.nan
    freedom = runs - 1.0 if runs > 1 else math.nan
    return OverSeeds(mean=float(np.mean(values)), standard_error=error, freedom=freedom, runs=runs)


def unpaired_difference(first: Sequence[float], second: Sequence[float]) -> OverSeeds:
    """Mean of `first` minus mean of `second`, runs that have nothing to do with each other.

    Welch's test. A single run on one side, of a pretrained model say, is taken as a fixed number.
    """
    sides = [(float(np.var(v, ddof=1)) / len(v), len(v)) for v in (first, second) if len(v) > 1]
    variance = sum(part for part, _ in sides) if sides else math.nan
    squares = sum(part**2 / (runs - 1) for part, runs in sides)
    return OverSeeds(
        mean=float(np.mean(first) - np.mean(second)),
        standard_error=math.sqrt(variance),
        freedom=variance**2 / squares if squares else float(sum(n - 1 for _, n in sides) or "nan"),
        runs=min(len(first), len(second)),
    )
