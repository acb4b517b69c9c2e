"""What a comparison leaves of a row beside its answers, and how numbers and names are written."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

FILE = "row.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRow:
    """A row of a comparison, as `row.json` holds it.

    **Attributes:**

    - `label`: what tables call it.
    - `targets`: each target's score in percent, asked with the row's prompt if it has one.
    - `suite`: each in-context task's score in percent.
    - `position`: among the rows.
    - `stage`: whose weights it has; none for the base's.
    - `seed`: of the run that it belongs to, where there are several.
    - `checkpoints`: the step that each of its stages chose.
    - `split`: by task, the split that was scored.
    - `selection_split`: by task, the split on whose score its checkpoint was chosen, or None.
    """

    label: str
    targets: Mapping[str, float]
    suite: Mapping[str, float]
    position: int = 0
    stage: str | None = None
    seed: int | None = None
    checkpoints: Mapping[str, int] = dataclasses.field(default_factory=dict)
    split: Mapping[str, str] = dataclasses.field(default_factory=dict)
    selection_split: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


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
