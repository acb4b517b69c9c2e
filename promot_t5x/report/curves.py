"""What was measured while stages trained: the target, the suite and the format, step by step."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from promot_t5x.evaluation import records
from promot_t5x.files import read_json_lines
from promot_t5x.report import answers, runs, target_format
from promot_t5x.report.runs import Run
from promot_t5x.report.statistics.seeds import over_seeds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One step's numbers, in percent; NaN where something was not measured then."""

    step: int
    target: float
    suite: float
    target_format: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A stage of one seed, as it trained.

    **Attributes:**

    - `label`: of the row that has the stage's weights, else the stage's name.
    - `points`: by step.
    - `alignment`: rows of `step` and the cosines of gradient alignment by block, if measured.
    """

    label: str
    seed: str
    points: Sequence[Point]
    alignment: Sequence[Mapping[str, Any]] = ()


def read(words: Sequence[str], rows: Sequence[Run]) -> list[Curve]:
    """The curves of every stage in the runs that the words name, as `runs.read` takes them.

    Stages that measured one thing at one step make no curve.
    """
    paths = [runs.path_of(word) for word in words]
    labels = [_labels(path, rows) for path in paths]
    # Runs of the same rows are seeds; in others, stages without a row may only share a name.
    same = all(each == labels[0] for each in labels)
    curves = []
    for path, label in zip(paths, labels, strict=True):
        whose = "" if same else f"{path.name}: "
        for stage, seed in _stages(path):
            name = label.get(stage.name, whose + stage.name.replace("_", " "))
            points = _points(stage)
            if len(points) > 1:
                aligned = read_json_lines(stage / runs.ALIGNMENT)
                curves.append(Curve(label=name, seed=seed, points=points, alignment=aligned))
    return curves


def _labels(path: epath.Path, rows: Sequence[Run]) -> dict[str, str]:
    """Stage to label, of the rows of one run; of several with a stage's weights the first."""
    own = [run for run in rows if path in (run.path, *run.path.parents)]
    return {run.stage: run.label for run in reversed(own) if run.stage}


def by_label(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """The seeds of each label."""
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.label, []).append(curve)
    return found


def mean_points(curves: Sequence[Curve]) -> list[Point]:
    """The mean over seeds at each step that all of them have."""
    steps = set.intersection(*({point.step for point in curve.points} for curve in curves))
    at = [{point.step: point for point in curve.points} for curve in curves]
    return [
        Point(
            step=step,
            target=over_seeds([points[step].target for points in at]).mean,
            suite=over_seeds([points[step].suite for points in at]).mean,
            target_format=over_seeds([points[step].target_format for points in at]).mean,
        )
        for step in sorted(steps)
    ]


def mean_alignment(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The mean cosines over seeds at each step that all of them have; empty if one has none."""
    at = [{row["step"]: row for row in curve.alignment} for curve in curves]
    steps = sorted(set.intersection(*(set(rows) for rows in at)))
    return [
        {
            name: math.fsum(rows[step][name] for rows in at) / len(at)
            for name in at[0][step]
            if all(name in rows[step] for rows in at)
        }
        for step in steps
    ]


def _stages(path: epath.Path) -> list[tuple[epath.Path, str]]:
    """The stages in a run, with the seed of each."""
    if _is_stage(path):
        return [(path, str(path.parent))]
    found = []
    for home in (path, *(p for p in runs.directories(path) if p.name.startswith("seed_"))):
        seed = home.name.removeprefix("seed_") if home != path else str(path)
        found += [(child, seed) for child in runs.directories(home) if _is_stage(child)]
    return found


def _is_stage(path: epath.Path) -> bool:
    return (path / "train").is_dir() and (path / records.DIRECTORY).is_dir()


def _points(stage: epath.Path) -> list[Point]:
    targets, suite = answers.found(stage), answers.found(stage / runs.SUITE)
    share = _share(targets, suite)
    steps = sorted({step for found in (targets, suite) for at in found.values() for step in at})
    return [
        Point(
            step=step,
            target=_mean_score(_at(targets, step)),
            suite=_mean_score(_at(suite, step)),
            target_format=share(step),
        )
        for step in steps
    ]


Found = Mapping[str, Mapping[int, epath.Path]]


def _share(targets: Found, suite: Found) -> Callable[[int], float]:
    """The share of the suite's answers in the target's format, as a function of the step."""

    def last(steps: Mapping[int, epath.Path]) -> answers.Answers:
        return answers.read(steps[max(steps)])

    measure = target_format.of_targets(map(last, targets.values())) if suite else None
    if measure is None:
        return lambda step: math.nan
    telling = {t: steps for t, steps in suite.items() if target_format.tells(measure, last(steps))}

    def share(step: int) -> float:
        shares = [measure.share(answers.read(path)) for path in _at(telling, step) or ()]
        return math.fsum(shares) / len(shares) if shares else math.nan

    return share


def _at(found: Found, step: int) -> list[epath.Path] | None:
    """The summaries of a step; None where a task has none."""
    if not found or any(step not in steps for steps in found.values()):
        return None
    return [steps[step] for steps in found.values()]


def _mean_score(summaries: Sequence[epath.Path] | None) -> float:
    if summaries is None:
        return math.nan
    told = [json.loads(path.read_text()) for path in summaries]
    scores = [summary["metrics"][summary["primary"]] for summary in told if summary["primary"]]
    return math.fsum(scores) / len(scores) if scores else math.nan
