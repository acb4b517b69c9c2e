"""Tests of a difference between two models, and of many differences at once."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool

# Fewer examples than these, all to one side, cannot give McNemar's test p < 0.05: 2 / 2**6 < 0.05.
_FEWEST = 6


def mcnemar(first: Bool[np.ndarray, " examples"], second: Bool[np.ndarray, " examples"]) -> float:
    """McNemar's exact two-sided test that two models are right equally often.

    The examples that one model alone has right are a fair coin's throws under the hypothesis; the
    p-value is that of the binomial test (McNemar 1947, in its exact form).

    Args:
        first, second: whether each example is right, in the same order.
    """
    from scipy.special import bdtr

    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): valid together, however the tests depend on each other.

    The i-th smallest of m p-values is multiplied by m - i + 1; none may fall below a smaller one's.
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def smallest_difference(
    standard_error: float,
    *,
    freedom: float | None = None,
    examples: int | None = None,
    level: float = 0.95,
    power: float = 0.80,
) -> float:
    """The minimum detectable effect: the true difference that such a sample would show.

    (z[(1 + level) / 2] + z[power]) times the standard error: a difference of this size has the
    chance `power` of an interval without zero.

    Args:
        standard_error: of the paired difference, in percentage points.
        freedom: degrees of freedom of the t distribution that takes the normal one's place where
            the error comes from a few seeds.
        examples: how many there are, where McNemar's test decides: it needs six that one model
            alone has right.

    Returns:
        Percentage points.
    """
    if freedom is None:
        normal = NormalDist()
        effect = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    else:
        from scipy.special import stdtrit

        effect = float(stdtrit(freedom, (1 + level) / 2) + stdtrit(freedom, power))
    least = 100.0 * _FEWEST / examples if examples else 0.0
    return min(100.0, max(least, effect * standard_error))
