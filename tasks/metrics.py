"""Metrics: what a task's answers are worth, in percent, and what that rests on.

A metric is called with two lists of equal length, targets first, and returns `{name: percent}`,
the primary score first, percent in [0, 100]. A target is a string, or a list of strings of which
any is right. Empty predictions are scored, never dropped; empty lists are an error. Answers are
compared as they come: a task's post-processing has cut them before.

Every score is a function of sums over the examples. A `Metric` has both halves,
`example_statistics` and `value`, and its call is nothing but the one after the other. So a
bootstrap resamples rows of numbers instead of scoring texts again (`report.statistics`), and
from `spec` and the answers on file a score can be computed again without model or data.

Metrics with a module of their own: `exact_match` (normalized questions and answers), `bleu`,
`chrf`, `rouge`, `extracted` (what regular expressions find), `ranking` (choices by likelihood) and
`perplexity`.
"""

import abc
import dataclasses
import importlib
import math
import operator
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64

from promot_t5x.errors import UserError, did_you_mean

References = str | list[str]
# metric(targets, predictions) -> {metric name: percent in [0, 100]}
AnyMetric = Callable[[Sequence[Any], Sequence[Any]], Mapping[str, float]]

# What specs name -> what makes the metric of the settings beside the name.
_REGISTERED = {
    "accuracy": "promot_t5x.tasks.metrics:Accuracy",
    "exact_match": "promot_t5x.tasks.metrics:ExactMatch",
    "macro_f1": "promot_t5x.tasks.metrics:macro_f1",
    "short_answers": "promot_t5x.tasks.exact_match:ShortAnswers",
    "bleu": "promot_t5x.tasks.bleu:Bleu",
    "chrf": "promot_t5x.tasks.chrf:Chrf",
    "rouge": "promot_t5x.tasks.rouge:Rouge",
    "perplexity": "promot_t5x.tasks.perplexity:Perplexity",
    "multiple_choice": "promot_t5x.tasks.ranking:MultipleChoice",
    "continuation": "promot_t5x.tasks.ranking:Continuation",
    "extracted": "promot_t5x.tasks.extracted:Extracted",
}


# Larger arrays (images, sound) that a metric returns are described and not kept.
_MOST_VALUES = 10_000


