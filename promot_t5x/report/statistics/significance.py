"""The test and the interval of two models' right answers, and many tests at once."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from promot_t5x.report.statistics.bootstrap import LEVEL, Interval

# Fewer examples than these, all to one side, cannot give McNemar's test p < 0.05: 2 / 2**6 < 0.05.
_FEWEST = 6


def mcnemar(gained: int, lost: int) -> float:
    """Return the p-value of McNemar's exact two-sided test that two models are right equally often.

    The examples that one model alone has right are a fair coin's throws under the hypothesis; the
    p-value is that of the binomial test (McNemar 1947, in its exact form).

    **Arguments:**

    - `gained`, `lost`: examples that the second model alone, or the first alone, has right.
    """
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def tango_interval(gained: int, lost: int, examples: int, level: float = LEVEL) -> Interval:
    """Return Tango's score interval of the difference of two paired shares (1998).

    It holds the differences d that the score test does not refuse, whose standard error is that of
    the most likely shares with the difference d; for d = 0 that is McNemar's asymptotic test.

    **Arguments:**

    - `gained`, `lost`: examples that the second model alone, or the first alone, has right.
    - `examples`: how many there are.

    **Returns:** the interval of the second share minus the first, within [-1, 1].
    """
    from scipy.optimize import brentq

    z = NormalDist().inv_cdf((1 + level) / 2)

    def score(d: float) -> float:
        """Distance of the counts from a difference of `d`, in standard errors, minus z."""
        b = -gained - lost + (2 * examples - gained + lost) * d
        c = -lost * d * (1 - d)
        share = (math.sqrt(max(0.0, b**2 - 8 * examples * c)) - b) / (4 * examples)
        error = math.sqrt(max(0.0, examples * (2 * share + d * (1 - d))))
        far = gained - lost - examples * d
        return abs(far) - z * error

    # Without a changed example the score is zero at the center too, which is not the end sought.
    center, beside = (gained - lost) / examples, 1e-9
    low = -1.0 if score(-1.0) <= 0 else float(brentq(score, -1.0, center - beside))
    high = 1.0 if score(1.0) <= 0 else float(brentq(score, center + beside, 1.0))
    return Interval(low, high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values (1979): valid together, however the tests depend on another.

    The i-th smallest of m p-values is multiplied by m - i + 1; none may fall below a smaller one's.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def smallest_share(examples: int) -> float:
    """Return the smallest difference that McNemar's test finds at 5%, in percentage points.

    It needs six examples that one model alone has right.
    """
    return 100.0 * _FEWEST / examples
