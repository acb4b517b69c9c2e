"""The files that an evaluation leaves, and reading them back without a model or TensorFlow.

    <directory>/inference_eval/
      <task>-<step:06>.jsonl    one record per example, in the order of the data
      <task>-<step:06>.json     the summary: scores, how to compute them again, whose answers
      <task>-metrics.jsonl      one line of scores per step
The names are T5X's. The summary is written last: where it is, the task has been answered.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.files import (
    append_json_line,
    keep_until,
    read_json,
    read_json_lines,
    write_atomically,
    write_json_lines,
)
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.metrics import AnyMetric, Metric

DIRECTORY = "inference_eval"
_SUMMARY = re.compile(r"(?P<task>.+)-(?P<step>\d{6,})\.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's scores (the first is the primary one) and one record per example.

    **Attributes:**

    - `split`: the split that was scored.
    - `other_values`: what the metrics return that is no number (texts, histograms).
    - `metric_specs`: what `tasks.metrics.from_spec` makes each metric of again.
    - `counts`: the examples whose prompt lost something, by what it was, and the answers that are
      none of the task's labels.
    - `signatures`: how scores of that name were computed, where a metric can tell (sacreBLEU).
    - `labels`: the answers there are, where the task has few.
    - `answer_words`: what its answers are made of, where those words are its own.
    - `language`: that it is answered in, where its definition says so.
    - `version`: of its definition, where it has one.
    - `shots`: demonstrations before each question; None for a task of SeqIO's registry.
    """

    task: str
    split: str = ""
    metrics: dict[str, float]
    other_values: dict[str, Any] = dataclasses.field(default_factory=dict)
    metric_specs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    records: list[dict[str, Any]]
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    signatures: dict[str, str] = dataclasses.field(default_factory=dict)
    labels: list[str] = dataclasses.field(default_factory=list)
    answer_words: list[str] = dataclasses.field(default_factory=list)
    language: str | None = None
    version: float | None = None
    shots: int | None = None

    @property
    def primary(self) -> str | None:
        """The name of the primary score; None where the task has no metrics."""
        return next(iter(self.metrics), None)

    @property
    def score(self) -> float:
        """The primary score; NaN where the task has no metrics."""
        return next(iter(self.metrics.values()), float("nan"))


def mean_score(results: Sequence[TaskResult]) -> float:
    """Return the plain mean of the tasks' primary scores; NaN if one of them has none."""
    return float(np.mean([result.score for result in results]))


def score_name(primaries: Sequence[str | None]) -> str | None:
    """Return what a mean score is called: its metric, or the metrics that it is the mean of.

    **Arguments:**

    - `primaries`: the name of each task's primary score, None for a task without metrics.
    """
    names = list(dict.fromkeys(name for name in primaries if name is not None))
    if len(primaries) < 2 or not names:
        return names[0] if names else None
    return f"mean {' and '.join(names)} of {len(primaries)} tasks"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun:
    """The weights that answer in an evaluation, and where the results go.

    **Attributes:**

    - `directory`: gets `inference_eval/`.
    - `step`: of the checkpoint, for the names of files.
    - `checkpoint`: its `path`, the `hash` of the model's weights where it is known, and in words
      where they come from, `origin`.
    - `prompt`: `hash` and `origin` of the attached prompt, or none.
    - `selection_split`: by task, the split on whose score the checkpoint was chosen.
    - `config`: the resolved configuration.
    """

    directory: epath.Path
    step: int = 0
    checkpoint: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prompt: Mapping[str, Any] | None = None
    selection_split: Mapping[str, str] = dataclasses.field(default_factory=dict)
    config: str = ""

    @property
    def weights(self) -> dict[str, Any]:
        """The weights as summaries name them, which tells two evaluations apart."""
        prompt = None if self.prompt is None else dict(self.prompt)
        return {"checkpoint": dict(self.checkpoint), "prompt": prompt}


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A task's answers on file: `summary` and `records` read them."""

    path: epath.Path  # of the summary
    task: str
    step: int

    def summary(self) -> dict[str, Any]:
        """Return the summary as it was written."""
        return read_json(self.path, dict[str, Any])

    def records(self) -> list[dict[str, Any]]:
        """Return one record per example, in the order of the data.

        **Raises:** `UserError` where there are not as many as the summary says.
        """
        path = self.path.with_suffix(".jsonl")
        records = read_json_lines(path)
        expected = self.summary()["examples"]
        if len(records) != expected:
            raise UserError(
                f"{path} holds {len(records)} records, but {self.path.name} speaks of {expected}: "
                "a file is damaged or was changed; evaluate again."
            )
        return records

    def result(self) -> TaskResult:
        """Return records and summary as the evaluation had them."""
        summary = self.summary()
        fields = {field.name for field in dataclasses.fields(TaskResult)} - {"records"}
        known = {name: value for name, value in summary.items() if name in fields}
        return TaskResult(**known, records=self.records())


