"""Metrics: functions of targets and predictions that return percentages by name.

All take two lists of equal length, targets first, and return `{name: percent}` with percent
in [0, 100]. A target is a string, or a list of strings of which any is right. Empty
predictions are scored, never dropped; empty lists are an error. Answers are compared as they
come: a task's post-processing has cut them before.

Metrics with a module of their own: `exact_match` (normalised questions and answers), `bleu`,
`rouge`.
"""

import collections
import math
import string
from collections.abc import Callable, Iterable, Mapping, Sequence

References = str | list[str]


def accuracy(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that equal their label, case-sensitively."""
    return {"accuracy": _share_right(targets, predictions)}


def exact_match(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """Share of whole answers that equal a target, surrounding white space aside."""
    return {"exact_match": _share_right(targets, [p.strip() for p in predictions])}


def macro_f1(labels: Sequence[str]) -> Callable[..., dict[str, float]]:
    """A metric: F1 of each class, averaged over the classes; SuperGLUE's second score for CB.

    A prediction that is none of the labels counts against the class that it should have been
    and for none. Classes that occur neither as target nor as prediction are left out, so that
    perfect answers score 100 on any subset of the data.
    """
    known = tuple(labels)

    def macro_f1(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        check(targets, predictions)
        if strange := sorted({str(target) for target in targets if target not in known}):
            raise ValueError(f"targets {strange} are none of the labels {list(known)}")
        right = collections.Counter(t for t, p in zip(targets, predictions, strict=True) if t == p)
        asked, answered = collections.Counter(targets), collections.Counter(predictions)
        # F1 = 2 TP / (2 TP + FP + FN), and its denominator is targets + predictions.
        return {
            "macro_f1": mean_percent(
                2.0 * right[label] / (asked[label] + answered[label])
                for label in known
                if asked[label] + answered[label]
            )
        }

    return macro_f1


def norm_avg(scores: Mapping[str, float]) -> float:
    """The paper's "Norm. Avg.": the plain mean of the tasks' primary scores, all in percent.

    Args:
        scores: by task; the paper's eight, or any other number of tasks.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("no scores to average")
    return math.fsum(scores.values()) / len(scores)


def format_share(predictions: Sequence[str], words: Sequence[str] = ("True", "False")) -> float:
    """Percent of predictions of any task whose first word is one of `words`.

    The measure of format specialisation: how often a model answers, whatever it is asked,
    with the words of the task that it was fine-tuned on (arXiv 2211.00635, figure 2).
    """
    known = frozenset(words)
    return mean_percent(first_word(p) in known for p in predictions)


def first_word(text: str) -> str:
    """The first word of `text` without punctuation around it; empty if there is none."""
    words = text.split(maxsplit=1)
    return words[0].strip(string.punctuation) if words else ""


def references(target: References) -> list[str]:
    """The answers of which any is right."""
    return [target] if isinstance(target, str) else list(target)


def check(targets: Sequence[References], predictions: Sequence[str]) -> None:
    """Raise `ValueError` unless both lists have the same length, and it is not 0;
    nor may a list of references be empty."""
    if len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
    if not len(predictions):
        raise ValueError("no predictions to score")
    if any(not len(target) for target in targets if not isinstance(target, str)):
        raise ValueError("a target has an empty list of references")


def mean_percent(shares: Iterable[float | int]) -> float:
    """100 times the mean of numbers in [0, 1], summed exactly."""
    listed = list(shares)
    if not listed:
        raise ValueError("no predictions to score")
    return 100.0 * math.fsum(listed) / len(listed)


def _share_right(targets: Sequence[References], predictions: Sequence[str]) -> float:
    check(targets, predictions)
    return mean_percent(p in references(t) for t, p in zip(targets, predictions, strict=True))
