"""Every number of a report: scores of rows by columns, as means that can be compared."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.progress import Progress
from promot_t5x.report import target_format
from promot_t5x.report.answers import MeanOfRecorded, TaskAnswers
from promot_t5x.report.rows import short_names
from promot_t5x.report.runs import DiscoveredRun
from promot_t5x.report.statistics import bootstrap, estimates
from promot_t5x.report.statistics.estimates import ScoreEstimate
from promot_t5x.report.statistics.scores import MeanScore, ScoreDifference, difference
from promot_t5x.report.target_format import TargetFormat
from promot_t5x.tasks.metrics import Metric

TARGET, SUITE, MEAN, CHANGE, FORMAT = "target", "suite", "mean", "change", "format"
_MANY = 20_000  # answers, from which on progress is shown
_SHOTS = re.compile(r".*_(\d+)shot")

Cell = MeanScore | ScoreDifference


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    **Attributes:**

    - `kind`: `target` or `suite` for a task's, else `mean`, `change` or `format`.
    - `tasks`: the names of the tasks that it is about.
    - `title`: over the column.
    - `score`: what the primary score is called; empty where it is none.
    - `split`: of the data; empty where it is not known or differs between the tasks.
    """

    kind: str
    tasks: tuple[str, ...]
    title: str
    score: str = ""
    split: str = ""

    @property
    def task(self) -> str:
        """The task's name, of a column that is one task's."""
        (task,) = self.tasks
        return task


