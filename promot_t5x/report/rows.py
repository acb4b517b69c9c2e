"""The file that a comparison leaves of a row beside its answers, and how numbers are written."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from promot_t5x.report.statistics.bootstrap import Interval

FILE = "row.json"
# Beside it, the suite's answers after the demonstrations that another seed draws.
REDRAWN = "shot_seed_"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRow:
    """A row of a comparison, as `row.json` holds it.

    **Attributes:**

    - `label`: its name in tables.
    - `targets`: each target's score in percent, evaluated with the row's prompt if it has one.
    - `suite`: each in-context task's score in percent.
    - `position`: among the rows.
    - `stage`: the stage that its weights come from; none for the pretrained checkpoint's.
    - `share`: of the stage's weights, where they are mixed with the base's (WiSE-FT).
    - `seed`: of the run that it belongs to, where there are several.
    - `checkpoints`: the step that each of its stages chose.
    - `split`: by task, the split that was scored.
    - `selection_split`: by task, the split on whose score its checkpoint was chosen, or None.
    - `shot_seeds`: other demonstrations after which the suite was asked, beside the row.
    """

    label: str
    targets: Mapping[str, float]
    suite: Mapping[str, float]
    position: int = 0
    stage: str | None = None
    share: float | None = None
    seed: int | None = None
    checkpoints: Mapping[str, int] = dataclasses.field(default_factory=dict)
    split: Mapping[str, str] = dataclasses.field(default_factory=dict)
    selection_split: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    shot_seeds: Sequence[int] = ()


def number(value: float | None) -> str:
    """Return a number to one decimal, and a dash for none or NaN."""
    return "–" if value is None or math.isnan(value) else f"{value:.1f}"


def signed_number(made: float) -> str:
    """Return a difference to one decimal with its sign; none for what rounds to nothing."""
    text = f"{made:+.1f}"
    return text[1:] if float(text) == 0 else text


def span(ends: Interval, *, signed: bool = False) -> str:
    """Return an interval as `41.9–53.4`, or as `-1.2…+3.4` where it is a difference's."""
    if math.isnan(ends.low):
        return ""
    if signed:
        return f"{signed_number(ends.low)}…{signed_number(ends.high)}"
    return f"{ends.low:.1f}–{ends.high:.1f}"


def short_names(names: Sequence[str]) -> list[str]:
    """Return names without what all share at both ends, as `cb` for `tiny_icl_cb_1shot`."""
    parts = [name.split("_") for name in names]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return ["_".join(p) for p in parts]
