"""Resampling a task's questions, and the interval that the resamples give.

Scores are functions of sums (`tasks.metrics.Metric`), so one resample of any number of models is
a row of counts times a matrix of numbers, and all resamples are one matrix product. Every model
answers the same questions and is resampled with the same counts.

Intervals are BCa (Efron 1987, *Better bootstrap confidence intervals*): the percentiles of the
resampled scores, corrected for their bias (a resampled BLEU lies below the score itself) and their
skew (a share near 0 or 100). Where that corrects nothing they are the plain percentiles.
"""

import hashlib
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 4_000_000  # counts in memory at a time
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """A confidence interval, ends included."""

    low: float
    high: float


def generator(seed: int, name: str) -> np.random.Generator:
    """Return random numbers that depend on the seed and on the name of what is resampled alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8])])


def resampled_sums(
    statistics: Float64[np.ndarray, "examples k"],
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "resamples k"]:
    """Return sums of as many rows as there are, drawn with replacement, `resamples` times."""
    examples = len(statistics)
    chunk = max(1, _AT_ONCE // examples)
    sums = np.empty((resamples, statistics.shape[1]))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(examples, size=(rows, examples), dtype=np.int32)
        counts = np.empty((rows, examples))
        for row, indices in zip(counts, drawn, strict=True):
            row[:] = np.bincount(indices, minlength=examples)
        sums[start : start + rows] = counts @ statistics
    return sums


def bca_interval(
    estimate: float,
    samples: Float64[np.ndarray, " resamples"],
    influence: Float64[np.ndarray, " examples"],
    level: float = LEVEL,
) -> Interval:
    """Return the BCa interval of an estimate.

    **Arguments:**

    - `estimate`: the number itself.
    - `samples`: the same number computed from each resample.
    - `influence`: of each example on the estimate, up to a common factor.
    - `level`: of confidence.
    """
    if np.isnan(samples).any():
        return Interval(math.nan, math.nan)
    if (samples == samples[0]).all():
        return Interval(float(samples[0]), float(samples[0]))
    # Scores are often discrete: half of the resamples that equal the estimate count as below.
    below = ((samples < estimate).mean() + (samples <= estimate).mean()) / 2
    bias = _NORMAL.inv_cdf(min(max(below, 0.5 / len(samples)), 1 - 0.5 / len(samples)))
    squares = float((influence**2).sum())
    skew = float((influence**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    shares = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + _NORMAL.inv_cdf(tail)
        shares.append(_NORMAL.cdf(bias + z / (1 - skew * z)))
    low, high = np.quantile(samples, shares)
    return Interval(float(low), float(high))


def extreme_interval(examples: int, *, all_right: bool, level: float = LEVEL) -> Interval:
    """Return Clopper and Pearson's interval of a share, in percent, where all or no examples count.

    A bootstrap finds no spread there. The interval also holds for the mean of any values in
    [0, 1] of which all are 1, or all 0: such a mean is no further from its end than the share.
    """
    far = 100.0 * ((1 - level) / 2) ** (1 / examples)
    return Interval(far, 100.0) if all_right else Interval(0.0, 100.0 - far)
