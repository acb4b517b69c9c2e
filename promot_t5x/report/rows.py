"""The comparison of a run's models as the paper lays it out: a row a model, a column a task."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from promot_t5x.tasks.metrics import norm_avg


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRow:
    """Scores of one model, in percent.

    **Attributes:**

    - `seed`: of the run that it belongs to, where there are several.
    - `targets`: each target's score, asked with the row's prompt if it has one.
    - `suite`: each in-context task's score, asked without any prompt.
    - `target_format`: share of the suite's answers that are answers of the target task.
    """

    label: str
    targets: Mapping[str, float]
    suite: Mapping[str, float]
    target_format: float | None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The label, and the seed if there is one."""
        return self.label if self.seed is None else f"{self.label}, seed {self.seed}"


def header(rows: Sequence[ReportRow]) -> list[str]:
    """Column names: targets, suite, their mean, and the share of target-format answers."""
    columns = list(rows[0].targets) + list(rows[0].suite)
    if rows[0].suite:
        columns += ["mean"]
    if any(row.target_format is not None for row in rows):
        columns += ["target's format"]
    return columns


def cells(row: ReportRow, columns: Sequence[str]) -> list[str]:
    """One row's numbers, to one decimal, in the order of `columns`."""
    values: dict[str, float | None] = {**row.targets, **row.suite}
    if row.suite:
        values["mean"] = norm_avg(row.suite)
    values["target's format"] = row.target_format
    return [number(values.get(column)) for column in columns]


def number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def short_names(names: Sequence[str]) -> list[str]:
    """Drop what all names share at both ends: `tiny_icl_cb_1shot`, … -> `cb`, …."""
    parts = [name.split("_") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return ["_".join(p) for p in parts]


def table(rows: Sequence[ReportRow]) -> str:
    """The comparison as a Markdown table whose columns also line up on a terminal."""
    columns = header(rows)
    suite = dict(zip(rows[0].suite, short_names(list(rows[0].suite)), strict=True))
    lines = [["", *(suite.get(column, column) for column in columns)]]
    lines += [[row.name, *cells(row, columns)] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = ["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]
    return "\n".join(
        "| "
        + " | ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in [lines[0], rule, *lines[1:]]
    )
