"""The paper's numbers beside those of runs: which rows were made, and where their scores differ."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from promot_t5x import config
from promot_t5x.config import gin_reader
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.files import read_json
from promot_t5x.paths import user_path
from promot_t5x.report import comparison, printed, runs
from promot_t5x.report.comparison import SUITE, TARGET, Column, ComparedRow, RunComparison
from promot_t5x.report.printed import PrintedRow
from promot_t5x.report.rows import FILE, ReportRow
from promot_t5x.report.statistics import bootstrap, significance
from promot_t5x.report.statistics.scores import MeanScore
from promot_t5x.report.statistics.variance import Variance
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.suite import EIGHT

MEAN = "mean"
# Scores of right and wrong answers, whose variance a printed share tells by itself.
_SHARES = ("accuracy", "exact_match")
_FORMAT = "format.Format."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproducedCell:
    """A printed number and a run's.

    **Attributes:**

    - `row`: the paper's.
    - `score`: the task, or `mean`.
    - `printed`: the paper's number, in percent.
    - `made`: the run's.
    - `questions`: how many the run was asked.
    - `p_value`: of the hypothesis that both come from equally good models, see `compare`.
    - `adjusted`: Holm's, over all cells that are compared together.
    """

    row: PrintedRow
    score: str
    printed: float
    made: MeanScore
    questions: int
    p_value: float
    adjusted: float = math.nan


def find(words: Sequence[str]) -> dict[str, epath.Path]:
    """Return the directories of the paper's runs, by the names of their configurations.

    **Arguments:**

    - `words`: `NAME=DIR`, a directory that is called as a configuration, or one that holds such
      directories.

    **Raises:** `UserError` for a word that names no run of the paper, and for a run named twice.
    """
    known = printed.configurations()
    found: dict[str, epath.Path] = {}
    for word in words:
        label, equals, rest = word.partition("=")
        named = bool(equals) and "/" not in label
        path = user_path(rest if named else word, "a run's directory")
        if not path.is_dir():
            raise UserError(f"there is no directory {path}: name the directory of a run.")
        name = label if named else path.name
        places = [path] if named or name in known else runs.directories(path)
        own = {name if place is path else place.name: place for place in places}
        own = {each: place for each, place in own.items() if each in known}
        if not own:
            raise UserError(
                f"{word} is no run of the paper's configurations, and holds none: give a run's "
                f"directory its configuration's name, or write NAME=DIR.{did_you_mean(name, known)}"
                f" There are: {', '.join(known)}."
            )
        for each, place in own.items():
            if found.setdefault(each, place) is not place:
                raise UserError(f"{found[each]} and {place} are both {each}: name each run once.")
    return found


def was_made(row: PrintedRow, run: epath.Path) -> bool:
    """Whether a run's directory has the row's answers to all that the paper printed of it."""
    for path in (*run.glob(f"comparison/*/{FILE}"), *run.glob(f"seed_*/comparison/*/{FILE}")):
        made = read_json(path, ReportRow)
        targets = {_plain(task) for task in made.targets}
        if (
            _short(made.label) == row.label
            and targets >= row.targets.keys()
            and set(_suite(row)) <= made.suite.keys()
        ):
            return True
    return False


def compare(
    run: epath.Path, name: str, *, resamples: int = bootstrap.RESAMPLES
) -> list[ReproducedCell]:
    """Return the cells of a run that the paper prints too.

    The paper states no interval and no answers. Its score is taken for that of one run on other
    questions, as many as the run's: a share of right answers then has a binomial's variance, any
    other score the variance that the run's own questions show, and both have the variance that
    the run's seeds show, if it has several. The difference is tested by its z.

    **Arguments:**

    - `run`: the directory of a `promot` run.
    - `name`: of the configuration whose rows are looked for.
    - `resamples`: of the bootstrap.
    """
    made = comparison.compare(runs.read([str(run)]), resamples=resamples)
    found: list[ReproducedCell] = []
    for row in printed.ROWS:
        mine = [each for each in made.rows if _short(each.label) == row.label]
        if row.configuration == name and mine:
            found += _cells(made, row, mine[0])
    return found


def adjusted(cells: Sequence[ReproducedCell]) -> list[ReproducedCell]:
    """Return the cells with Holm's p-values over all of them whose p-value is known."""
    tested = [cell for cell in cells if not math.isnan(cell.p_value)]
    found = iter(significance.holm([cell.p_value for cell in tested]))
    return [
        cell if math.isnan(cell.p_value) else dataclasses.replace(cell, adjusted=next(found))
        for cell in cells
    ]


