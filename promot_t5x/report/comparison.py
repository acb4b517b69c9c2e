"""Every number of a report: scores of rows by columns, as estimates that can be compared."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.progress import Progress
from promot_t5x.report import target_format
from promot_t5x.report.answers import Answers, MeanOfRecorded
from promot_t5x.report.rows import short_names
from promot_t5x.report.runs import Run
from promot_t5x.report.statistics import bootstrap, estimates
from promot_t5x.report.statistics.bootstrap import Interval
from promot_t5x.report.statistics.estimates import Estimate
from promot_t5x.report.statistics.seeds import OverSeeds, over_seeds
from promot_t5x.report.target_format import TargetFormat
from promot_t5x.tasks.metrics import Metric

TARGET, SUITE = "target", "suite"
_MANY = 20_000  # answers, from which on progress is shown


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    **Attributes:**

    - `kind`: `target` or `suite` for a task's, else `mean`, `change` or `format`.
    - `task`: its name, where it is a task's.
    - `title`: over the column.
    - `score`: what the primary score is called; empty where it is none.
    """

    kind: str
    task: str
    title: str
    score: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A number of a row: one estimate a seed, of the same examples.

    **Attributes:**

    - `share`: whether it lies between 0 and 100, as a score does and a change does not.
    """

    runs: Sequence[Estimate]
    share: bool = True

    @functools.cached_property
    def estimate(self) -> Estimate:
        """The mean over the seeds; its interval is about the choice of examples."""
        return estimates.mean(self.runs)

    @functools.cached_property
    def seeds(self) -> OverSeeds:
        """The mean over the seeds; its interval is about the choice of seeds."""
        return over_seeds([run.value for run in self.runs])

    @property
    def value(self) -> float:
        """The mean over the seeds, in percent."""
        return self.estimate.value

    @property
    def interval(self) -> Interval:
        """What a table shows: over seeds where there are several, else over examples."""
        if len(self.runs) == 1:
            return self.estimate.interval
        # Student's t knows of no bounds.
        low, high = self.seeds.interval
        return Interval(max(low, 0.0), min(high, 100.0)) if self.share else Interval(low, high)


@dataclasses.dataclass(frozen=True)
class Row:
    """A model, of one or several seeds, and its cells by column."""

    label: str
    runs: Sequence[Run]
    cells: Mapping[Column, Cell]

    @property
    def seeds(self) -> list[str]:
        """Of its runs, in their order."""
        return [run.seed for run in self.runs]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A report's numbers.

    **Attributes:**

    - `columns`: targets, suite, and what is made of the suite.
    - `baseline`: the label of the row that changes are counted from.
    - `scores`: every score of a row's run on a task, by (label, seed, kind, task).
    - `measure`: what answers in the target's format are, and `measured` the tasks it is taken on.
    - `notes`: what a reader must know.
    """

    rows: Sequence[Row]
    columns: Sequence[Column]
    baseline: str
    scores: Mapping[tuple[str, str, str, str], Mapping[str, Estimate]]
    measure: TargetFormat | None
    measured: Sequence[str]
    notes: Sequence[str]

    def row(self, label: str) -> Row:
        """The row of that label; `UserError` if there is none."""
        for row in self.rows:
            if row.label == label:
                return row
        labels = [row.label for row in self.rows]
        raise UserError(
            f"there is no row {label!r} in this report.{did_you_mean(label, labels)} There are: "
            f"{', '.join(map(repr, labels))}."
        )

    def of_kind(self, *kinds: str) -> list[Column]:
        """The columns of these kinds."""
        return [column for column in self.columns if column.kind in kinds]


