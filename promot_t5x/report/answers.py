"""One model's answers to one task, read back from where an evaluation left them."""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float64, Int

from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.report import own_metrics
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.metrics import MeanOfExamples, Metric

_KEPT = ("id", "target", "prediction", "score")
_ROUNDING = 1e-6  # percent; a score computed again may differ by this from the one on file


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskAnswers:
    """The records of one task at one step, in the order of their ids, and their summary.

    Of a record only `_KEPT` is kept, and a hash of the question: the questions of one model to
    the whole suite take hundreds of megabytes. `texts` reads them again.

    **Attributes:**

    - `path`: of the summary.
    - `summary`: its content.
    - `records`: one per example, sorted by id.
    - `asked`: a number for each question; equal texts have equal numbers, in one process.
    - `places`: of each record, the number of its line in the file, from 0.
    """

    path: epath.Path
    summary: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    asked: Sequence[int]
    places: Sequence[int]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.summary["task"])

    @property
    def split(self) -> str:
        """The split of the data that was evaluated; empty where the summary does not say."""
        return self.summary.get("split") or ""

    @property
    def primary(self) -> str | None:
        """The name of the score that tables show; None for a task without metrics."""
        primary: str | None = self.summary["primary"]
        return primary

    @property
    def score(self) -> float:
        """The primary score, in percent."""
        return self.summary["metrics"][self.primary] if self.primary else float("nan")

    @functools.cached_property
    def ids(self) -> list[str]:
        """The ids of the examples, sorted."""
        return [str(record["id"]) for record in self.records]

    @functools.cached_property
    def questions(self) -> Int[np.ndarray, " examples"] | None:
        """The number of each example's question, from 0; None where all questions differ.

        A data set may hold a question several times, under several ids.
        """
        numbers = {asked: n for n, asked in enumerate(dict.fromkeys(self.asked))}
        if len(numbers) == len(self.asked):
            return None
        return np.array([numbers[asked] for asked in self.asked])

    @property
    def distinct(self) -> int:
        """The number of different questions."""
        return len(set(self.asked))

    @functools.cached_property
    def answers(self) -> list[str]:
        """The post-processed answers, as text."""
        return [task_metrics.answer_text(record["prediction"]) for record in self.records]

    def texts(self, indices: Iterable[int]) -> dict[int, str]:
        """Return the texts of the questions of these records, by index."""
        wanted = {self.places[index]: index for index in indices}
        with self.path.with_suffix(".jsonl").open("r") as file:
            return {
                wanted[place]: str(json.loads(line).get("inputs", ""))
                for place, line in enumerate(file)
                if place in wanted
            }

    @functools.cached_property
    def metrics(self) -> list[Metric]:
        """The task's metrics that are functions of sums; a user's own may not be."""
        made = own_metrics.load(self.summary)
        return [metric for metric in made if isinstance(metric, Metric)]

    @functools.cached_property
    def statistics(self) -> list[Float64[np.ndarray, "examples k"]]:
        """The rows of the examples for each of `metrics`.

        **Raises:** `UserError` where the records do not give the scores of the summary.
        """
        targets = [record["target"] for record in self.records]
        predictions = [record["prediction"] for record in self.records]
        rows = [metric.example_statistics(targets, predictions) for metric in self.metrics]
        for metric, made in zip(self.metrics, rows, strict=True):
            for name, value in metric.value(task_metrics.total(made)).items():
                written = self.summary["metrics"].get(name, math.nan)
                if not abs(float(value) - written) <= _ROUNDING:
                    raise UserError(
                        f"{self.path} says {name} {written}, but its records give {float(value)}: "
                        "one of the two files has been changed, or another version of this "
                        "package wrote them. Evaluate again."
                    )
        return rows

    @functools.cached_property
    def example_scores(self) -> Float64[np.ndarray, " examples"]:
        """Each example alone by the primary metric, in percent; NaN where none can be had."""
        for metric, rows in zip(self.metrics, self.statistics, strict=True):
            if metric.scores[0] == self.primary:
                return metric.example_score(rows)
        scores = [record.get("score") for record in self.records]
        return np.array([math.nan if score is None else score for score in scores], np.float64)

    @property
    def is_mean(self) -> bool:
        """Whether the primary score is the mean of the examples' own scores.

        Of a user's own function this is found out: its value on all examples is then the mean of
        its values on each.
        """
        for metric in self.metrics:
            if metric.scores[0] == self.primary:
                return isinstance(metric, MeanOfExamples)
        return bool(abs(self.example_scores.mean() - self.score) <= _ROUNDING)

    @property
    def right(self) -> Bool[np.ndarray, " examples"] | None:
        """Whether each example is right, where the primary score counts just that."""
        if not self.is_mean or not np.isin(self.example_scores, (0.0, 100.0)).all():
            return None
        right: np.ndarray = self.example_scores == 100.0
        return right


