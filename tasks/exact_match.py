"""Exact match and F1 of short answers, normalized as TriviaQA and as SQuAD do it.

Both lower the case, drop the articles a, an, the and squeeze white space, but TriviaQA puts a
space where punctuation was and SQuAD nothing: "Beatles-Band" is "beatles band" to the one and
"beatlesband" to the other. The closed-book literature, T5's among it, scores TriviaQA with the
first and WebQuestions with the second.

An answer is compared with every reference, and the best comparison counts. A blank answer is
never right, though an alias of nothing but articles or punctuation ("The The", "?") is blank
too when normalized: any answer that is not blank as decoded may match that.
"""

import collections
import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterable, Sequence

from promot_t5x.tasks import languages
from promot_t5x.tasks.metrics import MeanOfExamples, References, references
from promot_t5x.tasks.rouge import UnicodeWords

WORDS = ("spaces", "unicode")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_TRIVIA_QA = str.maketrans(dict.fromkeys(string.punctuation + "‘’´`", " "))
_SQUAD = str.maketrans(dict.fromkeys(string.punctuation))


@dataclasses.dataclass(frozen=True)
class ShortAnswers(MeanOfExamples):
    """A metric: `{"exact_match", "f1"}` in percent.

    **Attributes:**

    - `normalisation`: of which benchmark, "trivia_qa" or "squad".
    - `words`: what F1 counts: "spaces", the published words between spaces, or "unicode", for any
      language: each ideograph, kana or Thai, Lao, Khmer or Burmese letter is a word by itself, and
      punctuation of every script is none.
    """

    normalisation: str
    words: str = "spaces"
    registered = "short_answers"
    scores = ("exact_match", "f1")

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALIZATIONS:
            raise ValueError(
                f"normalisation is {self.normalisation!r}; it must be one of "
                f"{tuple(NORMALIZATIONS)}"
            )
        if self.words not in WORDS:
            raise ValueError(f"words is {self.words!r}; it must be one of {WORDS}")

    def warnings(self, targets: Sequence[References]) -> list[str]:
        """Say where targets are written without spaces between words."""
        if self.words == "unicode":
            return []
        remedy = (
            "state the task's language, or take "
            f"ShortAnswers({self.normalisation!r}, words='unicode')"
        )
        texts = [text for target in targets for text in references(target)]
        # Korean has spaces, though not between all of its words.
        return languages.unsplit(texts, ("Hangul",), remedy)

    def shares(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Iterable[Sequence[float]]:
        """Whether each answer is right, and its words' F1."""
        normalize = NORMALIZATIONS[self.normalisation]
        if self.words == "unicode":
            normalize = functools.partial(_in_unicode_words, normalize)
        for target, prediction in zip(targets, predictions, strict=True):
            if not prediction.strip():
                yield 0.0, 0.0
                continue
            answer = normalize(prediction)
            wanted = [normalize(reference) for reference in references(target)]
            yield answer in wanted, max(_f1(each, answer) for each in wanted)


def normalize_trivia_qa(text: str) -> str:
    """Lower case, punctuation to spaces, no articles, single spaces."""
    return _squeeze(text.lower().translate(_TRIVIA_QA))


def normalize_squad(text: str) -> str:
    """Lower case, punctuation deleted, no articles, single spaces."""
    return _squeeze(text.lower().translate(_SQUAD))


def _in_unicode_words(normalize: Callable[[str], str], text: str) -> str:
    return _squeeze(" ".join(UnicodeWords().tokenize(normalize(text))))


def _squeeze(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text).split())


def _f1(wanted: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words, repeated ones counted."""
    if wanted == answer:
        return 1.0
    reference, given = wanted.split(), answer.split()
    shared = sum((collections.Counter(reference) & collections.Counter(given)).values())
    return 2.0 * shared / (len(reference) + len(given))


NORMALIZATIONS = {"trivia_qa": normalize_trivia_qa, "squad": normalize_squad}
trivia_qa = ShortAnswers("trivia_qa")
squad = ShortAnswers("squad")
