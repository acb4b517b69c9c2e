"""How far a mean over several runs and many questions may be off.

Runs differ by their seeds, questions by their difficulty, and a run's luck with a question belongs
to neither alone: the crossed random-effects model of two factors, in its method of moments. With S
runs the variance of their mean is

    seeds       the runs' sample variance / S: seeds, and the luck that a run has with its questions
    questions   the jackknife's variance of the mean: questions, and the same luck once more
    luck        what is left of the questions' influence within each run, contained in both

The two sources are independent and their reaches square and add (Howe 1974; Graybill and Wang 1980;
Zou and Donner 2008, *MOVER*): Student's t for the few seeds, the normal distribution for the many
questions. `tools.simulate_intervals` shows how often the intervals hold the truth.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Float64

from promot_t5x.report.statistics.bootstrap import LEVEL

Influences = Float64[np.ndarray, "runs questions"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variance:
    """The parts of the variance of a mean over runs, in squared percentage points.

    **Attributes:**

    - `questions`: of the mean, about the choice of questions; NaN where it is not known.
    - `luck`: the part of it that is the runs' luck with single questions.
    - `seeds`: of the mean, about the choice of seeds; zero for a single run.
    - `freedom`: degrees of freedom of `seeds`; NaN for a single run.
    """

    questions: float
    luck: float = 0.0
    seeds: float = 0.0
    freedom: float = math.nan

    def reach(self, level: float = LEVEL, questions: float | None = None) -> float:
        """Return how far the interval of a level reaches from the mean to one side.

        **Arguments:**

        - `questions`: how far it reaches for the choice of questions alone, where that differs
          from the normal distribution's.
        """
        if questions is None:
            questions = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(self.questions)
        if not self.freedom > 0:
            return questions
        # Luck is in both sources, and with many runs each is rid of half of it. The variance of few
        # runs is too uncertain to take as much off it, and of two anything.
        off = self.luck / 2 * max(0.0, 1 - 1 / self.freedom)
        t = _students_t(self.freedom, level)
        own = 1 - (self.luck - off) / self.questions if self.questions else 1.0
        both = t**2 * max(0.0, self.seeds - off) + max(0.0, own) * questions**2
        # Seeds that agree by chance must not hide what the questions alone leave open.
        return math.sqrt(max(both, questions**2))

    def p_value(self, value: float) -> float:
        """Return the level outside of which an interval around `value` leaves out zero."""
        if math.isnan(self.questions):
            return math.nan
        if not self.freedom > 0:
            return 2 * NormalDist().cdf(-abs(value) / math.sqrt(self.questions))
        from scipy.optimize import brentq

        def short(p: float) -> float:
            return self.reach(1 - p) - abs(value)

        least = 1e-12
        return least if short(least) < 0 else float(brentq(short, least, 1.0, xtol=1e-12))

    def detectable(self) -> float:
        """Return the true difference that 95% intervals tell from zero with a chance of 80%."""
        return self.reach(LEVEL) + self.reach(2 * 0.80 - 1)


@functools.lru_cache
def _students_t(freedom: float, level: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def of_mean(values: Sequence[float], influences: Influences) -> Variance:
    """Return the variance of the mean of independent runs that answered the same questions.

    **Arguments:**

    - `values`: of each run, or of the difference of each pair of runs with one seed.
    - `influences`: of each question on each of the values.
    """
    runs = len(values)
    questions = float((influences.mean(axis=0) ** 2).sum())
    if runs == 1:
        return Variance(questions=questions)
    left = influences - influences.mean(axis=0)
    return Variance(
        questions=questions,
        luck=float((left**2).sum()) / (runs * (runs - 1)),
        seeds=float(np.var(values, ddof=1)) / runs,
        freedom=runs - 1.0,
    )


def of_difference(
    first: Variance, second: Variance, influence: Float64[np.ndarray, " _"]
) -> Variance:
    """Return the variance of the difference of two means whose runs are not paired.

    A single run has no variance over seeds; degrees of freedom are Welch's.

    **Arguments:**

    - `influence`: of each question on the difference.
    """
    sides = [side for side in (first, second) if side.freedom > 0]
    seeds = sum(side.seeds for side in sides)
    squares = sum(side.seeds**2 / side.freedom for side in sides)
    freedom = seeds**2 / squares if squares else sum(side.freedom for side in sides)
    return Variance(
        questions=float((influence**2).sum()),
        luck=sum(side.luck for side in sides),
        seeds=seeds,
        freedom=freedom or math.nan,
    )


def with_few_changes(
    variance: Variance, influence: Float64[np.ndarray, " _"], unit: float
) -> Variance:
    """Return the variance of a difference that rests on few questions, enlarged as that asks for.

    Bonett and Price (2012) add two examples to a paired difference of shares, one that changed each
    way. Here the two have the influence of those that did change, of several the typical one; a
    difference for which K questions count thus has 1 + 2/K times its variance.

    **Arguments:**

    - `unit`: the influence that a question could have, where none has any.
    """
    squares = influence**2
    total = float(squares.sum())
    typical = float((squares**2).sum()) / total if total > 0 else unit**2
    return dataclasses.replace(variance, questions=variance.questions + 2 * typical)