def compare(
    runs: Sequence[Run],
    *,
    baseline: str | None = None,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> Comparison:
    """Compute a report's numbers.

    **Arguments:**

    - `baseline`: the label that changes are counted from; by default `pretrained` if there is such
      a row, else the first.
    - `seed`, `resamples`: of the bootstrap.

    **Raises** `UserError` where runs have answered different examples or were scored differently.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    if baseline is not None and baseline not in labels:
        raise UserError(
            f"the baseline {baseline!r} is no row of this report."
            f"{did_you_mean(baseline, labels)} There are: {', '.join(map(repr, labels))}."
        )
    baseline = baseline or ("pretrained" if "pretrained" in labels else labels[0])
    asked = {TARGET: _by_task(runs, TARGET), SUITE: _by_task(runs, SUITE)}
    for tasks in asked.values():
        for answered in tasks.values():
            _check_alike(answered)

    measure = target_format.of_targets(
        answers for answered in asked[TARGET].values() for _, answers in answered
    )
    measured = [
        task
        for task, answered in asked[SUITE].items()
        if measure is not None and target_format.tells(measure, answered[0][1])
    ]
    _score(asked)
    scores = {}
    for kind, tasks in asked.items():
        for task, answered in tasks.items():
            extra = measure if kind == SUITE and task in measured else None
            made = _estimates(task, [answers for _, answers in answered], extra, seed, resamples)
            for (run, _), found in zip(answered, made, strict=True):
                scores[run.label, run.seed, kind, task] = found
    columns = _columns(asked, bool(measured))
    rows = _rows(labels, runs, columns, baseline, scores, measured)
    return Comparison(
        rows=rows,
        columns=columns,
        baseline=baseline,
        scores=scores,
        measure=measure,
        measured=measured,
        notes=_notes(asked),
    )


Answered = list[tuple[Run, Answers]]


def _by_task(runs: Sequence[Run], kind: str) -> dict[str, Answered]:
    """Who has answered each task."""
    tasks: dict[str, Answered] = {}
    for run in runs:
        for task, answers in (run.targets if kind == TARGET else run.suite).items():
            tasks.setdefault(task, []).append((run, answers))
    return tasks


def _check_alike(answered: Answered) -> None:
    """The same examples, scored in the same way."""
    (first_run, first), *others = answered
    for run, answers in others:
        if answers.ids != first.ids:
            mine, theirs = set(first.ids), set(answers.ids)
            strange = sorted(mine ^ theirs)
            raise UserError(
                f"{first.task}: {first_run.label!r} ({first.path}) and {run.label!r} "
                f"({answers.path}) have not answered the same examples ({len(mine):,} and "
                f"{len(theirs):,}, {len(mine & theirs):,} in both; {strange[0]!r} is in one "
                "alone). Evaluate both on the same split, with the same number of examples."
            )
        if answers.summary["metric_specs"] != first.summary["metric_specs"]:
            raise UserError(
                f"{first.task}: {first_run.label!r} ({first.path}) and {run.label!r} "
                f"({answers.path}) were scored by different metrics: "
                f"{first.summary['metric_specs']} and {answers.summary['metric_specs']}. Evaluate "
                "both with the same task definition and format."
            )


def _score(asked: Mapping[str, Mapping[str, Answered]]) -> None:
    """Score all answers again, and show how far: it takes minutes for full test sets."""
    every = [answers for tasks in asked.values() for by in tasks.values() for _, answers in by]
    total, done = sum(len(answers.ids) for answers in every), 0
    progress = Progress("scoring the answers again", total)
    for answers in every:
        _ = answers.statistics
        done += len(answers.ids)
        if total >= _MANY:
            progress.update(done, answers.task)
    progress.close()


def _estimates(
    task: str,
    answered: Sequence[Answers],
    measure: TargetFormat | None,
    seed: int,
    resamples: int,
) -> list[dict[str, Estimate]]:
    scored: list[tuple[Metric, np.ndarray]] = [
        (metric, np.stack([answers.statistics[i] for answers in answered]))
        for i, metric in enumerate(answered[0].metrics)
    ]
    primary = answered[0].primary
    plain = primary is not None and not _has_sums(answered[0])
    if plain and all(answers.is_mean for answers in answered):
        mean = MeanOfRecorded(str(primary))
        each = [list(answers.example_scores) for answers in answered]
        scored.append((mean, np.stack([mean.example_statistics(s, s) for s in each])))
        plain = False
    if measure is not None:
        rows = [measure.example_statistics(a.answers, a.answers) for a in answered]
        scored.append((measure, np.stack(rows)))
    made: list[dict[str, Estimate]] = [{} for _ in answered]
    if scored:
        made = estimates.of_task(task, scored, seed=seed, resamples=resamples)
    for found, answers in zip(made if plain else (), answered, strict=False):
        found[str(primary)] = estimates.fixed(answers.score, task, resamples)
    return made


def _has_sums(answers: Answers) -> bool:
    """Whether the primary score is a function of sums, and not a user's plain function."""
    return any(answers.primary in metric.scores for metric in answers.metrics)


def _columns(asked: Mapping[str, Mapping[str, Answered]], formats: bool) -> list[Column]:
    columns = []
    for kind, tasks in asked.items():
        titles = list(tasks) if kind == TARGET else short_names(list(tasks))
        for (task, answered), title in zip(tasks.items(), titles, strict=True):
            columns.append(Column(kind, task, title, answered[0][1].primary or ""))
    if asked[SUITE]:
        columns.append(Column("mean", "", "mean"))
        columns.append(Column("change", "", "change"))
    if formats:
        columns.append(Column("format", "", "target's format"))
    return columns


def _rows(
    labels: Sequence[str],
    runs: Sequence[Run],
    columns: Sequence[Column],
    baseline: str,
    scores: Mapping[tuple[str, str, str, str], Mapping[str, Estimate]],
    measured: Sequence[str],
) -> list[Row]:
    of_label = {label: [run for run in runs if run.label == label] for label in labels}
    suite = [column for column in columns if column.kind == SUITE]

    def primary(run: Run, column: Column) -> Estimate | None:
        found = scores.get((run.label, run.seed, column.kind, column.task), {})
        return found.get(column.score)

    def suite_mean(run: Run) -> Estimate | None:
        return _mean([primary(run, column) for column in suite])

    def share(run: Run) -> Estimate | None:
        return _mean(
            [scores.get((run.label, run.seed, SUITE, t), {}).get("target_format") for t in measured]
        )

    def change(run: Run) -> Estimate | None:
        if run.label == baseline:
            return None
        bases = of_label[baseline]
        same = [base for base in bases if base.seed == run.seed]
        base = _mean([suite_mean(base) for base in same or bases])
        own = suite_mean(run)
        return None if base is None or own is None else own - base

    makers = {"mean": suite_mean, "change": change, "format": share}
    rows = []
    for label in labels:
        cells = {}
        for column in columns:
            make = makers.get(column.kind) or functools.partial(primary, column=column)
            found = [make(run) for run in of_label[label]]
            # A row of which a seed lacks a number has no mean of it.
            if whole := [estimate for estimate in found if estimate is not None]:
                if len(whole) == len(found):
                    cells[column] = Cell(whole, share=column.kind != "change")
        rows.append(Row(label, of_label[label], cells))
    return rows


def _mean(parts: Iterable[Estimate | None]) -> Estimate | None:
    listed = list(parts)
    whole = [part for part in listed if part is not None]
    return estimates.mean(whole) if whole and len(whole) == len(listed) else None


def _notes(asked: Mapping[str, Mapping[str, Answered]]) -> list[str]:
    notes = []
    for tasks in asked.values():
        for task, answered in tasks.items():
            asked_as = zip(*(answers.asked for _, answers in answered), strict=True)
            differ = sum(len(set(texts)) > 1 for texts in asked_as)
            if differ:
                notes.append(
                    f"{task}: {differ:,} of {len(answered[0][1].asked):,} questions were not put "
                    "to all rows in the same words (another room, format or dialect)."
                )
            first = answered[0][1]
            if first.primary and not (_has_sums(first) or all(a.is_mean for _, a in answered)):
                notes.append(
                    f"{task}: {first.primary} has no interval, as its metric is a function that is "
                    "no mean over examples; a promot_t5x.tasks.metrics.Metric has one."
                )
    return notes
