"""`promot-t5x tasks check`: whether a user's own tasks are fit to be trained on and scored.

Every split is read, and the questions' own answers are scored as if a model had given them: they
must get the top score, and empty answers must not.
"""

import argparse
import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from promot_t5x import quiet
from promot_t5x.cli.tasks_questions import (
    Asking,
    asking,
    default_split,
    spoken_answer_of,
)
from promot_t5x.data import sources
from promot_t5x.data.lazy import import_seqio
from promot_t5x.data.questions import Question, answer_text
from promot_t5x.errors import UserError, listed
from promot_t5x.evaluation.target_checks import check_targets
from promot_t5x.tasks import normal_form, ranking, registry
from promot_t5x.tasks.metrics import numbers
from promot_t5x.tasks.templates import Choice

# What the project's own metrics report about the answers besides how good they are.
_BEST_AT_ZERO = ("rouge_blank_targets",)
_SHOTS = re.compile(r"_\d+shot$")
_ROWS_WITH_SHOTS = 3
_NAMED = 3
# The share of answers that may be longer than output_length before that is a problem.
_TOLERATED = 0.01


def check(arguments: argparse.Namespace) -> int:
    """Print a summary and return 0, or the list of problems and return 1."""
    how = asking(arguments)
    names = _names(arguments.subject, arguments.module)
    problems, facts = [], []
    for name in names:
        with quiet.imports():
            report = check_task(how, name, arguments.n)
        problems += [f"{name}: {problem}" for problem in report.problems]
        facts.append(f"  {name}: {'; '.join(report.facts)}")
    if not names:
        problems.append("it registers no task: call `register(...)` when the module is imported")
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) != 1)}"
        print(f"{arguments.subject}: {count}", *problems, sep="\n- ")
        return 1
    print(f"{arguments.subject}: no problems", *facts, sep="\n")
    return 0