@dataclasses.dataclass(frozen=True)
class MeanOfRecorded(MeanOfExamples):
    """The mean of scores that are given for each example, in the place of predictions."""

    name: str

    @property
    def scores(self) -> tuple[str, ...]:
        """The name of the score."""
        return (self.name,)

    def shares(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Return the scores, which are percents, as shares."""
        return [(score / 100,) for score in predictions]


def found(directory: epath.Path) -> dict[str, dict[int, epath.Path]]:
    """Return the summaries in a directory's `inference_eval/`, by task and step."""
    summaries: dict[str, dict[int, epath.Path]] = {}
    home = directory / records.DIRECTORY
    for recorded in records.find(home) if home.is_dir() else ():
        summaries.setdefault(recorded.task, {})[recorded.step] = recorded.path
    return summaries


def recorded_score(path: epath.Path) -> float:
    """Return the primary score that a summary has; NaN where it has none."""
    summary = json.loads(path.read_text())
    return summary["metrics"][summary["primary"]] if summary["primary"] else math.nan


def read(path: epath.Path) -> TaskAnswers:
    """Return the answers of which `path` is the summary.

    **Raises:** `UserError` where they are damaged or not whole.
    """
    try:
        summary = json.loads(path.read_text())
        examples = summary["examples"]
        for key in ("task", "metrics", "primary", "metric_specs"):
            summary[key]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not the summary of an evaluation ({type(error).__name__}: {error}). "
            "Evaluate again."
        ) from error
    lines = path.with_suffix(".jsonl")
    found = []
    for place, record in enumerate(_lines(path)):
        kept = {name: record[name] for name in _KEPT if name in record}
        asked = hash(record.get("inputs", f"the question of {record['id']}"))
        found.append((str(record["id"]), kept, asked, place))
    if len(found) != examples:
        raise UserError(
            f"{lines} has {len(found):,} whole records, but its summary {path.name} speaks of "
            f"{examples:,}: the evaluation was cut short or a file was changed. Evaluate again."
        )
    found.sort(key=lambda each: each[0])
    for (one, *_), (other, *_) in itertools.pairwise(found):
        if one == other:
            raise UserError(f"{lines} answers the example {one!r} more than once.")
    return TaskAnswers(
        path=path,
        summary=summary,
        records=[kept for _, kept, _, _ in found],
        asked=[asked for _, _, asked, _ in found],
        places=[place for _, _, _, place in found],
    )


def _lines(summary: epath.Path) -> Iterator[dict[str, Any]]:
    """Yield the records beside a summary; a last line that a kill cut short is dropped.

    **Raises:** `UserError` for a line that is damaged.
    """
    path = summary.with_suffix(".jsonl")
    if not path.exists():
        raise UserError(f"{summary} is there, but not its records, {path.name}. Evaluate again.")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                for name in ("id", "target", "prediction"):
                    record[name]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}, is no record of an evaluation "
                    f"({type(error).__name__}: {error}). Evaluate again."
                ) from error
            yield record
