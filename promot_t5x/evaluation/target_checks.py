"""What can be said of a task's right answers before anything is decoded.

Rows without a reference, targets that a metric does not split into words, and answers that no model
could give, because the vocabulary cannot write them or because they are longer than the limit.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from promot_t5x.data.questions import Question, answer_text, read_questions
from promot_t5x.data.sources import BoundTask
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError, listed
from promot_t5x.tasks import normal_form
from promot_t5x.tasks.metrics import Metric

_NAMED = 3  # of the rows that have no reference
# A task that does not say how long its answers are gets room for this share of so many of them.
_ANSWERED, _ANSWERS_MEASURED = 0.99, 1000
_ANY_LENGTH = 1 << 20


def check_metrics(task: BoundTask) -> None:
    """Refuse a metric that cannot be computed here, and say where a task gets no score at all."""
    for metric in task.task.predict_metric_fns:
        if isinstance(metric, Metric):
            metric.check_ready()
    if not task.task.predict_metric_fns and processes.is_primary():
        print(
            f"{task.name}: its answers are recorded but get no score, because the task has no "
            "metric function over (targets, predictions)",
            flush=True,
        )


def check_targets(task: BoundTask, split: str, questions: Sequence[Question]) -> None:
    """Raise `UserError` where a question has no right answer; print what metrics warn of.

    Metrics of the user's own may know what to do with an empty list of references.
    """
    metrics = [each for each in task.task.predict_metric_fns if isinstance(each, Metric)]
    if not metrics:
        return
    targets = [_target(task, question) for question in questions]
    without = [q.id for q, target in zip(questions, targets, strict=True) if target == []]
    if without:
        raise UserError(
            f"Task {task.name!r}, split {split!r}: {len(without):,} of {len(questions):,} rows "
            "have no right answer, an empty list of references: "
            f"{listed(without, _NAMED)}. Leave such rows out by a preprocessor of the task, or "
            "name a field that always holds one."
        )
    for warning in (said for metric in metrics for said in metric.warnings(targets)):
        if processes.is_primary():
            print(f"{task.name}: warning: {warning}", flush=True)


def out_of_reach(
    task: BoundTask, questions: Sequence[Question], vocabulary: Any, limit: int | None
) -> dict[str, int]:
    """Count the right answers that no model could give; print those that cannot be written.

    **Arguments:**

    - `vocabulary`: the model's.
    - `limit`: how many tokens an answer may take; None where none is decoded.

    **Returns:** the counts that are not 0, by what they count.
    """
    unwritten = normal_form.described(vocabulary, [answer_text(each) for each in questions])
    if unwritten is not None and processes.is_primary():
        print(f"{task.name}: {unwritten[1]}", flush=True)
    counts = {
        "answers longer than the limit": sum(
            limit is not None and len(question.example["targets"]) > limit for question in questions
        ),
        "answers that the vocabulary changes": 0 if unwritten is None else unwritten[0],
    }
    return {what: count for what, count in counts.items() if count}


def measured_length(task: BoundTask, scored_split: str, text_budget: int) -> int:
    """Return the tokens that nearly all training answers take, EOS and sentinels included."""
    trained_on = task.definition.shots_split
    split = trained_on if trained_on in task.splits else scored_split
    read = read_questions(
        task, split, limit=_ANSWERS_MEASURED, token_budget=text_budget, answer_length=_ANY_LENGTH
    )
    lengths = [len(question.example["targets"]) for question in read]
    longest = int(np.quantile(lengths, _ANSWERED, method="higher"))
    if processes.is_primary():
        print(
            f"{task.name}: an answer may take {longest} tokens, which is room for {_ANSWERED:.0%} "
            f"of the first {len(lengths):,} answers of {split!r}",
            flush=True,
        )
    return longest


def _target(task: BoundTask, question: Question) -> Any:
    process = task.task.postprocess_fn
    target = process(question.answer, example=question.example, is_target=True)
    return target.tolist() if isinstance(target, np.ndarray) else target
