"""Metrics: functions of targets and predictions that return percentages by name.

All take two lists of equal length, targets first, and return `{name: percent}` with percent
in [0, 100]. A target is a string, or a list of strings of which any is right. Empty
predictions are scored, never dropped.
"""

import string
from collections.abc import Callable, Sequence

References = str | list[str]


def accuracy(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """Share of predictions that equal their label, case-sensitively."""
    return {"accuracy": _share_right(targets, predictions)}


def exact_match(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """Share of whole answers that equal a target, surrounding white space aside."""
    return {"exact_match": _share_right(targets, [p.strip() for p in predictions])}


def unmatched(labels: Sequence[str]) -> Callable[..., dict[str, float]]:
    """A metric: the share of predictions that are none of `labels` (and so are wrong)."""
    known = frozenset(labels)

    def unmatched(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
        _check(targets, predictions)
        return {"unmatched": _percent([p not in known for p in predictions])}

    return unmatched


def format_share(predictions: Sequence[str], words: Sequence[str] = ("True", "False")) -> float:
    """Percent of predictions of any task whose first word is one of `words`.

    The measure of format specialisation: how often a model answers, whatever it is asked,
    with the words of the task that it was fine-tuned on (arXiv 2211.00635, figure 2).
    """
    known = frozenset(words)
    return _percent([first_word(p) in known for p in predictions])


def first_word(text: str) -> str:
    """The first word of `text` without punctuation around it; empty if there is none."""
    words = text.split(maxsplit=1)
    return words[0].strip(string.punctuation) if words else ""


def _share_right(targets: Sequence[References], predictions: Sequence[str]) -> float:
    _check(targets, predictions)
    return _percent([_right(t, p) for t, p in zip(targets, predictions, strict=True)])


def _right(target: References, prediction: str) -> bool:
    return prediction in ([target] if isinstance(target, str) else target)


def _percent(hits: Sequence[bool]) -> float:
    if not hits:
        raise ValueError("no predictions to score")
    return 100.0 * sum(hits) / len(hits)


def _check(targets: Sequence[References], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(f"{len(targets)} targets but {len(predictions)} predictions")