class Report:
    """What was found of a task: `problems`, and `facts` that are none, in words."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.facts: list[str] = []

    def call(self, said: str, function: Callable[[], Any]) -> Any:
        """Return what `function` returns; None and a problem if it fails in whatever way."""
        try:
            return function()
        except UserError as error:
            self.problems.append(str(error))
        # The user's own code runs here, and a problem of it is what is looked for.
        except Exception as error:
            self.problems.append(f"{said}: {type(error).__name__}: {_first_line(error)}")
        return None


def _names(subject: str, module: str | None) -> list[str]:
    """Return the tasks behind a name, or those that a module registers."""
    if module:
        sources.import_task_module(module)
    if subject.endswith(".py") or subject not in set(_known_names()):
        return _registered_by(subject)
    return list(registry.get_mixture(subject).rates) if registry.is_mixture(subject) else [subject]


def _known_names() -> Iterator[str]:
    seqio = import_seqio()
    yield from (*registry.names(), *seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names())


def _registered_by(module: str) -> list[str]:
    """Names of what importing the module registers, here and with SeqIO; listed shots left out."""
    before = set(_all_names())
    sources.import_task_module(module)
    return [name for name in _all_names() if name not in before]


def _all_names() -> Iterator[str]:
    seqio = import_seqio()
    ours = registry.names()
    # `x_4shot` is `x` asked in another way.
    yield from (name for name in ours if _SHOTS.sub("", name) not in set(ours) - {name})
    yield from seqio.TaskRegistry.names()
    yield from seqio.MixtureRegistry.names()


def check_task(how: Asking, name: str, limit: int) -> Report:
    """Return what is found of a task or mixture of that name.

    **Arguments:**

    - `how`: how it is asked.
    - `limit`: how many examples of each split are read.
    """
    report = Report()
    tasks = report.call("it cannot be built", lambda: how.tasks(name, shots=None, module=None))
    if tasks is None:
        return report
    if len(tasks) > 1 or tasks[0].name != name:
        report.facts.append(f"a mixture of {', '.join(task.name for task in tasks)}")
        return report
    _check_one(how, tasks[0], limit, report)
    return report


def _check_one(how: Asking, task: Any, limit: int, report: Report) -> None:
    read = {split: _read(how, task, split, limit, report) for split in task.splits}
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in read.items())
    report.facts.append(f"{counts} examples read")
    for split, questions in read.items():
        _check_rows(split, questions, report)
    definition = task.definition
    if definition is not None:
        _check_labels(definition, read, limit, report)
        _check_output_length(how, definition, read, report)
    for split, questions in read.items():
        # Rows that are only trained on need nothing to be compared with.
        if split in (task.scored_split, default_split(task)):
            report.call("", functools.partial(check_targets, task, split, questions))
    splits = [default_split(task), *task.splits]
    scored = next((read[split] for split in splits if read[split]), None)
    if scored is not None:
        _check_scores(how, task, scored, report)
    if definition is not None and all(read.values()):
        _check_shots(how, definition, report)


def _read(how: Asking, task: Any, split: str, limit: int, report: Report) -> list[Question]:
    return (
        report.call(
            f"its split {split!r} cannot be read", lambda: how.questions(task, split, limit)
        )
        or []
    )


def _check_rows(split: str, questions: Sequence[Question], report: Report) -> None:
    ids = collections.Counter(question.id for question in questions)
    again = [f"{name!r} ({count} times)" for name, count in ids.items() if count > 1]
    if again:
        report.problems.append(f"ids of {split!r} are not unique: {listed(again, _NAMED)}")
    for said, blank in (
        ("question", [q.id for q in questions if not q.text.strip()]),
        ("answer", [q.id for q in questions if not answer_text(q).strip()]),
    ):
        if blank:
            named = listed(blank, _NAMED)
            report.problems.append(f"{split!r} has rows with an empty {said}: ids {named}")


def _check_labels(
    definition: registry.TaskDef, read: dict[str, list[Question]], limit: int, report: Report
) -> None:
    answer = definition.template.answer if definition.template else None
    if not isinstance(answer, Choice):
        return
    for split, questions in read.items():
        seen = {answer_text(question) for question in questions}
        missing = [word for word in answer.words if word not in seen]
        # Of a split that was not read to its end, some classes may stand in the rest.
        if questions and missing and len(questions) < limit:
            report.problems.append(
                f"no row of {split!r} has the label{'s' * (len(missing) > 1)} "
                f"{listed(missing, _NAMED)}: "
                f"is {list(answer.words)} what the field {answer.field!r} counts?"
            )
    report.facts.append(f"labels {', '.join(answer.words)}")


def _check_output_length(
    how: Asking, definition: registry.TaskDef, read: dict[str, list[Question]], report: Report
) -> None:
    limit = definition.answer_limit(how.vocabulary, how.dialect)
    if how.unit != "tokens" or limit is None or definition.candidates:
        return
    lengths = [len(q.example["targets"]) for questions in read.values() for q in questions]
    beyond = sum(length > limit for length in lengths)
    if not beyond:
        return
    share = f"{beyond:,} of {len(lengths):,} answers ({beyond / len(lengths):.1%})"
    if beyond > _TOLERATED * len(lengths):
        report.problems.append(
            f"its longest answer has {max(lengths)} tokens, but output_length is only {limit}, "
            f"which cuts {share} short"
        )
    else:
        report.facts.append(f"output_length {limit} cuts {share} short")


def _check_shots(how: Asking, definition: registry.TaskDef, report: Report) -> None:
    if definition.shots or definition.shots_split not in definition.splits:
        report.facts.append("no demonstrations: no split to draw them from")
        return
    split = definition.splits[-1]

    def shown() -> Sequence[Question]:
        (task,) = how.tasks(definition.name, shots=1, module=None)
        return how.questions(task, split, _ROWS_WITH_SHOTS)

    report.call("with one demonstration it cannot be read", shown)


def _check_scores(how: Asking, task: Any, questions: Sequence[Question], report: Report) -> None:
    definition = task.definition
    process = task.task.postprocess_fn
    metrics = task.task.predict_metric_fns
    if not metrics:
        report.problems.append("it has no metric functions over predictions, so no score")
        return

    targets = report.call(
        "its right answers cannot be read",
        lambda: [process(q.answer, example=q.example, is_target=True) for q in questions],
    )
    if targets is None:
        return

    def values(predictions: Sequence[Any]) -> dict[str, float]:
        found: dict[str, float] = {}
        for metric in metrics:
            found |= numbers(metric(targets, predictions))[0]
        return found

    def scored(said: Callable[[Question], str]) -> dict[str, float]:
        return values([process(said(q), example=q.example, is_target=False) for q in questions])

    def written(question: Question) -> str:
        return how.dialect.target(normal_form.normal_form(how.vocabulary, answer_text(question)))

    if definition is not None and definition.candidates:
        _check_ranking(questions, values, report)
        return
    compares_forms = definition is not None and definition.normal_form
    right_answer = written if compares_forms else spoken_answer_of
    right = report.call("scoring its own answers fails", lambda: scored(right_answer))
    empty = report.call("scoring empty answers fails", lambda: scored(lambda _: ""))
    if right is None or empty is None:
        return
    if not right:
        report.problems.append("its metrics return no number, so it has no score")
        return
    primary = next(iter(right))
    report.facts.append(
        f"{primary} {right[primary]:g} for its own answers, {empty[primary]:g} for empty ones"
    )
    _check_writing(how, questions, lambda: scored(written)[primary], right[primary], report)
    if definition is not None:
        # Not all metrics give a right answer 100: ROUGE-2 of a single word is 0.
        best = values([target[0] if isinstance(target, list) else target for target in targets])
        _check_percentages(right, best, empty, report)
    elif not (math.isfinite(right[primary]) and right[primary] > empty[primary]):
        report.problems.append(
            f"its own answers score {primary} {right[primary]:g}, no better than empty ones "
            f"({empty[primary]:g})"
        )


def _check_ranking(
    questions: Sequence[Question],
    values: Callable[[Sequence[Any]], dict[str, float]],
    report: Report,
) -> None:
    """Score a model that is sure of every right candidate, and one that is sure they are wrong."""

    def scored(right: bool) -> dict[str, float]:
        return values([ranking.certain(q.example, right=right) for q in questions])

    right = report.call("scoring its right candidates fails", lambda: scored(True))
    wrong = report.call("scoring its wrong candidates fails", lambda: scored(False))
    if not right or not wrong:
        return
    primary = next(iter(right))
    report.facts.append(
        f"{primary} {right[primary]:g} for its right candidates, {wrong[primary]:g} for wrong ones"
    )
    if right[primary] != 100.0 or wrong[primary] != 0.0:
        report.problems.append(
            f"its right candidates score {primary} {right[primary]:g} instead of 100, or wrong "
            f"ones {wrong[primary]:g} instead of 0: do its metrics take the likelihoods of "
            "candidates, as MultipleChoice() and Continuation() do?"
        )


def _check_writing(
    how: Asking,
    questions: Sequence[Question],
    score: Callable[[], float],
    right: float,
    report: Report,
) -> None:
    """Say which right answers the vocabulary cannot write; a problem where that costs points."""
    found = normal_form.described(how.vocabulary, [answer_text(each) for each in questions])
    if found is None:
        return
    score_of_forms = score()
    if score_of_forms < right:
        report.problems.append(
            f"{found[1]}: a model without a fault would score {score_of_forms:g}. Change these "
            "answers with a preprocessor, set normal_form=True, or take another vocabulary"
        )
    else:
        report.facts.append(found[1])


def _check_percentages(
    right: dict[str, float], best: dict[str, float], empty: dict[str, float], report: Report
) -> None:
    primary = next(iter(right))
    for key, value in right.items():
        top = 0.0 if key in _BEST_AT_ZERO else 100.0
        if value == top:
            continue
        if value != best[key] or (key == primary and best[key] == 0.0):
            report.problems.append(
                f"its own answers score {key} {value:g} instead of {top:g}: does postprocess "
                "change them, or does the metric compare them with something else?"
            )
        else:
            report.facts.append(f"{key} of these answers is {value:g} at best")
    if empty[primary] != 0.0:
        report.problems.append(f"empty answers score {primary} {empty[primary]:g} instead of 0")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "").strip()
