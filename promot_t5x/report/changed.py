"""Examples that two models answered differently, with both answers."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.report.answers import Answers
from promot_t5x.report.comparison import SUITE, TARGET, Column, Comparison

LOST, WON, OTHER = "lost", "won", "other"
DIRECTIONS = (LOST, WON, OTHER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One example and what every row said to it (its first seed, where there are several).

    **Attributes:**

    - `answers`, `scores`: by label; scores in percent, NaN where an example alone has none.
    """

    column: Column
    id: str
    inputs: str
    target: str
    answers: dict[str, str]
    scores: dict[str, float]

    def direction(self, first: str, second: str) -> str | None:
        """`lost` where the second row scores less than the first, `won` where more, `other` where
        only the words differ; None where the answers are the same."""
        if self.answers[first] == self.answers[second]:
            return None
        difference = self.scores[second] - self.scores[first]
        return LOST if difference < 0 else WON if difference > 0 else OTHER


def examples(comparison: Comparison, columns: Sequence[Column], labels: Sequence[str]):
    """Every example of these columns that all these rows have answered."""
    for column in columns:
        rows = {label: _answers(comparison, label, column) for label in labels}
        if not all(rows.values()):
            continue
        first = rows[labels[0]]
        assert first is not None  # `all` has looked
        for n, record in enumerate(first.records):
            yield Example(
                column=column,
                id=str(record["id"]),
                inputs=str(record.get("inputs", "")),
                target=_target_text(record["target"]),
                answers={label: a.answers[n] for label, a in rows.items() if a},
                scores={label: float(a.example_scores[n]) for label, a in rows.items() if a},
            )


def changed(
    comparison: Comparison, first: str, second: str, columns: Sequence[Column]
) -> dict[tuple[Column, str], list[Example]]:
    """The examples whose answer changed, by column and direction, the largest change first."""
    found: dict[tuple[Column, str], list[Example]] = {
        (column, direction): [] for column in columns for direction in DIRECTIONS
    }
    for example in examples(comparison, columns, [first, second]):
        direction = example.direction(first, second)
        if direction is not None:
            found[example.column, direction].append(example)
    for listed in found.values():
        listed.sort(key=lambda e: -_size(e.scores[second] - e.scores[first]))
    return {key: listed for key, listed in found.items() if listed}


def as_text(
    comparison: Comparison,
    first: str,
    second: str,
    *,
    task: str | None = None,
    direction: str | None = None,
    limit: int = 20,
) -> str:
    """What changed from the row `first` to the row `second`, to read in a terminal.

    **Arguments:**

    - `task`: a column's title or a task's name; all tasks if none.
    - `direction`: one of `DIRECTIONS`; all if none.
    - `limit`: examples of each task and direction.

    **Raises** `UserError` for a row or a task that is not in the report.
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
    for (column, way), listed in changed(comparison, first, second, columns).items():
        if direction not in (None, way):
            continue
        shown = listed[:limit]
        blocks.append(
            f"== {column.title}: {len(listed):,} {_WORDS[way]}"
            + (f", the first {len(shown)} of them" if len(shown) < len(listed) else "")
        )
        blocks += [_block(example, first, second) for example in shown]
    return "\n\n".join(blocks) or f"{first} and {second} gave the same answers."


_WORDS = {
    LOST: "lost (a worse answer)",
    WON: "won (a better answer)",
    OTHER: "in other words (scored alike)",
}


def _block(example: Example, first: str, second: str) -> str:
    width = max(map(len, (first, second, "target")))
    lines = [f"[{example.id}] {shortened(example.inputs)}"]
    lines.append(f"    {'target':{width}}          {shortened(example.target)}")
    for label in (first, second):
        score = example.scores[label]
        said = "     –" if math.isnan(score) else f"{score:6.1f}"
        lines.append(f"    {label:{width}}  {said}  {shortened(example.answers[label])!s}")
    return "\n".join(lines)


def shortened(text: str, head: int = 200, tail: int = 400) -> str:
    """A long text without its middle, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= head + tail + 3 else f"{line[:head]} … {line[-tail:]}"


def _answers(comparison: Comparison, label: str, column: Column) -> Answers | None:
    run = comparison.row(label).runs[0]
    return (run.targets if column.kind == TARGET else run.suite).get(column.task)


def _target_text(target: Any) -> str:
    if not isinstance(target, list):
        return str(target)
    more = f" (or {len(target) - 3} more)" if len(target) > 3 else ""
    return " / ".join(map(str, target[:3])) + more


def _size(difference: float) -> float:
    return 0.0 if math.isnan(difference) else abs(difference)
