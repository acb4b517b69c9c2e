"""From a model's answers to a task's result: predictions, scores, and one record per example."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from promot_t5x.data.questions import Question
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.tokenization import TRUNCATIONS
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.evaluation.answering import Answer
from promot_t5x.evaluation.question_set import TaskQuestions
from promot_t5x.evaluation.records import TaskResult
from promot_t5x.tasks import dialects, ranking
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.metrics import AnyMetric
from promot_t5x.tasks.perplexity import Perplexity


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnsweredQuestion:
    """A question, what the model answered, and what the task's metrics compare.

    **Attributes:**

    - `target`, `prediction`: reference and answer after the task's post-processing.
    - `output`: the answer's text; None where the target's likelihood is scored.
    - `label_log_probs`: the log-probability of each of the task's labels, where one was chosen by
      that.
    """

    question: Question
    answer: Answer
    target: Any
    prediction: Any
    output: str | None = None
    label_log_probs: Mapping[str, float] | None = None

    def record(self, task: str, score: float | None) -> dict[str, Any]:
        """Return the line that the evaluation keeps of it."""
        chosen = {} if self.label_log_probs is None else {"label_log_probs": self.label_log_probs}
        return {
            "task": task,
            "id": self.question.id,
            "inputs": self.question.text,
            **demonstrations_and_losses(self.question.example),
            "target": self.target,
            "output": self.output,
            "prediction": self.prediction,
            "score": score,
            "log_prob": self.answer["log_probs"][0],
            **chosen,
        }


def score_answers(
    asked: TaskQuestions, answers: Sequence[Answer], vocabulary: Any, *, by_likelihood: bool
) -> TaskResult:
    """Score the answers to a task's questions.

    **Arguments:**

    - `answers`: one for each of the encoded questions, in their order.
    - `vocabulary`: the model's, which decodes answers.
    - `by_likelihood`: the answers are the targets, and their likelihood is what is scored.

    **Returns:** the task's metrics and records.
    """
    task, definition = asked.task, asked.task.definition
    labels = list(definition.labels) if definition else []
    metrics: list[AnyMetric] = (
        [Perplexity()] if by_likelihood else list(task.task.predict_metric_fns)
    )
    if by_likelihood:
        pairs = zip(asked.questions, answers, strict=True)
        answered = [_target_scored(task, question, answer) for question, answer in pairs]
    elif definition and definition.candidates:
        answered = _ranked(task, asked.questions, answers)
    else:
        pairs = zip(asked.questions, answers, strict=True)
        answered = [_read(task, vocabulary, question, answer) for question, answer in pairs]
    targets = [each.target for each in answered]
    predictions = [each.prediction for each in answered]
    scores: Sequence[float | None] = [None] * len(answered)
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
    counts = dict(asked.truncation_counts)
    if labels and not by_likelihood:
        counts["unmatched answers"] = sum(prediction not in labels for prediction in predictions)
    return TaskResult(
        task=task.name,
        split=asked.split,
        metrics=values,
        other_values=other_values,
        metric_specs=[task_metrics.spec(metric) for metric in metrics],
        records=[
            each.record(task.name, score) for each, score in zip(answered, scores, strict=True)
        ],
        counts=counts,
        signatures=signatures,
        labels=labels,
        answer_words=list(definition.answer_words) if definition else [],
        language=definition.language if definition else None,
        version=definition.version if definition else None,
        shots=definition.shots if definition else None,
    )


def check_scoring(asked: TaskQuestions, vocabulary: Any, *, by_likelihood: bool) -> TaskResult:
    """Score the questions' own right answers, as `score_answers` will score a model's.

    **Arguments:** as of `score_answers`.

    **Returns:** the result of a model that is always right, and always sure.

    **Raises:** `UserError` where the task's post-processing or one of its metrics fails.
    """
    right = _right_answers(asked, by_likelihood=by_likelihood)
    try:
        return score_answers(asked, right, vocabulary, by_likelihood=by_likelihood)
    except UserError:
        raise
    # The user's own code runs here, and fails in its own ways.
    except Exception as error:
        raise UserError(
            f"Task {asked.task.name!r}, split {asked.split!r}: scoring its own right answers "
            f"fails: {type(error).__name__}: {error}. See to the task's postprocess and metric "
            "functions; `promot-t5x tasks check` shows what they make of each split."
        ) from error


def _right_answers(asked: TaskQuestions, *, by_likelihood: bool) -> list[Answer]:
    """Return answers of a model that is always right, one for each of the encoded questions."""
    definition = asked.task.definition
    if definition and definition.candidates and not by_likelihood:
        return [
            answer
            for question in asked.questions
            for answer in _answers_of(question, ranking.certain(question.example, right=True))
        ]
    right: list[Answer] = []
    for question, encoded in zip(asked.questions, asked.encoded, strict=True):
        ids = [int(token) for token in question.example["targets"]]
        answer: Answer = {"ids": [ids], "log_probs": [0.0]}
        if encoded.candidates and not by_likelihood:
            answer["candidates"] = [0.0] * len(encoded.candidates)
        right.append(answer)
    return right


def _answers_of(question: Question, prediction: Mapping[str, Any]) -> list[Answer]:
    """Return the answers that `_ranked` makes this prediction of."""
    log_probs, greedy = prediction["log_probs"], prediction["greedy"]
    if "questions" not in question.example:
        return [{"log_probs": [max(log_probs)], "candidates": log_probs, "greedy": greedy}]
    pairs = zip(log_probs, greedy, strict=True)
    return [{"log_probs": [p], "candidates": [p], "greedy": [g]} for p, g in pairs]


def _ranked(
    task: BoundTask, questions: Sequence[Question], answers: Sequence[Answer]
) -> list[AnsweredQuestion]:
    """Read what was found of questions with their own candidates."""
    left, made = iter(answers), []
    for question in questions:
        example = question.example
        # Candidates with questions of their own were asked one by one.
        parts = list(itertools.islice(left, len(example.get("questions", [1]))))
        log_probs = [each for part in parts for each in part["candidates"]]
        prediction = ranking.prediction(
            example, log_probs, [each for part in parts for each in part["greedy"]]
        )
        made.append(
            AnsweredQuestion(
                question=question,
                answer={"log_probs": [max(log_probs)]},
                target=task.task.postprocess_fn(question.answer, example=example, is_target=True),
                prediction=prediction,
                output=prediction["answer"],
            )
        )
    return made


def _read(task: BoundTask, vocabulary: Any, question: Question, answer: Answer) -> AnsweredQuestion:
    """Read an answer that was decoded, or chosen among the task's labels."""
    process = functools.partial(task.task.postprocess_fn, example=question.example)
    output = text_of(task, vocabulary, answer["ids"][0])
    label_log_probs = None
    if "candidates" in answer:
        labels = task.definition.labels if task.definition else ()
        label_log_probs = dict(zip(labels, answer["candidates"], strict=True))
    return AnsweredQuestion(
        question=question,
        answer=answer,
        target=as_json(process(question.answer, is_target=True)),
        prediction=as_json(process(output, is_target=False)),
        output=output,
        label_log_probs=label_log_probs,
    )


def _target_scored(task: BoundTask, question: Question, answer: Answer) -> AnsweredQuestion:
    """Read the likelihood of a question's target."""
    target = task.task.postprocess_fn(question.answer, example=question.example, is_target=True)
    return AnsweredQuestion(
        question=question,
        answer=answer,
        target=as_json(target),
        prediction={"log_prob": answer["log_probs"][0], "tokens": len(answer["ids"][0])},
    )


def text_of(task: BoundTask, vocabulary: Any, ids: Sequence[int]) -> str:
    """Decode an answer; one to a task of SeqIO's registry as its vocabulary decodes it.

    **Arguments:**

    - `ids`: token ids of the answer, without padding.
    """
    if task.definition is None:
        text: str = vocabulary.decode(list(ids))
        return text
    return dialects.decode(vocabulary, ids)


def demonstrations_and_losses(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ids of an example's demonstrations and what its prompt lost, where it says so."""
    found = {name: int(example[name]) for name in TRUNCATIONS if name in example}
    if "shots" in example:
        return {"shots": [as_json(shot) for shot in example["shots"]], **found}
    return found


def as_json(value: Any) -> Any:
    """Return a post-processed answer as JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode("utf-8") if isinstance(value, bytes) else value