class Metric(abc.ABC):
    """A metric that computes its scores from sums over the examples.

    A subclass is a frozen dataclass; its fields are its settings, and JSON can hold them.

    **Attributes:**

    - `registered`: the name that specs of it have; None for a metric that is not this package's.
    """

    registered: ClassVar[str | None] = None

    @property
    @abc.abstractmethod
    def scores(self) -> tuple[str, ...]:
        """Names of the scores, the primary one first."""

    @abc.abstractmethod
    def example_statistics(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Float64[np.ndarray, "examples k"]:
        """One row an example; the sum of the rows is all that `value` needs.

        **Raises:**

        - `ValueError`: lists that are empty or of unequal length.
        """

    @abc.abstractmethod
    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Every score, in percent, of summed statistics; of many samples at once if wanted."""

    def example_score(self, statistics: Float64[np.ndarray, "*b k"]) -> Float64[np.ndarray, "*b"]:
        """Return the primary score of each example alone, in percent."""
        return self.value(statistics)[self.scores[0]]

    def check_ready(self) -> None:
        """Raise `UserError` where something that the metric needs is not installed."""
        return

    def warnings(self, targets: Sequence[Any]) -> list[str]:
        """Say what of these targets the metric cannot judge; an empty list where all is well."""
        del targets
        return []

    def __call__(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        """Every score of these answers, in percent."""
        sums = total(self.example_statistics(targets, predictions))
        return {name: float(value) for name, value in self.value(sums).items()}

    def spec(self) -> dict[str, Any]:
        """Return what `from_spec` makes this metric of again, as JSON can hold it."""
        settings = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]  # see the class
        }
        if self.registered is None:
            kind = type(self)
            return {"module": kind.__module__, "function": kind.__qualname__, "settings": settings}
        return {"metric": self.registered, **settings}


class MeanOfExamples(Metric):
    """A metric whose every score is the mean of the examples' own scores."""

    @abc.abstractmethod
    def shares(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Of each example its scores, in [0, 1], in the order of `scores`."""

    def example_statistics(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Float64[np.ndarray, "examples k"]:
        """Return the example's scores, and 1 to count it."""
        check(targets, predictions)
        rows = [(*map(float, shares), 1.0) for shares in self.shares(targets, predictions)]
        return np.array(rows, np.float64)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Means, in percent."""
        means = 100.0 * sums[..., :-1] / sums[..., -1:]
        return {name: means[..., i] for i, name in enumerate(self.scores)}


@dataclasses.dataclass(frozen=True)
class Accuracy(MeanOfExamples):
    """Share of predictions that equal their label, letter for letter but for space around it."""

    registered = "accuracy"
    scores = ("accuracy",)

    def shares(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Iterable[Sequence[float]]:
        """Whether each prediction is right."""
        for target, prediction in zip(targets, predictions, strict=True):
            yield (_stripped(prediction) in map(_stripped, references(target)),)


@dataclasses.dataclass(frozen=True)
class ExactMatch(MeanOfExamples):
    """Share of whole answers that equal a target, surrounding white space aside."""

    registered = "exact_match"
    scores = ("exact_match",)

    def shares(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Iterable[Sequence[float]]:
        """Whether each answer is right."""
        for target, prediction in zip(targets, predictions, strict=True):
            yield (_stripped(prediction) in map(_stripped, references(target)),)


@dataclasses.dataclass(frozen=True)
class MacroF1(Metric):
    """F1 of each class, averaged over the classes; SuperGLUE's second score for CB.

    A prediction that is none of the labels counts against the class that it should have been
    and for none. Classes that occur neither as target nor as prediction are left out, so that
    perfect answers score 100 on any subset of the data.

    **Attributes:**

    - `labels`: the classes.
    """

    labels: tuple[str, ...]
    registered = "macro_f1"
    scores = ("macro_f1",)

    def example_statistics(
        self, targets: Sequence[str], predictions: Sequence[str]
    ) -> Float64[np.ndarray, "examples k"]:
        """For each class in turn: is it right, is it the target, is it the answer."""
        check(targets, predictions)
        targets, predictions = (list(map(_stripped, each)) for each in (targets, predictions))
        if strange := sorted({str(target) for target in targets if target not in self.labels}):
            raise ValueError(f"targets {strange} are none of the labels {list(self.labels)}")
        asked = np.array([[t == label for label in self.labels] for t in targets], np.float64)
        said = np.array([[p == label for label in self.labels] for p in predictions], np.float64)
        return np.concatenate([asked * said, asked, said], axis=-1)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Return the mean over the classes that occur, in percent."""
        right, asked, said = np.split(sums, 3, axis=-1)
        # F1 = 2 TP / (2 TP + FP + FN), and its denominator is targets + predictions.
        seen = asked + said
        f1 = 2.0 * right / np.where(seen > 0, seen, 1.0)
        return {"macro_f1": np.asarray(100.0 * f1.sum(axis=-1) / (seen > 0).sum(axis=-1))}


accuracy = Accuracy()
exact_match = ExactMatch()


def macro_f1(labels: Sequence[str]) -> MacroF1:
    """Return the metric of these classes."""
    return MacroF1(tuple(labels))


def total(statistics: Float64[np.ndarray, "examples k"]) -> Float64[np.ndarray, " k"]:
    """Return the sums over the examples, exact and so the same in any order of them."""
    return np.array([math.fsum(column) for column in statistics.T], np.float64)


def spec(metric: AnyMetric) -> dict[str, Any]:
    """How to make `metric` again, as JSON can hold it: `from_spec` reads it.

    A `Metric` has its registered name and its settings, any other function its module and name.
    """
    if isinstance(metric, Metric):
        return metric.spec()
    name = getattr(metric, "__qualname__", None) or repr(metric)
    return {"module": getattr(metric, "__module__", None), "function": name}


def from_spec(spec: Mapping[str, Any]) -> AnyMetric:
    """Return the metric that `spec` describes.

    **Raises:**

    - `UserError`: there is no such metric, or it does not take these settings.
    """
    settings: dict[str, Any] | None
    if "metric" in spec:
        name = spec["metric"]
        if name not in _REGISTERED:
            raise UserError(
                f"there is no metric {name!r}.{did_you_mean(str(name), _REGISTERED)} There are: "
                f"{', '.join(_REGISTERED)}."
            )
        module, _, attribute = _REGISTERED[name].partition(":")
        settings = {key: value for key, value in spec.items() if key != "metric"}
    else:
        module, attribute = str(spec.get("module")), str(spec.get("function"))
        settings = spec.get("settings")
    try:
        found = operator.attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"the metric {attribute} of the module {module} cannot be imported ({error}). Put the "
            "module where Python finds it; a function made inside another one or without a name "
            "(a lambda) cannot be found again."
        ) from error
    if settings is None:
        metric: AnyMetric = found
        return metric
    try:
        metric = found(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"the metric {attribute} does not take {settings}: {error}.") from error
    return metric


def norm_avg(scores: Mapping[str, float]) -> float:
    """Return the paper's "Norm. Avg.": the plain mean of the tasks' primary scores, all in percent.

    **Arguments:**

    - `scores`: by task; the paper's eight, or any other number of tasks.

    **Raises:**

    - `ValueError`: there are no scores.
    """
    if not scores:
        raise ValueError("no scores to average")
    return math.fsum(scores.values()) / len(scores)


def numbers(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
    """Sort what a metric function returned into scores and everything else.

    **Arguments:**

    - `found`: numbers, `seqio.metrics.Scalar`, and whatever else SeqIO takes: `Text`, `Histogram`,
      arrays, lists.

    **Returns:** the numbers by name, and the other values as JSON can hold them.
    """
    scores: dict[str, float] = {}
    others: dict[str, Any] = {}
    for name, given in found.items():
        fields = _fields(given)
        value = fields["value"] if fields.keys() == {"value"} else given
        # Of arrays of any library, one without an axis is a number.
        if isinstance(value, float | int) or (
            hasattr(value, "__array__") and np.ndim(value) == 0 and np.asarray(value).dtype != "O"
        ):
            scores[name] = float(value)
        else:
            others[name] = _as_json(value)
    return scores, others


def _fields(value: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _as_json(value: Any) -> Any:
    if fields := _fields(value):
        kept = {name: _as_json(each) for name, each in fields.items() if each is not None}
        return next(iter(kept.values())) if len(kept) == 1 else kept
    if isinstance(value, Mapping):
        return {str(name): _as_json(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(each) for each in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.size > _MOST_VALUES:
            return f"an array of {array.dtype} of shape {list(array.shape)}"
        return _as_json(array.tolist())
    return value if isinstance(value, str | int | float | None) else repr(value)


def first_word(text: str) -> str:
    """Return the first word of `text` without punctuation around it; empty if there is none."""
    words = text.split(maxsplit=1)
    return words[0].strip(string.punctuation) if words else ""


def answer_text(answer: Any) -> str:
    """Return a target or a prediction as text; of a choice among candidates the chosen one."""
    chosen = answer.get("answer") if isinstance(answer, Mapping) else None
    return str(answer if chosen is None else chosen)


def references(target: References) -> list[str]:
    """Return the answers of which any is right."""
    return [target] if isinstance(target, str) else list(target)


def _stripped(text: Any) -> Any:
    # Metrics of labels may be given integers.
    return text.strip() if isinstance(text, str) else text


def check(targets: Sequence[Any], predictions: Sequence[Any]) -> None:
    """Raise `ValueError` unless both lists are equally long, and not empty.

    A list of references may not be empty either.
    """
    if len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
    if not len(predictions):
        raise ValueError("no predictions to score")
    if any(not target for target in targets if isinstance(target, list)):
        raise ValueError("a target has an empty list of references")


def mean_percent(shares: Iterable[float | int]) -> float:
    """100 times the mean of numbers in [0, 1], summed exactly."""
    listed = list(shares)
    if not listed:
        raise ValueError("no predictions to score")
    return 100.0 * math.fsum(listed) / len(listed)
