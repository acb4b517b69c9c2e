"""Examples that two models answered differently, with both answers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.report.answers import TaskAnswers
from promot_t5x.report.comparison import SUITE, TARGET, Column, RunComparison
from promot_t5x.tasks import metrics as task_metrics

LOST, WON, OTHER = "lost", "won", "other"
DIRECTIONS = (LOST, WON, OTHER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedExample:
    """One example and the answers of two rows to it, of their first seeds where there are several.

    **Attributes:**

    - `answers`, `scores`: of the first row and the second; scores in percent, NaN where an example
      alone has none.
    """

    id: str
    inputs: str
    target: str
    answers: tuple[str, str]
    scores: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ChangedGroup:
    """The examples of one task that changed in one direction.

    **Attributes:**

    - `direction`: `lost` where the second row scores less than the first, `won` where more,
      `other` where only the words differ.
    - `count`: how many there are.
    - `examples`: the first of them, the largest changes first.
    """

    column: Column
    direction: str
    count: int
    examples: Sequence[ChangedExample]


def changed(
    comparison: RunComparison, first: str, second: str, columns: Sequence[Column], limit: int
) -> list[ChangedGroup]:
    """Return the examples that the row `second` answers otherwise than the row `first`.

    **Arguments:**

    - `limit`: how many examples of each group are read.
    """
    groups = []
    for column in columns:
        before, after = (_answers(comparison, label, column) for label in (first, second))
        if before is None or after is None:
            continue
        differences = after.example_scores - before.example_scores
        found: dict[str, list[int]] = {direction: [] for direction in DIRECTIONS}
        for n, (one, other) in enumerate(zip(before.answers, after.answers, strict=True)):
            if one != other:
                difference = differences[n]
                found[LOST if difference < 0 else WON if difference > 0 else OTHER].append(n)
        for direction, listed in found.items():
            listed.sort(key=lambda n: -abs(np.nan_to_num(differences[n])))
            if listed:
                examples = _examples(before, after, listed[:limit])
                groups.append(ChangedGroup(column, direction, len(listed), examples))
    return groups


def as_text(
    comparison: RunComparison,
    first: str,
    second: str,
    *,
    task: str | None = None,
    direction: str | None = None,
    limit: int = 20,
) -> str:
    """Return what changed from the row `first` to the row `second`, to read in a terminal.

    **Arguments:**

    - `task`: a column's title or a task's name; all tasks if none.
    - `direction`: one of `DIRECTIONS`; all if none.
    - `limit`: examples of each task and direction.

    **Raises:** `UserError` for a row or a task that is not in the report.
    """
    for label in (first, second):
        comparison.row(label)
    columns = comparison.of_kind(TARGET, SUITE)
    if task is not None:
        names = [name for column in columns for name in (column.title, column.task)]
        columns = [column for column in columns if task in (column.title, column.task)]
        if not columns:
            raise UserError(
                f"there is no task {task!r} in this report.{did_you_mean(task, names)} There are: "
                f"{', '.join(dict.fromkeys(names))}."
            )
    blocks = []
    for group in changed(comparison, first, second, columns, limit):
        if direction not in (None, group.direction):
            continue
        shown = len(group.examples)
        blocks.append(
            f"== {group.column.title}: {group.count:,} {_WORDS[group.direction]}"
            + (f", the first {shown} of them" if shown < group.count else "")
        )
        blocks += [_block(example, (first, second)) for example in group.examples]
    return "\n\n".join(blocks) or f"{first} and {second} gave the same answers."


_WORDS = {
    LOST: "lost (a worse answer)",
    WON: "won (a better answer)",
    OTHER: "in other words (scored alike)",
}


def _block(example: ChangedExample, labels: tuple[str, str]) -> str:
    width = max(map(len, (*labels, "target")))
    lines = [
        f"[{example.id}] {shortened(example.inputs)}",
        f"    {'target':{width}}          {shortened(example.target)}",
    ]
    for label, said, score in zip(labels, example.answers, example.scores, strict=True):
        shown = "     –" if math.isnan(score) else f"{score:6.1f}"
        lines.append(f"    {label:{width}}  {shown}  {shortened(said)}")
    return "\n".join(lines)


def shortened(text: str, head: int = 200, tail: int = 400) -> str:
    """Return a long text without its middle, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= head + tail + 3 else f"{line[:head]} … {line[-tail:]}"


def _answers(comparison: RunComparison, label: str, column: Column) -> TaskAnswers | None:
    run = comparison.row(label).runs[0]
    return (run.targets if column.kind == TARGET else run.suite).get(column.task)


def target_text(target: Any) -> str:
    """Return a target as text, of many right answers the first three."""
    if not isinstance(target, list):
        return task_metrics.answer_text(target)
    more = f" (or {len(target) - 3} more)" if len(target) > 3 else ""
    return " / ".join(map(str, target[:3])) + more


def _examples(
    before: TaskAnswers, after: TaskAnswers, indices: Sequence[int]
) -> list[ChangedExample]:
    questions = before.texts(indices)
    return [
        ChangedExample(
            id=before.ids[n],
            inputs=questions[n],
            target=target_text(before.records[n]["target"]),
            answers=(before.answers[n], after.answers[n]),
            scores=(float(before.example_scores[n]), float(after.example_scores[n])),
        )
        for n in indices
    ]
