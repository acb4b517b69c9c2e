"""Scores of single runs on single tasks, together with what resampling says about them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int

from promot_t5x.report.statistics import bootstrap
from promot_t5x.report.statistics.bootstrap import Interval
from promot_t5x.tasks.metrics import MeanOfExamples, Metric, total


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreEstimate:
    """The score of one run on one task.

    **Attributes:**

    - `value`: in percent.
    - `samples`: the same number of each resample [resamples], paired with other runs' on the task;
      NaN where the score cannot be computed from resamples.
    - `influence`: of each question on the value, in percent; the squares sum to the jackknife's
      variance of the value.
    - `extreme`: the interval of a score for which all questions count fully or not at all.
    """

    value: float
    samples: Float64[np.ndarray, " resamples"]
    influence: Float64[np.ndarray, " questions"]
    extreme: Interval | None = None


def mean_interval(estimates: Sequence[ScoreEstimate]) -> Interval:
    """Return the 95% interval of the mean over runs of one task's scores, about its questions.

    BCa, or Clopper and Pearson's where all runs are at the same end.
    """
    first = estimates[0].extreme
    if first is not None and all(estimate.extreme == first for estimate in estimates):
        return first
    return bootstrap.bca_interval(
        float(np.mean([estimate.value for estimate in estimates])),
        np.mean([estimate.samples for estimate in estimates], axis=0),
        np.mean([estimate.influence for estimate in estimates], axis=0),
    )


def of_task(
    task: str,
    scored: Sequence[tuple[Metric, Float64[np.ndarray, "models examples _"]]],
    *,
    questions: Int[np.ndarray, " examples"] | None = None,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> list[dict[str, ScoreEstimate]]:
    """Return every score of every model on one task, all resampled with the same draws.

    **Arguments:**

    - `task`: its name; with `seed` it decides the draws.
    - `scored`: the task's metrics, each with its `example_statistics` of each model; the examples
      in the same order everywhere.
    - `questions`: the number of each example's question, from 0 without gaps. Examples that share
      a question are resampled together. By default every example has a question of its own.
    - `resamples`: of the bootstrap.
    """
    models = len(scored[0][1])
    if questions is not None:
        scored = [(metric, _summed(statistics, questions)) for metric, statistics in scored]
    examples = scored[0][1].shape[1]
    columns = np.concatenate([np.concatenate(list(rows), axis=-1) for _, rows in scored], axis=-1)
    drawn = bootstrap.resampled_sums(columns, bootstrap.generator(seed, task), resamples)
    made: list[dict[str, ScoreEstimate]] = [{} for _ in range(models)]
    start = 0
    for metric, statistics in scored:
        k = statistics.shape[-1]
        stop = start + models * k
        samples = metric.value(drawn[:, start:stop].reshape(resamples, models, k))
        start = stop
        sums = np.stack([total(rows) for rows in statistics])
        values = metric.value(sums)
        # One question alone leaves nothing when it is left out.
        left_out = metric.value(sums[:, None] - statistics if examples > 1 else sums[:, None])
        for model in range(models):
            for name in metric.scores:
                value = float(values[name][model])
                left = left_out[name][model]
                made[model][name] = ScoreEstimate(
                    value=value,
                    samples=samples[name][:, model],
                    influence=(left.mean() - left) * math.sqrt((examples - 1) / examples),
                    extreme=_extreme(metric, value, examples),
                )
    return made


def fixed(value: float, questions: int, resamples: int = bootstrap.RESAMPLES) -> ScoreEstimate:
    """Return a score that cannot be computed again from resamples: its interval is NaN."""
    return ScoreEstimate(
        value=value, samples=np.full(resamples, np.nan), influence=np.full(questions, np.nan)
    )


def _summed(
    statistics: Float64[np.ndarray, "models examples k"], questions: Int[np.ndarray, " examples"]
) -> Float64[np.ndarray, "models questions k"]:
    summed = np.zeros((len(statistics), int(questions.max()) + 1, statistics.shape[-1]))
    for model, rows in zip(summed, statistics, strict=True):
        np.add.at(model, questions, rows)
    return summed


def _extreme(metric: Metric, value: float, examples: int) -> Interval | None:
    if isinstance(metric, MeanOfExamples) and value in (0.0, 100.0):
        return bootstrap.extreme_interval(examples, all_right=value == 100.0)
    return None
