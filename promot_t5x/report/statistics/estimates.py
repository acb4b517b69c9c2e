"""Numbers computed from examples, together with what resampling says about them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64

from promot_t5x.report.statistics import bootstrap
from promot_t5x.report.statistics.bootstrap import Interval
from promot_t5x.tasks.metrics import MeanOfExamples, Metric, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score, or a combination of scores.

    **Attributes:**

    - `value`: in percent.
    - `samples`: the same of each resample [resamples]. Those of one task are paired; those of
      different tasks are independent.
    - `left_out`: for each task that it rests on, the value with each example left out [examples].
    - `extreme`: its interval where resampling cannot tell, because all examples are alike.
    """

    value: float
    samples: Float64[np.ndarray, " resamples"]
    left_out: Mapping[str, Float64[np.ndarray, " _"]]
    extreme: Interval | None = None

    @functools.cached_property
    def interval(self) -> Interval:
        """95%, BCa."""
        if self.extreme is not None:
            return self.extreme
        return bootstrap.bca_interval(self.value, self.samples, list(self.left_out.values()))

    @functools.cached_property
    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the value is zero; see `bootstrap.p_value`."""
        return bootstrap.p_value(self.value, self.samples)

    @functools.cached_property
    def standard_error(self) -> float:
        """Standard deviation of the resampled values."""
        return float(self.samples.std())

    def __sub__(self, other: "Estimate") -> "Estimate":
        return combine([1.0, -1.0], [self, other])


def combine(weights: Sequence[float], estimates: Sequence[Estimate]) -> Estimate:
    """The weighted sum of estimates: paired within tasks, independent across them."""
    tasks = dict.fromkeys(task for estimate in estimates for task in estimate.left_out)
    shares = np.array(weights)
    return Estimate(
        value=float(shares @ [estimate.value for estimate in estimates]),
        samples=shares @ np.stack([estimate.samples for estimate in estimates]),
        left_out={
            task: sum(
                (
                    w * e.left_out.get(task, np.array([e.value]))
                    for w, e in zip(weights, estimates, strict=True)
                ),
                start=np.zeros(1),
            )
            for task in tasks
        },
    )


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean: over the tasks of a suite, or over the seeds of a method."""
    if len(estimates) == 1:
        return estimates[0]
    return combine([1 / len(estimates)] * len(estimates), estimates)


def of_task(
    task: str,
    scored: Sequence[tuple[Metric, Float64[np.ndarray, "models examples _"]]],
    *,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> list[dict[str, Estimate]]:
    """Every score of every model on one task, all resampled with the same draws.

    Args:
        task: its name; with `seed` it decides the draws.
        scored: the task's metrics, each with its `example_statistics` of each model; the examples
            in the same order everywhere.
    """
    models, examples, _ = scored[0][1].shape
    columns = np.concatenate([np.concatenate(list(rows), axis=-1) for _, rows in scored], axis=-1)
    drawn = bootstrap.resampled_sums(columns, bootstrap.generator(seed, task), resamples)
    made: list[dict[str, Estimate]] = [{} for _ in range(models)]
    start = 0
    for metric, statistics in scored:
        k = statistics.shape[-1]
        stop = start + models * k
        samples = metric.value(drawn[:, start:stop].reshape(resamples, models, k))
        start = stop
        sums = np.stack([total(rows) for rows in statistics])
        values = metric.value(sums)
        # One example alone leaves nothing when it is left out.
        left_out = metric.value(sums[:, None] - statistics if examples > 1 else sums[:, None])
        for model in range(models):
            for name in metric.scores:
                value = float(values[name][model])
                made[model][name] = Estimate(
                    value=value,
                    samples=samples[name][:, model],
                    left_out={task: left_out[name][model]},
                    extreme=_extreme(metric, value, examples),
                )
    return made


def _extreme(metric: Metric, value: float, examples: int) -> Interval | None:
    if isinstance(metric, MeanOfExamples) and value in (0.0, 100.0):
        return bootstrap.extreme_interval(examples, all_right=value == 100.0)
    return None


def fixed(value: float, task: str, resamples: int = bootstrap.RESAMPLES) -> Estimate:
    """A number that cannot be computed again from resamples: its interval is NaN."""
    return Estimate(
        value=value, samples=np.full(resamples, np.nan), left_out={task: np.array([value])}
    )
