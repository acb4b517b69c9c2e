"""How often a model answers other tasks with the words of the task that it was fine-tuned on.

The measure of format specialisation (arXiv 2211.00635, figure 2): the share of answers that equal
an answer of the target. A task whose own right answers are of that kind says nothing, and is left
out: a model may well answer CB with "True".
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from promot_t5x.report.answers import Answers
from promot_t5x.tasks.metrics import MeanOfExamples

MAX_ANSWERS = 10  # a target with more distinct answers than this has no answer format


@dataclasses.dataclass(frozen=True)
class TargetFormat(MeanOfExamples):
    """The share of answers that are one of `words`, whatever the question."""

    words: tuple[str, ...]
    scores = ("target_format",)

    def shares(
        self, targets: Sequence[Any], predictions: Sequence[Any]
    ) -> Iterable[Sequence[float]]:
        """Whether each answer is."""
        for prediction in predictions:
            yield (str(prediction) in self.words,)

    def share(self, answers: Answers) -> float:
        """In percent of a task's answers."""
        return self(answers.answers, answers.answers)["target_format"]


def of_targets(targets: Iterable[Answers]) -> TargetFormat | None:
    """The measure for these targets; None where they have no answer format."""
    words = {word for answers in targets for word in _right(answers)}
    return TargetFormat(tuple(sorted(words))) if 0 < len(words) <= MAX_ANSWERS else None


def tells(measure: TargetFormat, suite: Answers) -> bool:
    """Whether answers of the target's kind are out of place in a task of the suite."""
    return not _right(suite) & set(measure.words)


def _right(answers: Answers) -> set[str]:
    right: set[str] = set()
    for record in answers.records:
        target = record["target"]
        right.update(map(str, target) if isinstance(target, list) else (str(target),))
    return right
