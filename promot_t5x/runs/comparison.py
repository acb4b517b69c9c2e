"""What a comparison is: the models that stand in it, and the tasks that each of them answers."""

import dataclasses
import re
from collections.abc import Sequence

from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.evaluation.eval_config import EvalConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One model of the comparison.

    **Attributes:**

    - `label`: its name in the table.
    - `stage`: the stage whose weights it has; none for those of the pretrained checkpoint. An
      adapter that the stage trained is a part of them.
    - `prompts`: for each target, the stage whose prompt and adapter are attached, several, or none.
    - `suite_prompt`: the stage whose prompt and adapter are attached to the suite too, where the
      row is to show what they hold; the method removes them.
    - `shares`: as many rows in place of this one, each with the weights a · tuned + (1 − a) · base
      for one of these a: WiSE-FT (2109.01903). The base is the comparison's.
    """

    label: str
    stage: str | None = None
    prompts: Sequence[str | Sequence[str] | None] = ()
    suite_prompt: str | None = None
    shares: Sequence[float] = ()

    def __post_init__(self) -> None:
        if self.shares and self.stage is None:
            raise UserError(
                f"Row {self.label!r} of the comparison has shares = {list(self.shares)}, but no "
                "stage whose weights they could be a share of."
            )
        for share in self.shares:
            if not 0.0 <= share <= 1.0:
                raise UserError(
                    f"Row {self.label!r} of the comparison: shares has {share!r}; a share of the "
                    "stage's weights is a number from 0 (the base) to 1 (the stage)."
                )

    @property
    def each(self) -> "list[Row]":
        """The row itself, or a row for each of its shares."""
        if len(self.shares) < 2:
            return [self]
        return [
            dataclasses.replace(self, label=f"{self.label} {share:g}", shares=(share,))
            for share in self.shares
        ]

    @property
    def stages(self) -> set[str]:
        """The stages that the row's answers depend on."""
        attached = {name for entry in self.prompts for name in stages_in(entry)}
        return attached | {*stages_in(self.suite_prompt), *stages_in(self.stage)}

    def attached(self, target: int) -> tuple[str, ...]:
        """Return the stages whose prompt and adapter are attached to a target, by its number."""
        return stages_in(self.prompts[target]) if self.prompts else ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The models that are compared, and the tasks that each of them answers.

    **Attributes:**

    - `base`: the pretrained checkpoint, for rows without a stage.
    - `rows`: the models.
    - `targets`: the fine-tuned tasks.
    - `suite`: the in-context tasks; none leaves them out.
    - `suite_shot_seeds`: ask the suite once more with the demonstrations that each of these draws,
      so that reports can say how much the choice of demonstrations moves the scores.
    """

    base: str | None
    rows: Sequence[Row]
    targets: Sequence[EvalConfig]
    suite: EvalConfig | None = None
    suite_shot_seeds: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.suite_shot_seeds and self.suite is None:
            raise UserError(
                f"SUITE_SHOT_SEEDS = {list(self.suite_shot_seeds)} asks the suite with other "
                "demonstrations, but there is no SUITE; add one, as in "
                "--gin_file=suites/icl_1shot.gin."
            )
        rows = [each for row in self.rows for each in row.each]
        object.__setattr__(self, "rows", rows)
        labels = {_folder(row.label): row.label for row in reversed(rows)}
        for row in rows:
            if (other := labels[_folder(row.label)]) is not row.label:
                raise UserError(
                    f"The comparison has the rows {other!r} and {row.label!r}, whose answers would "
                    "lie in one directory; give one of them another label."
                )


def stages_in(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the stages that an entry of `Row.prompts` names."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def row_directory(home: epath.Path, row: Row) -> epath.Path:
    """Return where a run keeps what it records of a row."""
    return home / "comparison" / _folder(row.label)


def _folder(label: str) -> str:
    return re.sub(r"\W+", "_", label)
