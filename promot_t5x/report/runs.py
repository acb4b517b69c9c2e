"""Finding the rows of a report: where each model's answers lie, and which tasks are its targets.

A path may be a row of a comparison, a whole `promot` run (all its rows, of all its seeds), what
`eval` wrote, or a stage. `seeds` decides which of the runs found here are seeds of one row.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.files import read_json
from promot_t5x.paths import user_path
from promot_t5x.report import answers, selection
from promot_t5x.report.answers import TaskAnswers
from promot_t5x.report.rows import FILE, REDRAWN, ReportRow
from promot_t5x.report.selection import Selection

COMPARISON, STAGE, SUITE = "comparison", "stage.json", "suite_eval"
ALIGNMENT, DRIFT = "gradient_alignment.jsonl", "drift.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoveredRun:
    """The answers of one model: a row of the table, for one seed.

    **Attributes:**

    - `label`: of the row; runs of equal label are seeds of one method.
    - `seed`: tells the runs of a label apart, and pairs them with another label's.
    - `path`: where the answers lie.
    - `targets`: its answers to the fine-tuned tasks, by name.
    - `suite`: its answers to the in-context tasks, by name.
    - `stage`: the stage that its weights come from, if it says so.
    - `share`: of the stage's weights, where the row mixes them with the base's.
    - `named`: whether the user gave the label.
    - `selection`: how its checkpoint was chosen, if by questions that are reported on too.
    - `redrawn`: by the seed that drew other demonstrations, the scores of the suite's tasks.
    - `notes`: what a reader must know about its label.
    """

    label: str
    seed: str
    path: epath.Path
    targets: Mapping[str, TaskAnswers]
    suite: Mapping[str, TaskAnswers]
    stage: str | None = None
    share: float | None = None
    named: bool = False
    selection: Selection | None = None
    redrawn: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def answers(self) -> dict[str, TaskAnswers]:
        """All its answers by task."""
        return {**self.targets, **self.suite}


def read(
    words: Sequence[str], *, targets: Sequence[str] = (), step: int | None = None
) -> list[DiscoveredRun]:
    """Read every run that the words name, those of one label being seeds of one method.

    **Arguments:**

    - `words`: paths, or `LABEL=PATH`.
    - `targets`: names of the tasks that are targets, where rows do not say so themselves.
    - `step`: whose answers are read where there are several; by default a stage's chosen step,
      else the last.

    **Raises:** `UserError` for a path without answers, for answers that are not complete, and for
    runs that the user gave one label although they are not seeds of one method.
    """
    from promot_t5x.report import seeds

    places = [place for word in words for place in _places(word)]
    seen: dict[tuple[str, str], _Place] = {}
    for place in places:
        if seen.setdefault((str(place.path), place.label), place) is not place:
            raise UserError(f"{place.path} is named twice: name each run once.")
    read_all = [(place, *_read_place(place, step)) for place in places]
    known = set(targets).union(*(place.targets or () for place in places))
    known |= _asked_behind_a_prompt([made for place, made, _ in read_all if place.targets is None])
    return seeds.grouped([_run(place, made, suite, known) for place, made, suite in read_all])


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
    share: float | None = None
    named: bool = False


def path_of(word: str) -> epath.Path:
    """Return the path of a word that may be `LABEL=PATH`."""
    return user_path(_label_and_path(word)[1], "a run's directory")


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
    if len({place.label for place in places}) == 1:
        return [dataclasses.replace(place, label=label, named=True) for place in places]
    return [
        dataclasses.replace(place, label=f"{label}: {place.label}", named=True) for place in places
    ]


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
            f"{records.DIRECTORY}/. Run the evaluation again; it resumes where it was."
        )
    raise UserError(
        f"{path} holds no evaluation: none of {COMPARISON}/, {records.DIRECTORY}/, {FILE}. Name "
        "the directory of a promot run, of one of its rows or stages, or of what eval wrote."
    )


def _rows(run: epath.Path) -> list[_Place]:
    """Return the rows of a whole run: its own, then each seed's."""
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
            share=row.share,
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path / FILE} is damaged ({type(error).__name__}: {error}): delete it and run "
            "`promot-t5x promot` again."
        ) from error


Read = dict[str, TaskAnswers]


def _read_place(place: _Place, step: int | None) -> tuple[Read, Read]:
    """Return the answers in a place and, of a stage, those to its suite."""
    if step is None and (place.path / STAGE).exists():
        step = read_json(place.path / STAGE, dict[str, Any])["step"]
    made, suite = _read_all(place.path, step), _read_all(place.path / SUITE, step)
    for task in [*(place.targets or ()), *(place.suite or ())]:
        if task not in made:
            raise UserError(
                f"{place.path} says that it has been asked {task}, but there is no summary of "
                "it: a file is missing. Evaluate again."
            )
    return made, suite


def _asked_behind_a_prompt(found: Sequence[Read]) -> set[str]:
    """Return the tasks that runs show to be targets, by evaluating them behind a prompt.

    The suite is evaluated without one as a rule. Where every one of several tasks was evaluated
    both ways, prompt kept and prompt removed, that shows nothing.
    """
    behind: set[str] = set()
    without: set[str] = set()
    for made in found:
        for task, each in made.items():
            (without if each.summary.get("prompt") is None else behind).add(task)
    return set() if behind == without and len(behind) > 1 else behind


def _run(place: _Place, made: Read, suite: Read, known: set[str]) -> DiscoveredRun:
    if place.targets is not None:
        targets = {task: made[task] for task in place.targets}
        suite = {task: made[task] for task in place.suite or ()}
    elif suite:
        targets = made
    else:
        targets = {task: each for task, each in made.items() if task in known}
        suite = {task: each for task, each in made.items() if task not in known}
    stage = place.path
    if place.stage is not None:
        stage = place.path.parent.parent / place.stage
    return DiscoveredRun(
        label=place.label,
        seed=place.seed,
        path=place.path,
        targets=targets,
        suite=suite,
        stage=place.stage,
        share=place.share,
        named=place.named,
        selection=selection.found(stage, targets),
        redrawn=_redrawn(place.path),
    )


def _redrawn(row: epath.Path) -> dict[str, dict[str, float]]:
    """Return the suite's scores after the demonstrations of other seeds, by seed."""
    return {
        child.name.removeprefix(REDRAWN): {
            task: answers.recorded_score(steps[max(steps)])
            for task, steps in answers.found(child).items()
        }
        for child in directories(row)
        if child.name.startswith(REDRAWN)
    }


def _read_all(directory: epath.Path, step: int | None) -> Read:
    """Return every task's answers at `step`, or at its last."""
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
    """Return the directories in a directory, `seed_2` before `seed_10`."""
    children = (child for child in path.iterdir() if child.is_dir())
    return sorted(children, key=lambda child: _natural(PurePath(child).name))


def _natural(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)
