"""What was measured while stages trained: target, suite, format and drift, step by step."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from promot_t5x.evaluation import records
from promot_t5x.files import read_json, read_json_lines
from promot_t5x.report import answers, runs, target_format
from promot_t5x.report.runs import DiscoveredRun


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One step's numbers, scores in percent; NaN where something was not measured then.

    **Attributes:**

    - `target`: the mean over the targets.
    - `tasks`: the score of each task of the suite.
    - `formats`: the share of answers in the target's format, of each task where it tells something.
    - `drift`: KL from the base in nats per target token, the mean over the targets.
    """

    step: int
    target: float
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    formats: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drift: float = math.nan

    @property
    def suite(self) -> float:
        """The mean over the suite."""
        return _mean(self.tasks)

    @property
    def target_format(self) -> float:
        """The mean share of answers in the target's format."""
        return _mean(self.formats)

    def group(self, tasks: Sequence[str]) -> float:
        """Return the mean over some tasks of the suite; NaN where one was not measured."""
        return _mean({task: self.tasks.get(task, math.nan) for task in tasks})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """A stage of one seed, as it trained.

    **Attributes:**

    - `label`: of the row that has the stage's weights, else the stage's name.
    - `points`: by step.
    - `alignment`: rows of `step`, the cosines of gradient alignment by block, and by block their
      `standard_error`, if measured.
    """

    label: str
    seed: str
    points: Sequence[CurvePoint]
    alignment: Sequence[Mapping[str, Any]] = ()


def read(words: Sequence[str], rows: Sequence[DiscoveredRun]) -> list[Curve]:
    """Return the curves of every stage in the runs that the words name, as `runs.read` takes them.

    Stages that measured one thing at one step make no curve.
    """
    paths = [runs.path_of(word) for word in words]
    labels = [_labels(path, rows) for path in paths]
    # Runs of the same rows are seeds; in others, stages without a row may only share a name.
    same = all(each == labels[0] for each in labels)
    curves = []
    for path, label in zip(paths, labels, strict=True):
        prefix = "" if same else f"{path.name}: "
        for stage, seed in _stages(path):
            name = label.get(stage.name, prefix + stage.name.replace("_", " "))
            points = _points(stage)
            if len(points) > 1:
                aligned = read_json_lines(stage / runs.ALIGNMENT)
                curves.append(Curve(label=name, seed=seed, points=points, alignment=aligned))
    return curves


def _labels(path: epath.Path, rows: Sequence[DiscoveredRun]) -> dict[str, str]:
    """Return the label of each stage in one run; of several rows with its weights the first."""
    own = [run for run in rows if path in (run.path, *run.path.parents)]
    return {run.stage: run.label for run in reversed(own) if run.stage}


def _mean(scores: Mapping[str, float]) -> float:
    return math.fsum(scores.values()) / len(scores) if scores else math.nan


def by_label(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Return the seeds of each label."""
    found: dict[str, list[Curve]] = {}
    for curve in curves:
        found.setdefault(curve.label, []).append(curve)
    return found


def mean_points(curves: Sequence[Curve]) -> list[CurvePoint]:
    """Return the mean over seeds at each step that all of them have."""
    steps = set.intersection(*({point.step for point in curve.points} for curve in curves))
    at = [{point.step: point for point in curve.points} for curve in curves]
    return [_mean_point(step, [points[step] for points in at]) for step in sorted(steps)]


def _mean_point(step: int, seeds: Sequence[CurvePoint]) -> CurvePoint:
    def over(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
        shared = [task for task in scores[0] if all(task in of_seed for of_seed in scores)]
        return {task: math.fsum(s[task] for s in scores) / len(scores) for task in shared}

    return CurvePoint(
        step=step,
        target=math.fsum(point.target for point in seeds) / len(seeds),
        tasks=over([point.tasks for point in seeds]),
        formats=over([point.formats for point in seeds]),
        drift=math.fsum(point.drift for point in seeds) / len(seeds),
    )


def chosen_drift(stage: epath.Path) -> float:
    """Return the drift of the checkpoint that a stage chose; NaN where it is not known."""
    if not (stage / runs.STAGE).exists():
        return math.nan
    step = read_json(stage / runs.STAGE, dict[str, Any])["step"]
    return _drifts(stage).get(step, math.nan)


def mean_alignment(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return the mean cosines over seeds at each step that all have; empty if one has none.

    Beside them stands the `standard_error` of each block's mean, where all seeds have one: each has
    drawn rows of its own.
    """
    at = [{row["step"]: row for row in curve.alignment} for curve in curves]
    steps = sorted(set.intersection(*(set(rows) for rows in at)))
    return [_mean_row([rows[step] for rows in at]) for step in steps]


def _mean_row(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = [row.get("standard_error", {}) for row in seeds]
    shared = [name for name in seeds[0] if all(name in row for row in seeds)]
    return {
        name: math.fsum(row[name] for row in seeds) / len(seeds)
        for name in shared
        if name != "standard_error"
    } | {
        "standard_error": {
            block: math.sqrt(math.fsum(each[block] ** 2 for each in errors)) / len(seeds)
            for block in errors[0]
            if all(block in each for each in errors)
        }
    }


def _stages(path: epath.Path) -> list[tuple[epath.Path, str]]:
    """Return the stages in a run, with the seed of each."""
    if _is_stage(path):
        return [(path, str(path.parent))]
    found = []
    for home in (path, *(p for p in runs.directories(path) if p.name.startswith("seed_"))):
        seed = home.name.removeprefix("seed_") if home != path else str(path)
        found += [(child, seed) for child in runs.directories(home) if _is_stage(child)]
    return found


def _is_stage(path: epath.Path) -> bool:
    return all((path / name).is_dir() for name in ("train", records.DIRECTORY))


def _points(stage: epath.Path) -> list[CurvePoint]:
    targets, suite = answers.found(stage), answers.found(stage / runs.SUITE)
    share, drifts = _share(targets, suite), _drifts(stage)
    asked = {step for found in (targets, suite) for at in found.values() for step in at}
    steps = sorted(asked | drifts.keys())
    points = []
    for step in steps:
        complete = bool(suite) and all(step in of_task for of_task in suite.values())
        points.append(
            CurvePoint(
                step=step,
                target=_mean(
                    {task: answers.recorded_score(at[step]) for task, at in targets.items()}
                )
                if targets and all(step in at for at in targets.values())
                else math.nan,
                tasks={task: answers.recorded_score(at[step]) for task, at in suite.items()}
                if complete
                else {},
                formats=share(step) if complete else {},
                drift=drifts.get(step, math.nan),
            )
        )
    return points


def _drifts(stage: epath.Path) -> dict[int, float]:
    """Return the drift at each step at which it was measured."""
    rows = read_json_lines(stage / runs.DRIFT)
    return {
        row["step"]: _mean({task: kl for task, kl in row.items() if task != "step"}) for row in rows
    }


Found = Mapping[str, Mapping[int, epath.Path]]


def _share(targets: Found, suite: Found) -> Callable[[int], dict[str, float]]:
    """Return the share of each task's answers in the target's format, as a function of the step."""

    def last(steps: Mapping[int, epath.Path]) -> answers.TaskAnswers:
        return answers.read(steps[max(steps)])

    measure = target_format.of_targets(map(last, targets.values())) if suite else None
    if measure is None:
        return lambda step: {}
    telling = {t: steps for t, steps in suite.items() if target_format.tells(measure, last(steps))}
    return lambda step: {
        task: measure.share(answers.read(steps[step])) for task, steps in telling.items()
    }
