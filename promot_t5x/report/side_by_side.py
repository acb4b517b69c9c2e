"""The same questions, answered by every model: what the numbers of a table look like as text."""

import dataclasses
from collections.abc import Sequence

from promot_t5x.report.answers import TaskAnswers
from promot_t5x.report.changed import shortened, target_text
from promot_t5x.report.comparison import SUITE, TARGET, Column, ComparedRow, RunComparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedQuestion:
    """One question of a task.

    **Attributes:**

    - `answers`: of each row (its first seed), in the order of the rows.
    - `right`: whether each of them scores 100 by itself.
    """

    column: Column
    inputs: str
    target: str
    answers: Sequence[str]
    right: Sequence[bool]


def shared_questions(comparison: RunComparison, per_task: int) -> list[SharedQuestion]:
    """Return the questions of each task that the rows answer in the most different ways."""
    found: list[SharedQuestion] = []
    for column in comparison.of_kind(TARGET, SUITE):
        given = [_answers(row, column) for row in comparison.rows]
        known = [answers for answers in given if answers is not None]
        if not known or len(known) < len(given):
            continue
        texts = list(zip(*(answers.answers for answers in known), strict=True))
        order = sorted(range(len(texts)), key=lambda n: (-len(set(texts[n])), n))
        chosen = order[:per_task]
        questions = known[0].texts(chosen)
        for n in chosen:
            found.append(
                SharedQuestion(
                    column=column,
                    inputs=shortened(questions[n]),
                    target=target_text(known[0].records[n]["target"]),
                    answers=[shortened(text) for text in texts[n]],
                    right=[bool(answers.example_scores[n] == 100.0) for answers in known],
                )
            )
    return found


def _answers(row: ComparedRow, column: Column) -> TaskAnswers | None:
    run = row.runs[0]
    return (run.targets if column.kind == TARGET else run.suite).get(column.task)
