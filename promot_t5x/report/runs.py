"""Finding the rows of a report: where each model's answers lie, and which tasks are its targets.

A path may be a row of a comparison, a whole `promot` run (all its rows, of all its seeds), what
`eval` wrote, or a stage.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.report import answers
from promot_t5x.report.answers import Answers
from promot_t5x.report.rows import FILE, ReportRow

COMPARISON, STAGE, SUITE = "comparison", "stage.json", "suite_eval"
ALIGNMENT = "gradient_alignment.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One model's answers: a row of the table, for one seed.

    **Attributes:**

    - `label`: of the row; runs of equal label are seeds of one method.
    - `seed`: tells the runs of a label apart, and pairs them with another label's.
    - `path`: where the answers lie.
    - `targets`: its answers to the fine-tuned tasks, by name.
    - `suite`: its answers to the in-context tasks, by name.
    - `stage`: the stage that its weights come from, if it says so.
    """

    label: str
    seed: str
    path: epath.Path
    targets: Mapping[str, Answers]
    suite: Mapping[str, Answers]
    stage: str | None = None


def read(
    words: Sequence[str], *, targets: Sequence[str] = (), step: int | None = None
) -> list[Run]:
    """Read every run that the words name.

    **Arguments:**

    - `words`: paths, or `LABEL=PATH`.
    - `targets`: names of the tasks that are targets, where rows do not say so themselves.
    - `step`: whose answers are read where there are several; by default a stage's chosen step,
      else the last.

    **Raises** `UserError` for a path without answers and for answers that are not whole.
    """
    places = [place for word in words for place in _places(word)]
    known = set(targets).union(*(place.targets or () for place in places))
    runs = [_run(place, known, step) for place in places]
    seen: dict[tuple[str, str], Run] = {}
    for run in runs:
        twin = seen.setdefault((run.label, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{twin.path} and {run.path} are both {run.label!r}, seed {run.seed}: name each "
                "run once, or give one another label, as in LABEL=PATH."
            )
    return runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Place:
    """Where one run's answers lie. `targets` is None where nothing says which they are."""

    label: str
    seed: str
    path: epath.Path
    position: int = 0
    targets: Sequence[str] | None = None
    suite: Sequence[str] | None = None
    stage: str | None = None


def path_of(word: str) -> epath.Path:
    """The path of a word that may be `LABEL=PATH`."""
    return epath.Path(_label_and_path(word)[1]).expanduser()


def _label_and_path(word: str) -> tuple[str | None, str]:
    label, equals, rest = word.partition("=")
    return (label, rest) if equals and "/" not in label else (None, word)


def _places(word: str) -> list[_Place]:
    label, path = _label_and_path(word)[0], path_of(word)
    if not path.exists():
        raise UserError(f"there is no {path}: name the directory of a run.")
    places = _found(path)
    if label is None:
        return places
    if len(places) != 1:
        raise UserError(
            f"{path} holds {len(places)} rows ({', '.join(p.label for p in places)}), and "
            f"{label!r} can name only one: name a row's own directory."
        )
    return [dataclasses.replace(places[0], label=label)]


def _found(path: epath.Path) -> list[_Place]:
    if path.is_file():
        raise UserError(f"{path} is a file: name the directory of a run.")
    if (path / FILE).exists():
        return [_row(path)]
    rows = _rows(path)
    if rows:
        return rows
    if answers.found(path):
        return [_Place(label=path.name, seed=str(path.parent), path=path)]
    inner = [child for child in directories(path) if answers.found(child)]
    if inner:
        return [_Place(label=child.name, seed=str(path), path=child) for child in inner]
    if (path / records.DIRECTORY).is_dir():
        raise UserError(
            f"{path} has no finished task yet: no summary <task>-<step>.json in its "
            f"{records.DIRECTORY}/. Run the evaluation again; it goes on where it was."
        )
    raise UserError(
        f"{path} holds no evaluation: none of {COMPARISON}/, {records.DIRECTORY}/, {FILE}. Name "
        "the directory of a promot run, of one of its rows or stages, or of what eval wrote."
    )


def _rows(run: epath.Path) -> list[_Place]:
    """The rows of a whole run: its own, then each seed's."""
    homes = [run, *(child for child in directories(run) if child.name.startswith("seed_"))]
    rows = []
    for home in homes:
        if not (home / COMPARISON).is_dir():
            continue
        for child in directories(home / COMPARISON):
            if not (child / FILE).exists():
                raise UserError(
                    f"{child} is unfinished: it has no {FILE}. Run `promot-t5x promot` again, "
                    "which goes on where it was."
                )
            rows.append(_row(child))
    return sorted(rows, key=lambda row: row.position)


def _row(path: epath.Path) -> _Place:
    try:
        row = ReportRow(**json.loads((path / FILE).read_text()))
        return _Place(
            label=row.label,
            # A run of its own is a seed of its own.
            seed=str(path.parent.parent if row.seed is None else row.seed),
            path=path,
            position=row.position,
            targets=list(row.targets),
            suite=list(row.suite),
            stage=row.stage,
        )
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(
            f"{path / FILE} is damaged ({type(error).__name__}: {error}): delete it and run "
            "`promot-t5x promot` again."
        ) from error


def _run(place: _Place, known_targets: set[str], step: int | None) -> Run:
    if step is None and (place.path / STAGE).exists():
        step = json.loads((place.path / STAGE).read_text())["step"]
    read = _read_all(place.path, step)
    suite = _read_all(place.path / SUITE, step)
    if place.targets is not None:
        for task in [*place.targets, *(place.suite or ())]:
            if task not in read:
                raise UserError(
                    f"{place.path} says that it has been asked {task}, but there is no summary of "
                    "it: a file is missing. Evaluate again."
                )
        targets = {task: read[task] for task in place.targets}
        suite = {task: read[task] for task in place.suite or ()}
    elif suite:
        targets = read
    else:
        # What is asked behind a prompt is a target; the suite is asked without one.
        targets = {
            task: made
            for task, made in read.items()
            if task in known_targets or made.summary.get("prompt") is not None
        }
        suite = {task: made for task, made in read.items() if task not in targets}
    return Run(
        label=place.label,
        seed=place.seed,
        path=place.path,
        targets=targets,
        suite=suite,
        stage=place.stage,
    )


def _read_all(directory: epath.Path, step: int | None) -> dict[str, Answers]:
    """Every task's answers at `step`, or at its last."""
    made = {}
    for task, steps in answers.found(directory).items():
        if step is not None and step not in steps:
            raise UserError(
                f"{directory} has no answers of {task} at step {step:,}; it has them at "
                f"{', '.join(f'{s:,}' for s in sorted(steps))}. Choose with --step."
            )
        made[task] = answers.read(steps[max(steps) if step is None else step])
    return made


def directories(path: epath.Path) -> list[epath.Path]:
    """The directories in a directory, `seed_2` before `seed_10`."""
    children = (child for child in path.iterdir() if child.is_dir())
    return sorted(children, key=lambda child: _natural(PurePath(child).name))


def _natural(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)
