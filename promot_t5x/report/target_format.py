"""How often a model answers other tasks with the words of the task that it was fine-tuned on.

The measure of format specialization (arXiv 2211.00635, figure 2): the share of answers that equal
an answer of the target, are made of words that its definition calls its own, or are in the language
that it is answered in, as py3langid identifies it (Lui and Baldwin 2012). A task whose own right
answers are of that kind says nothing, and is left out: a model may well answer CB with "True".
"""

import dataclasses
import functools
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from promot_t5x.report.answers import TaskAnswers
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.metrics import MeanOfExamples

MAX_ANSWERS = 10  # of a target with more distinct answers than this, its words are looked at
# What the identifier must give a language. Names and single words stay below: of 200 sentences of
# WMT14's French it finds 198, and no French in English, German or Romanian ones, or short answers.
_SURE = 0.5
_MISTAKEN = 0.01  # of a task's right answers, those that may be taken for the target's language


@dataclasses.dataclass(frozen=True)
class TargetFormat(MeanOfExamples):
    """The share of answers that a target could have given, whatever the question.

    **Attributes:**

    - `words`: whole answers of targets that have few.
    - `made_of`: what the answers of other targets are made of, word by word; an answer all of
      whose words are among them is in their format.
    - `languages`: codes of the languages that other targets are answered in.
    """

    words: tuple[str, ...]
    made_of: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()
    scores = ("target_format",)

    def shares(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Yield whether each answer is in the format."""
        for prediction in predictions:
            yield (self.has(str(prediction)),)

    def has(self, answer: str) -> bool:
        """Whether an answer is in the format."""
        return self.has_words(answer) or self.has_language(answer)

    def has_words(self, answer: str) -> bool:
        """Whether an answer is one of the target's, or made of its own words."""
        parts = answer.split()
        return answer in self.words or (bool(parts) and self.made_of.issuperset(parts))

    def has_language(self, answer: str) -> bool:
        """Whether an answer is in a language of the target."""
        return bool(self.languages) and _language(answer) in self.languages

    def share(self, answers: TaskAnswers) -> float:
        """Return the share of a task's answers in the format, in percent."""
        return self(answers.answers, answers.answers)["target_format"]

    @property
    def description(self) -> str:
        """What is counted, in words."""
        kinds = [" or ".join(f"“{word}”" for word in self.words)] if self.words else []
        if self.made_of:
            kinds.append(f"made of the target's own {len(self.made_of):,} words")
        if self.languages:
            kinds.append(f"in the target's language ({', '.join(sorted(self.languages))})")
        return ", or ".join(kinds)


def of_targets(targets: Iterable[TaskAnswers]) -> TargetFormat | None:
    """Return the measure for these targets; None where one of them has no answer format."""
    words: set[str] = set()
    made_of: set[str] = set()
    languages: set[str] = set()
    for answers in targets:
        right = _right(answers)
        if len(right) <= MAX_ANSWERS:
            words |= right
        elif own := answers.summary.get("answer_words"):
            made_of.update(own)
        elif language := answers.summary.get("language"):
            languages.add(language)
        else:
            return None
    if not (words or made_of or languages) or not all(map(is_identified, languages)):
        return None
    return TargetFormat(tuple(sorted(words)), frozenset(made_of), frozenset(languages))


def is_identified(language: str) -> bool:
    """Whether texts in a language are recognized: the library is there, and knows its code."""
    return importlib.util.find_spec("py3langid") is not None and language in _identifier().labels


def unidentified(target: TaskAnswers) -> str | None:
    """Return the language that is a target's format and cannot be recognized, if that is so."""
    language: str | None = target.summary.get("language")
    if language is None or target.summary.get("answer_words") or is_identified(language):
        return None
    return language if len(_right(target)) > MAX_ANSWERS else None


def tells(measure: TargetFormat, suite: TaskAnswers) -> bool:
    """Whether answers of the target's kind are out of place in a task of the suite."""
    right = _right(suite)
    mistaken = sum(map(measure.has_language, right))
    return not any(map(measure.has_words, right)) and mistaken <= _MISTAKEN * len(right)


@functools.lru_cache(maxsize=1 << 18)
def _language(text: str) -> str | None:
    """Return the code of a text's language; None where it is in doubt."""
    language, probability = _identifier().classify(text)
    return language if probability >= _SURE else None


@functools.cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def _right(answers: TaskAnswers) -> set[str]:
    right: set[str] = set()
    for record in answers.records:
        target = record["target"]
        several = target if isinstance(target, list) else [target]
        right.update(map(task_metrics.answer_text, several))
    return right