@dataclasses.dataclass(frozen=True)
class ComparedRow:
    """A model, of one or several seeds, and its cells by column."""

    label: str
    runs: Sequence[DiscoveredRun]
    cells: Mapping[Column, Cell]

    @property
    def seeds(self) -> list[str]:
        """The seeds of its runs, in their order."""
        return [run.seed for run in self.runs]

    def selected(self, column: Column) -> float | None:
        """Return the mean optimism of a score whose questions chose the checkpoint of a run.

        **Returns:** percentage points, NaN where they cannot be computed; None where no checkpoint
        was chosen by these questions.
        """
        if column.kind != TARGET:
            return None
        chosen = [run.selection.optimism for run in self.runs if run.selection]
        found = [optimism[column.task] for optimism in chosen if column.task in optimism]
        return sum(found) / len(found) if found else None

    def over_demonstrations(self, column: Column) -> float | None:
        """Return the standard deviation of a number of the suite over draws of demonstrations.

        **Returns:** percentage points, of several seeds their root mean square; None where the
        suite was asked with one draw alone.
        """
        if column.kind not in (SUITE, MEAN):
            return None
        variances = []
        for run in self.runs:
            draws = [{task: made.score for task, made in run.suite.items()}, *run.redrawn.values()]
            if len(draws) < 2 or any(task not in draw for draw in draws for task in column.tasks):
                return None
            means = [np.mean([draw[task] for task in column.tasks]) for draw in draws]
            variances.append(np.var(means, ddof=1))
        return float(np.sqrt(np.mean(variances)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunComparison:
    """A report's numbers.

    **Attributes:**

    - `rows`: the models, in order.
    - `columns`: targets, suite, and what is made of the suite.
    - `baseline`: the label of the row that changes are counted from.
    - `scores`: every score of a row's run on a task, by (label, seed, kind, task).
    - `measure`: what answers in the target's format are, and `measured` the tasks it is taken on.
    - `groups`: tasks of the suite by the name of the user's group.
    - `notes`: what a reader must know.
    """

    rows: Sequence[ComparedRow]
    columns: Sequence[Column]
    baseline: str
    scores: Mapping[tuple[str, str, str, str], Mapping[str, ScoreEstimate]]
    measure: TargetFormat | None
    measured: Sequence[str]
    groups: Mapping[str, Sequence[str]]
    notes: Sequence[str]

    def row(self, label: str) -> ComparedRow:
        """Return the row of that label; `UserError` if there is none."""
        for row in self.rows:
            if row.label == label:
                return row
        labels = [row.label for row in self.rows]
        raise UserError(
            f"there is no row {label!r} in this report.{did_you_mean(label, labels)} There are: "
            f"{', '.join(map(repr, labels))}."
        )

    def of_kind(self, *kinds: str) -> list[Column]:
        """Return the columns of these kinds."""
        return [column for column in self.columns if column.kind in kinds]


def compare(
    runs: Sequence[DiscoveredRun],
    *,
    baseline: str | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> RunComparison:
    """Compute a report's numbers.

    **Arguments:**

    - `runs`: the models; those of one label are seeds of one row.
    - `baseline`: the label that changes are counted from; by default `pretrained` if there is such
      a row, else the first.
    - `groups`: tasks of the suite, by title or name, of which a mean is to be shown by itself.
    - `seed`, `resamples`: of the bootstrap.

    **Raises:** `UserError` where runs have answered different examples or were scored differently.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    if baseline is not None and baseline not in labels:
        raise UserError(
            f"the baseline {baseline!r} is no row of this report."
            f"{did_you_mean(baseline, labels)} There are: {', '.join(map(repr, labels))}."
        )
    baseline = baseline or ("pretrained" if "pretrained" in labels else labels[0])
    answered = {TARGET: _by_task(runs, TARGET), SUITE: _by_task(runs, SUITE)}
    for tasks in answered.values():
        for of_task in tasks.values():
            _check_alike(of_task)

    measure = target_format.of_targets(
        answers for of_task in answered[TARGET].values() for _, answers in of_task
    )
    measured = [
        task
        for task, of_task in answered[SUITE].items()
        if measure is not None and target_format.tells(measure, of_task[0][1])
    ]
    _score(answered)
    scores = {}
    for kind, tasks in answered.items():
        for task, of_task in tasks.items():
            extra = measure if kind == SUITE and task in measured else None
            made = _estimates(task, [answers for _, answers in of_task], extra, seed, resamples)
            for (run, _), found in zip(of_task, made, strict=True):
                scores[run.label, run.seed, kind, task] = found
    named = _groups(groups or {}, answered[SUITE])
    columns = _columns(answered, measured, named)
    return RunComparison(
        rows=_rows(labels, runs, columns, baseline, scores),
        columns=columns,
        baseline=baseline,
        scores=scores,
        measure=measure,
        measured=measured,
        groups=named,
        notes=[*dict.fromkeys(note for run in runs for note in run.notes), *_notes(answered)],
    )


Answered = list[tuple[DiscoveredRun, TaskAnswers]]


def _by_task(runs: Sequence[DiscoveredRun], kind: str) -> dict[str, Answered]:
    """Return the runs that have answered each task."""
    tasks: dict[str, Answered] = {}
    for run in runs:
        for task, answers in (run.targets if kind == TARGET else run.suite).items():
            tasks.setdefault(task, []).append((run, answers))
    return tasks


def _check_alike(answered: Answered) -> None:
    """Raise `UserError` unless all have answered the same examples, scored in the same way."""
    (first_run, first), *others = answered
    for run, answers in others:
        both = f"{first_run.label!r} ({first.path}) and {run.label!r} ({answers.path})"
        if answers.split != first.split:
            raise UserError(
                f"{first.task}: {both} have answered different splits, {first.split!r} and "
                f"{answers.split!r}. Evaluate both on the same one."
            )
        if answers.ids != first.ids:
            mine, theirs = set(first.ids), set(answers.ids)
            strange = sorted(mine ^ theirs)
            raise UserError(
                f"{first.task}: {both} have not answered the same examples ({len(mine):,} and "
                f"{len(theirs):,}, {len(mine & theirs):,} in both; {strange[0]!r} is in one "
                "alone). Evaluate both on the same split, with the same number of examples."
            )
        specs = [each.summary["metric_specs"] for each in (first, answers)]
        if specs[0] != specs[1]:
            raise UserError(
                f"{first.task}: {both} were scored by different metrics: {_why(*specs)}"
            )


def _why(first: Sequence[Mapping[str, object]], second: Sequence[Mapping[str, object]]) -> str:
    """Return how two evaluations came to have different metrics, and what to do."""
    by_likelihood = [
        any(s.get("metric") == "perplexity" for s in specs) for specs in (first, second)
    ]
    if by_likelihood[0] != by_likelihood[1]:
        return (
            "one has the likelihood of the right answers (DECODING = @decoding.Likelihood()), the "
            "other the model's own answers. Compare evaluations of one DECODING."
        )
    return f"{first} and {second}. Evaluate both with the same task definition and format."


def _score(answered: Mapping[str, Mapping[str, Answered]]) -> None:
    """Score all answers again, and show how far: it takes minutes for full test sets."""
    every = [answers for tasks in answered.values() for by in tasks.values() for _, answers in by]
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
    answered: Sequence[TaskAnswers],
    measure: TargetFormat | None,
    seed: int,
    resamples: int,
) -> list[dict[str, ScoreEstimate]]:
    first = answered[0]
    scored: list[tuple[Metric, np.ndarray]] = [
        (metric, np.stack([answers.statistics[i] for answers in answered]))
        for i, metric in enumerate(first.metrics)
    ]
    plain = first.primary is not None and not _has_sums(first)
    if plain and all(answers.is_mean for answers in answered):
        mean = MeanOfRecorded(str(first.primary))
        each = [list(answers.example_scores) for answers in answered]
        scored.append((mean, np.stack([mean.example_statistics(s, s) for s in each])))
        plain = False
    if measure is not None:
        rows = [measure.example_statistics(a.answers, a.answers) for a in answered]
        scored.append((measure, np.stack(rows)))
    made: list[dict[str, ScoreEstimate]] = [{} for _ in answered]
    if scored:
        made = estimates.of_task(
            task, scored, questions=first.questions, seed=seed, resamples=resamples
        )
    for found, answers in zip(made if plain else (), answered, strict=False):
        found[str(first.primary)] = estimates.fixed(answers.score, first.distinct, resamples)
    return made


def _has_sums(answers: TaskAnswers) -> bool:
    """Whether the primary score is a function of sums, and not a user's plain function."""
    return any(answers.primary in metric.scores for metric in answers.metrics)


def _groups(
    groups: Mapping[str, Sequence[str]], suite: Mapping[str, Answered]
) -> dict[str, list[str]]:
    """Return the user's groups with the tasks' full names."""
    full = dict(zip(short_names(list(suite)), suite, strict=True)) | {task: task for task in suite}
    for name, tasks in groups.items():
        for task in tasks:
            if task not in full:
                raise UserError(
                    f"the group {name!r} names {task!r}, which is no task of the suite."
                    f"{did_you_mean(task, full)} There are: {', '.join(short_names(list(suite)))}."
                )
    return {name: [full[task] for task in tasks] for name, tasks in groups.items()}


def _columns(
    answered: Mapping[str, Mapping[str, Answered]],
    measured: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> list[Column]:
    columns = []
    for kind, tasks in answered.items():
        titles = list(tasks) if kind == TARGET else short_names(list(tasks))
        for (task, of_task), title in zip(tasks.items(), titles, strict=True):
            first = of_task[0][1]
            columns.append(Column(kind, (task,), title, first.primary or "", first.split))

    def split(tasks: Sequence[str]) -> str:
        splits = {answered[SUITE][task][0][1].split for task in tasks}
        return splits.pop() if len(splits) == 1 else ""

    for name, suite in _suites(list(answered[SUITE])).items():
        columns.append(Column(MEAN, tuple(suite), f"mean{name}", split=split(suite)))
        columns.append(Column(CHANGE, tuple(suite), f"change{name}", split=split(suite)))
    for name, group in groups.items():
        columns.append(Column(MEAN, tuple(group), f"mean of {name}", split=split(group)))
    if measured:
        columns.append(Column(FORMAT, tuple(measured), "target's format", split=split(measured)))
    return columns


def _suites(tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return the tasks of each suite: of one, or of one for each number of demonstrations."""
    suites: dict[str, list[str]] = {}
    for task in tasks:
        match = _SHOTS.fullmatch(task)
        suites.setdefault(f", {match[1]}-shot" if match else ", 0-shot", []).append(task)
    return {"": list(tasks)} if len(suites) == 1 else suites


def _rows(
    labels: Sequence[str],
    runs: Sequence[DiscoveredRun],
    columns: Sequence[Column],
    baseline: str,
    scores: Mapping[tuple[str, str, str, str], Mapping[str, ScoreEstimate]],
) -> list[ComparedRow]:
    of_label = {label: [run for run in runs if run.label == label] for label in labels}
    primary = {column.tasks[0]: column.score for column in columns if column.kind == SUITE}

    def cell(label: str, column: Column) -> MeanScore | None:
        """Return the row's mean over its seeds; none where a seed lacks a number."""
        made = []
        for run in of_label[label]:
            of_run = {}
            for task in column.tasks:
                kind = TARGET if column.kind == TARGET else SUITE
                found = scores.get((label, run.seed, kind, task), {})
                name = column.score or primary[task]
                if column.kind == FORMAT:
                    (name,) = TargetFormat.scores
                if name not in found:
                    return None
                of_run[task] = found[name]
            made.append(of_run)
        return MeanScore(made)

    rows = []
    for label in labels:
        cells: dict[Column, Cell] = {}
        for column in columns:
            own = cell(label, column)
            if column.kind != CHANGE:
                cells |= {column: own} if own is not None else {}
                continue
            base = cell(baseline, column)
            if label != baseline and own is not None and base is not None:
                seeds = tuple([run.seed for run in of_label[each]] for each in (baseline, label))
                cells[column] = difference(base, own, seeds=(seeds[0], seeds[1]))
        rows.append(ComparedRow(label, of_label[label], cells))
    return rows


def _notes(answered: Mapping[str, Mapping[str, Answered]]) -> list[str]:
    notes = [
        f"{task}: how often the suite is answered in its language, {language!r}, is not known: "
        "py3langid (`pip install 'promot-t5x[languages]'`) is not there, or does not know it."
        for task, of_task in answered[TARGET].items()
        if (language := target_format.unidentified(of_task[0][1])) is not None
    ]
    for tasks in answered.values():
        for task, of_task in tasks.items():
            first = of_task[0][1]
            texts = zip(*(answers.asked for _, answers in of_task), strict=True)
            differ = sum(len(set(each)) > 1 for each in texts)
            if differ:
                notes.append(
                    f"{task}: {differ:,} of {len(first.asked):,} questions were not put to all "
                    "rows in the same words (another token budget, format or dialect)."
                )
            if first.questions is not None:
                notes.append(
                    f"{task}: {first.distinct:,} different questions among {len(first.asked):,} "
                    "examples; equal ones are resampled together."
                )
            if first.primary and not (_has_sums(first) or all(a.is_mean for _, a in of_task)):
                notes.append(
                    f"{task}: {first.primary} has no interval, as its metric is a function that is "
                    "no mean over examples; a promot_t5x.tasks.metrics.Metric has one."
                )
    return notes