def left_open(found: Mapping[str, epath.Path]) -> list[str]:
    """Return what the paper does not state and what was chosen, a sentence each.

    **Arguments:**

    - `found`: runs by the names of their configurations, whose own choices are named.
    """
    text = (config.gin_root() / "paper" / "settings.gin").read_text("utf-8")
    chosen = text.partition("# What is chosen where the paper is silent:\n")[2]
    settings = re.findall(r"^# - (.+(?:\n#   .+)*)", chosen, re.M)
    about = dict(re.findall(r"^    - `(\w+)`: (.+(?:\n      .+)*)", Format.__doc__ or "", re.M))
    lines = [re.sub(r"\n#? +", " ", line) for line in settings]
    bound = {name: _format_of(path) for name, path in found.items()}
    for field in dataclasses.fields(Format):
        own: dict[str, list[str]] = {}
        for name, values in bound.items():
            own.setdefault(values.get(field.name, repr(field.default)), []).append(name)
        if not own:
            own = {repr(field.default): []}
        shown = "; ".join(
            value if len(own) == 1 else f"{value} in {', '.join(names)}"
            for value, names in own.items()
        )
        said = re.sub(r"\s+", " ", about[field.name])
        lines.append(f"{_FORMAT}{field.name} = {shown}: {said}")
    return lines


def _format_of(run: epath.Path) -> dict[str, str]:
    """Return what a run's configuration says of the format, as gin writes it."""
    path = run / "config.gin"
    if not path.exists():
        return {}
    bindings = gin_reader.plain_bindings(path.read_text(), str(path))
    return {
        name.rpartition(".")[2]: str(value)
        for name, value in bindings.items()
        if name.startswith(_FORMAT)
    }


def _cells(made: RunComparison, row: PrintedRow, mine: ComparedRow) -> Iterator[ReproducedCell]:
    suite = _suite(row)
    numbers = dict(zip(suite, row.suite, strict=True))
    for column in made.columns:
        cell = mine.cells.get(column)
        if not isinstance(cell, MeanScore):
            continue
        if column.kind == TARGET and _plain(column.task) in row.targets:
            score, number = _plain(column.task), row.targets[_plain(column.task)]
        elif column.kind == SUITE and column.task in numbers:
            score, number = _plain(column.task), numbers[column.task]
        elif (
            column.kind == comparison.MEAN
            and row.mean is not None
            and sorted(column.tasks) == sorted(suite)
        ):
            score, number = MEAN, row.mean
        else:
            continue
        yield ReproducedCell(
            row=row,
            score=score,
            printed=number,
            made=cell,
            questions=sum(len(mine.runs[0].answers[task].ids) for task in column.tasks),
            p_value=_p_value(cell, number, _questions_variance(made, row, mine, column)),
        )


def _p_value(cell: MeanScore, number: float, theirs: float) -> float:
    """Return the p-value of the difference from a printed number.

    **Arguments:**

    - `theirs`: the variance of the printed number about the choice of questions.
    """
    own, difference = cell.variance, cell.value - number
    both = Variance(
        questions=own.questions + theirs,
        seeds=own.seeds * (1 + len(cell.runs)),  # of the mean of the runs, and of one run
        freedom=own.freedom,
    )
    return both.p_value(difference) if both.questions or both.seeds else 1.0


def _questions_variance(
    made: RunComparison, row: PrintedRow, mine: ComparedRow, column: Column
) -> float:
    """Return the variance of a printed number about the choice of as many questions as the run's.

    **Returns:** squared percentage points; NaN where the run's own is not known.
    """
    printed_scores = {**row.targets, **dict(zip(EIGHT, row.suite, strict=False))}
    found = 0.0
    for each in made.of_kind(TARGET if column.kind == TARGET else SUITE):
        cell = mine.cells.get(each)
        if each.task not in column.tasks or not isinstance(cell, MeanScore):
            continue
        own, share = cell.variance.questions, printed_scores[_plain(each.task)] / 100
        # The largest that a mean of scores from 0 to 100 can have.
        largest = 100**2 * share * (1 - share) / cell.influences.shape[1]
        found += largest if each.score in _SHARES or own == 0 else own
    return found / len(column.tasks) ** 2


def _suite(row: PrintedRow) -> list[str]:
    """Return the names of the tasks that the paper's row was asked in context."""
    return [f"{task}_{row.shots}shot" for task in EIGHT if row.suite]


def _plain(task: str) -> str:
    """Return a task's name without its number of demonstrations."""
    return re.sub(r"_\d+shot$", "", task)


def _short(label: str) -> str:
    """Return a row's label without the words of its run before it."""
    return label.rpartition(": ")[2]
