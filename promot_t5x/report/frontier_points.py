"""The points of sweeps: every method at every setting, its scores, seeds and drift.

A method is a row of the runs' comparisons; its scores at a setting are means over seeds.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.paths import user_path
from promot_t5x.report import comparison, curves, runs, sweep
from promot_t5x.report.comparison import SUITE, TARGET, ComparedRow, RunComparison
from promot_t5x.report.runs import DiscoveredRun
from promot_t5x.report.statistics import bootstrap
from promot_t5x.report.statistics.scores import MeanScore

# Settings that say which seeds a point is a mean of.
_SEEDS = ("RANDOM_SEED", "SEEDS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """A method at one setting.

    **Attributes:**

    - `method`: the label of its row.
    - `settings`: what the sweep sets, as text; empty for the model that no stage trained.
    - `target`, `suite`: the mean over the targets, and over the in-context tasks.
    - `seeds`: of its runs, in the order of the scores' runs.
    - `splits`: by task, what was asked.
    - `drift`: KL from the base in nats per target token, at the chosen checkpoint, the mean over
      seeds; NaN where it was not measured.
    """

    method: str
    settings: str
    target: MeanScore
    suite: MeanScore
    seeds: Sequence[str]
    splits: Mapping[str, str]
    drift: float = math.nan


def read(
    words: Sequence[str], *, resamples: int = bootstrap.RESAMPLES
) -> tuple[list[FrontierPoint], int]:
    """Return the points of the finished runs of sweeps, and how many runs have not finished.

    **Arguments:**

    - `words`: directories of sweeps.
    - `resamples`: of the bootstrap.

    **Raises:** `UserError` for a directory without a finished run, for runs of several pretrained
    models, and for runs that were asked different questions.
    """
    places, unfinished = _places(words)
    found: list[DiscoveredRun] = []
    for path, settings in places:
        for run in runs.read([str(path)]):
            label = run.label if run.stage is None else _label(run, settings)
            found.append(dataclasses.replace(run, label=label))
    found = _one_base(found)
    made = comparison.compare(found, resamples=resamples)
    return [_point(made, row) for row in made.rows], unfinished


def _label(run: DiscoveredRun, settings: str) -> str:
    """Return a label that holds the method and its setting, of which a share is a part."""
    if run.share is None:
        return f"{run.label}\n{settings}"
    return f"{run.label.removesuffix(f' {run.share:g}')}\n{settings}, share={run.share:g}"


def _places(words: Sequence[str]) -> tuple[list[tuple[epath.Path, str]], int]:
    """Return the directories of finished runs with their settings, and how many have not."""
    places, unfinished = [], 0
    for word in words:
        path = user_path(word, "a sweep's directory")
        if not path.is_dir():
            raise UserError(f"there is no directory {path}: name the directory of a sweep.")
        for child in runs.directories(path):
            cell = sweep.FinishedCell.read(child)
            if cell is None:
                unfinished += (child / "config.gin").exists()
                continue
            settings = {k: v for k, v in cell.settings.items() if k not in _SEEDS}
            text = ", ".join(f"{name}={value}" for name, value in settings.items())
            places.append((child, text or "as configured"))
    if not places:
        raise UserError(
            f"{', '.join(words)}: no finished run of a sweep is there, none with a {sweep.FILE}. "
            "`promot-t5x sweep run` leaves one in each run's directory."
        )
    return places, unfinished


def _one_base(found: Sequence[DiscoveredRun]) -> list[DiscoveredRun]:
    """Return the runs with the model that no stage trained once, which every run has evaluated."""
    bases = [run for run in found if run.stage is None]
    hashes = {
        str((made.summary.get("checkpoint") or {}).get("hash"))
        for run in bases
        for made in run.answers.values()
    }
    if len(hashes) > 1:
        raise UserError(
            "the runs start from several pretrained models, and a frontier starts from one: "
            "report those of each model by themselves."
        )
    return [run for run in found if run.stage is not None or run is bases[0]]


def _point(made: RunComparison, row: ComparedRow) -> FrontierPoint:
    method, _, settings = row.label.partition("\n")
    drifts = [_drift(run) for run in row.runs if run.stage is not None]
    return FrontierPoint(
        method=method,
        settings=settings,
        target=_mean(made, row, TARGET),
        suite=_mean(made, row, SUITE),
        seeds=row.seeds,
        splits={c.task: c.split for c in made.of_kind(TARGET, SUITE)},
        drift=float(np.mean(drifts)) if drifts else math.nan,
    )


def _mean(made: RunComparison, row: ComparedRow, kind: str) -> MeanScore:
    """Return the mean over the targets, or over the suite."""
    cells = [row.cells.get(column) for column in made.of_kind(kind)]
    known = [cell for cell in cells if isinstance(cell, MeanScore)]
    if not known or len(known) < len(cells):
        raise UserError(
            f"{row.label.partition(chr(10))[0]!r} lacks scores of the {kind} that other rows have, "
            "and a frontier needs both a target and a SUITE of every row."
        )
    return MeanScore(
        [
            {task: estimate for cell in known for task, estimate in cell.runs[n].items()}
            for n in range(len(row.runs))
        ]
    )


def _drift(run: DiscoveredRun) -> float:
    """Return the drift of a run's weights; NaN where it is unknown."""
    if run.share is not None:
        return math.nan
    return curves.chosen_drift(run.path.parent.parent / str(run.stage))
