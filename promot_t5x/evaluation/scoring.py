"""From what a model said to what a task makes of it: predictions, scores, a record an example."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from promot_t5x.data.questions import Question
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.tokenise import LOSSES
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.evaluation.answering import Answer
from promot_t5x.evaluation.records import TaskResult
from promot_t5x.tasks import dialects
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.perplexity import Perplexity

_NAMED = 3  # of the rows that have no reference


def mark(
    task: BoundTask,
    split: str,
    vocabulary: Any,
    questions: Sequence[Question],
    answers: Sequence[Answer],
    counts: Mapping[str, int],
    *,
    by_likelihood: bool,
) -> TaskResult:
    """The result of one task.

    **Arguments:**

    - `answers`: one a question.
    - `counts`: what is counted of the questions already.
    - `by_likelihood`: the answers are the targets, and their likelihood is what is scored.
    """
    metrics = [Perplexity()] if by_likelihood else list(task.task.predict_metric_fns)
    labels = task.definition.labels if task.definition else ()
    said: list[str | None] = []
    targets, predictions = [], []
    for question, answer in zip(questions, answers, strict=True):
        process = functools.partial(task.task.postprocess_fn, example=question.example)
        targets.append(target_of(task, question))
        if by_likelihood:
            tokens = len(answer["ids"][0])
            said.append(None)
            predictions.append({"log_prob": answer["log_probs"][0], "tokens": tokens})
        else:
            output = text_of(task, vocabulary, answer["ids"][0])
            said.append(output)
            predictions.append(plain(process(output, is_target=False)))
    scores: Sequence[float | None] = [None] * len(questions)
    if metrics:
        scores = records.example_scores(metrics[0], targets, predictions)
    values: dict[str, float] = {}
    other_values: dict[str, Any] = {}
    signatures: dict[str, str] = {}
    for metric in metrics:
        numbers, others = task_metrics.numbers(metric(targets, predictions))
        values |= numbers
        other_values |= others
        if hasattr(metric, "signatures"):
            signatures |= metric.signatures(targets)
    if labels and not by_likelihood:
        strange = sum(prediction not in labels for prediction in predictions)
        counts = {**counts, "unmatched answers": strange}
    return TaskResult(
        task=task.name,
        split=split,
        metrics=values,
        other_values=other_values,
        metric_specs=[task_metrics.spec(metric) for metric in metrics],
        records=[
            {
                "task": task.name,
                "id": question.id,
                "inputs": question.text,
                **shown(question.example),
                "target": target,
                "output": output,
                "prediction": prediction,
                "score": score,
                "log_prob": answer["log_probs"][0],
                **_of_labels(labels, answer, by_likelihood),
            }
            for question, answer, target, output, prediction, score in zip(
                questions, answers, targets, said, predictions, scores, strict=True
            )
        ],
        counts=dict(counts),
        signatures=signatures,
        labels=list(labels),
        answer_words=list(task.definition.answer_words) if task.definition else [],
    )


def target_of(task: BoundTask, question: Question) -> Any:
    """Return what the metrics compare the answer to a question with, as JSON can hold it."""
    process = task.task.postprocess_fn
    return plain(process(question.answer, example=question.example, is_target=True))


def check_targets(task: BoundTask, split: str, questions: Sequence[Question]) -> None:
    """Raise `UserError` where a question has no right answer; print what metrics warn of.

    Asked before anything is decoded; metrics of the user's own may know what to do with none.
    """
    metrics = [m for m in task.task.predict_metric_fns if isinstance(m, task_metrics.Metric)]
    if not metrics:
        return
    targets = [target_of(task, question) for question in questions]
    without = [q.id for q, target in zip(questions, targets, strict=True) if target == []]
    if without:
        named = ", ".join(without[:_NAMED]) + (", …" if len(without) > _NAMED else "")
        raise UserError(
            f"Task {task.name!r}, split {split!r}: {len(without):,} of {len(questions):,} rows "
            f"have no right answer, an empty list of references: {named}. Leave such rows out by a "
            "preprocessor of the task, or name a field that always holds one."
        )
    for warning in (said for metric in metrics for said in metric.warnings(targets)):
        if jax.process_index() == 0:
            print(f"{task.name}: warning: {warning}", flush=True)


def _of_labels(labels: Sequence[str], answer: Answer, by_likelihood: bool) -> dict[str, Any]:
    """How likely each label was, where one was chosen by that."""
    if by_likelihood or "candidates" not in answer:
        return {}
    return {"label_log_probs": dict(zip(labels, answer["candidates"], strict=True))}


def text_of(task: BoundTask, vocabulary: Any, ids: Sequence[int]) -> str:
    """What the model said; a task of SeqIO's registry gets it as its vocabulary decodes it."""
    if task.definition is None:
        return vocabulary.decode(list(ids))
    return dialects.decode(vocabulary, ids)


def shown(example: Mapping[str, Any]) -> dict[str, Any]:
    """The ids of an example's demonstrations and what its prompt lost, where it says so."""
    found = {name: int(example[name]) for name in LOSSES if name in example}
    if "shots" in example:
        return {"shots": [plain(shot) for shot in example["shots"]], **found}
    return found


def plain(value: Any) -> Any:
    """A post-processed answer as JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode("utf-8") if isinstance(value, bytes) else value