def find(directory: epath.Path) -> Iterator[Recorded]:
    """Yield the tasks answered in a directory, by name and step, wherever their files lie in it.

    **Arguments:**

    - `directory`: of an evaluation, a stage or a whole run; or one summary's file.
    """
    if directory.is_file():
        found = [directory]
    else:
        # rglob of remote paths is slow and of hidden ones needless; these trees are shallow.
        found = [path for path in _files(directory) if path.parent.name == DIRECTORY]
    named = [(match, path) for path in found if (match := _SUMMARY.fullmatch(path.name))]
    for match, path in sorted(
        named, key=lambda pair: (str(pair[1].parent), pair[0]["task"], int(pair[0]["step"]))
    ):
        yield Recorded(path, match["task"], int(match["step"]))


def read(run: EvalRun, task: str) -> Recorded | None:
    """Return a task's answers in the run's directory, if they are there and of the same weights."""
    path = run.directory / DIRECTORY / f"{task}-{run.step:06}.json"
    if not path.exists():
        return None
    recorded = Recorded(path, task, run.step)
    summary = recorded.summary()
    return recorded if {name: summary[name] for name in run.weights} == run.weights else None


def forget_after(directory: epath.Path, step: int) -> None:
    """Drop the summaries of later steps, so that those steps count as not yet evaluated."""
    if (folder := directory / DIRECTORY).exists():
        for path in folder.iterdir():
            match = _SUMMARY.fullmatch(path.name)
            if match and int(match["step"]) > step:
                path.unlink()


def remove_from(directory: epath.Path, step: int) -> None:
    """Remove all that evaluations of a step and of later ones left, as if they had not been."""
    if not (folder := directory / DIRECTORY).exists():
        return
    for path in folder.iterdir():
        match = _SUMMARY.fullmatch(path.name.removesuffix("l"))
        if match and int(match["step"]) >= step:
            path.unlink()
        elif path.name.endswith("-metrics.jsonl"):
            keep_until(path, step - 1)


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if not path.is_dir():
            yield path
        elif not path.name.startswith(("checkpoint_", "compiled_programs", "token_cache")):
            yield from _files(path)


def write(run: EvalRun, results: Sequence[TaskResult], **provenance: Any) -> None:
    """Write records, scores and summaries; whatever of them was there before is replaced.

    **Arguments:**

    - `run`: where they go, and the weights that gave them.
    - `results`: one for each task.
    - `provenance`: what else the summaries say: `seeds`, `versions`, `decoding`, `timings`.
    """
    directory = run.directory / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    for result in results:
        name = f"{result.task}-{run.step:06}"
        write_json_lines(directory / f"{name}.jsonl", result.records)
        history = directory / f"{result.task}-metrics.jsonl"
        # A run that is resumed writes its later steps anew.
        keep_until(history, run.step - 1)
        append_json_line(history, {"step": run.step, **result.metrics})
        summary = {
            "task": result.task,
            "step": run.step,
            "split": result.split,
            "selection_split": run.selection_split.get(result.task),
            "primary": result.primary,
            "metrics": result.metrics,
            "other_values": result.other_values,
            "metric_specs": result.metric_specs,
            "signatures": result.signatures,
            "examples": len(result.records),
            "counts": result.counts,
            "labels": result.labels,
            "answer_words": result.answer_words,
            "language": result.language,
            "version": result.version,
            "shots": result.shots,
            **run.weights,
            "config": run.config,
            **provenance,
        }
        text = json.dumps(summary, indent=1, ensure_ascii=False)
        write_atomically(directory / f"{name}.json", text + "\n")


def example_scores(
    metric: AnyMetric, targets: Sequence[Any], predictions: Sequence[Any]
) -> list[float | None]:
    """Each example's score by itself, in percent; None where the metric makes none of it."""
    if isinstance(metric, Metric):
        scores = metric.example_score(metric.example_statistics(targets, predictions))
        return [float(score) for score in scores]
    return [_alone(metric, t, p) for t, p in zip(targets, predictions, strict=True)]


def _alone(metric: AnyMetric, target: Any, prediction: Any) -> float | None:
    # A user's metric may need more than one example, and fails then in its own way.
    try:
        scores, _ = task_metrics.numbers(metric([target], [prediction]))
    except Exception:
        return None
    score = next(iter(scores.values()), math.nan)
    return score if math.isfinite(score) else None


def recomputed(
    summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Every score of a task, computed again from its records alone.

    **Raises** `UserError` where a metric cannot be found again.
    """
    targets = [record["target"] for record in records]
    predictions = [record["prediction"] for record in records]
    scores: dict[str, float] = {}
    for spec in summary["metric_specs"]:
        metric = task_metrics.from_spec(spec)
        scores |= task_metrics.numbers(metric(targets, predictions))[0]
    return scores
