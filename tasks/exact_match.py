"""Exact match and F1 of short answers, normalised as TriviaQA and as SQuAD do it.

Both lower the case, drop the articles a, an, the and squeeze white space, but TriviaQA puts a
space where punctuation was and SQuAD nothing: "Beatles-Band" is "beatles band" to the one and
"beatlesband" to the other. The closed-book literature, T5's among it, scores TriviaQA with the
first and WebQuestions with the second.

An answer is compared with every reference, and the best comparison counts. A blank answer is
never right, though an alias of nothing but articles or punctuation ("The The", "?") is blank
too when normalised: any answer that is not blank as decoded may match that.
"""

import collections
import re
import string
from collections.abc import Callable, Sequence

from promot_t5x.tasks.metrics import References, check, mean_percent, references

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TRIVIA_QA = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_SQUAD = str.maketrans(dict.fromkeys(string.punctuation))


def trivia_qa(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """`{"exact_match", "f1"}` with TriviaQA's normalisation, in percent."""
    return _scores(targets, predictions, normalise_trivia_qa)


def squad(targets: Sequence[References], predictions: Sequence[str]) -> dict[str, float]:
    """`{"exact_match", "f1"}` with SQuAD's normalisation, in percent."""
    return _scores(targets, predictions, normalise_squad)


def normalise_trivia_qa(text: str) -> str:
    """Lower case, punctuation to spaces, no articles, single spaces."""
    return _squeeze(text.lower().translate(_TRIVIA_QA))


def normalise_squad(text: str) -> str:
    """Lower case, punctuation deleted, no articles, single spaces."""
    return _squeeze(text.lower().translate(_SQUAD))


def _squeeze(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def _scores(
    targets: Sequence[References], predictions: Sequence[str], normalise: Callable[[str], str]
) -> dict[str, float]:
    check(targets, predictions)
    exact, overlap = [], []
    for target, prediction in zip(targets, predictions, strict=True):
        answer = normalise(prediction)
        wanted = [normalise(reference) for reference in references(target)]
        blank = not prediction.strip()
        exact.append(not blank and answer in wanted)
        overlap.append(0.0 if blank else max((_f1(each, answer) for each in wanted), default=0.0))
    return {"exact_match": mean_percent(exact), "f1": mean_percent(overlap)}


def _f1(wanted: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words, repeated ones counted."""
    if wanted == answer:
        return 1.0
    reference, given = wanted.split(), answer.split()
    shared = sum((collections.Counter(reference) & collections.Counter(given)).values())
    return 2.0 * shared / (len(reference) + len(given))
