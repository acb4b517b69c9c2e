"""How often a model answers other tasks with the words of the task that it was fine-tuned on.

The measure of format specialization (arXiv 2211.00635, figure 2): the share of answers that equal
an answer of the target, or are made of words that its definition calls its own. A task whose own
right answers are of that kind says nothing, and is left out: a model may well answer CB with
"True".
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from promot_t5x.report.answers import TaskAnswers
from promot_t5x.tasks.metrics import MeanOfExamples

MAX_ANSWERS = 10  # of a target with more distinct answers than this, its words are looked at


@dataclasses.dataclass(frozen=True)
class TargetFormat(MeanOfExamples):
    """The share of answers that a target could have given, whatever the question.

    **Attributes:**

    - `words`: whole answers of targets that have few.
    - `made_of`: what the answers of other targets are made of, word by word; an answer all of
      whose words are among them is in their format.
    """

    words: tuple[str, ...]
    made_of: frozenset[str] = frozenset()
    scores = ("target_format",)

    def shares(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Yield whether each answer is in the format."""
        for prediction in predictions:
            yield (self.has(str(prediction)),)

    def has(self, answer: str) -> bool:
        """Whether an answer is in the format."""
        parts = answer.split()
        return answer in self.words or (bool(parts) and self.made_of.issuperset(parts))

    def share(self, answers: TaskAnswers) -> float:
        """Return the share of a task's answers in the format, in percent."""
        return self(answers.answers, answers.answers)["target_format"]

    @property
    def description(self) -> str:
        """What is counted, in words."""
        kinds = [" or ".join(f"“{word}”" for word in self.words)] if self.words else []
        if self.made_of:
            kinds.append(f"made of the target's own {len(self.made_of):,} words")
        return ", or ".join(kinds)


def of_targets(targets: Iterable[TaskAnswers]) -> TargetFormat | None:
    """Return the measure for these targets; None where one of them has no answer format."""
    words: set[str] = set()
    made_of: set[str] = set()
    for answers in targets:
        right = _right(answers)
        if len(right) <= MAX_ANSWERS:
            words |= right
        elif own := answers.summary.get("answer_words"):
            made_of.update(own)
        else:
            return None
    if not words and not made_of:
        return None
    return TargetFormat(tuple(sorted(words)), frozenset(made_of))


def tells(measure: TargetFormat, suite: TaskAnswers) -> bool:
    """Whether answers of the target's kind are out of place in a task of the suite."""
    return not any(map(measure.has, _right(suite)))


def _right(answers: TaskAnswers) -> set[str]:
    right: set[str] = set()
    for record in answers.records:
        target = record["target"]
        right.update(map(str, target) if isinstance(target, list) else (str(target),))
    return right
