"""Asking a model a task's questions, and scoring what it answers.

One record an example holds the text as asked, the target, the raw output and the prediction
after post-processing; metrics are the task's own, over the predictions of all its examples.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from promot_t5x import checks, decoding, network
from promot_t5x.data import sources
from promot_t5x.data.questions import Question, read_questions, trim
from promot_t5x.errors import UserError
from promot_t5x.files import append_json_line, keep_until, write_json_lines
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.progress import Progress
from promot_t5x.prompt import prompt_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked, and how answers are decoded.

    **Attributes:**

    - `mixture_or_task_name`, `split`: the examples; every task is scored on its own.
    - `task_feature_lengths`: the longest `inputs` (prompt included) and the longest answer, in
      tokens; a longer input is cut from the right, and counted.
    - `batch_size`: examples decoded together.
    - `method`: `decoding.Greedy`, `decoding.Sampling` or `decoding.BeamSearch`.
    - `num_examples`: the first so many of each task only; none takes all.
    - `module`: a Python module that registers the user's own tasks.
    """

    mixture_or_task_name: str
    split: str = "validation"
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    method: Any
    num_examples: int | None = None
    module: str | None = None

    def __post_init__(self) -> None:
        checks.check_feature_lengths(self.task_feature_lengths)
        checks.check_positive("EvalConfig.batch_size", self.batch_size)
        if self.num_examples is not None:
            checks.check_positive("EvalConfig.num_examples", self.num_examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """A task's metric values (its first metric is the primary one) and one record an example."""

    task: str
    metrics: dict[str, float]
    records: list[dict[str, Any]]
    trimmed_inputs: int

    @property
    def score(self) -> float:
        """The primary metric; NaN where the task has no metrics."""
        return next(iter(self.metrics.values()), float("nan"))


def mean_score(results: Sequence[TaskResult]) -> float:
    """The plain mean of the tasks' primary metrics."""
    return float(np.mean([result.score for result in results]))


@functools.cache
def shared_decoder(
    module: network.Transformer,
    method: decoding.Method,
    max_decode_length: int,
    batch_size: int,
    eos_id: int,
    batch_sharding: NamedSharding,
) -> decoding.Decoder:
    """The process's one decoder of these settings: stages and rows share what it compiles."""
    return decoding.Decoder(
        module,
        method=method,
        max_decode_length=max_decode_length,
        batch_size=batch_size,
        eos_id=eos_id,
        batch_sharding=batch_sharding,
    )


class Evaluator:
    """Asks a fixed set of questions; `run` may be called with the weights of many steps."""

    def __init__(self, model: EncoderDecoderModel, config: EvalConfig, partitioner: Partitioner):
        """Check the input; examples are read when they are first asked.

        **Arguments:**

        - `model`: with a prompt table, each input is preceded by its own task's prompt; without
          one the questions are asked as they stand.
        """
        self.model, self._config = model, config
        prompts, prompt_length, _ = model.prompt_shape
        lengths = config.task_feature_lengths
        self._room = lengths["inputs"] - prompt_length
        if self._room < 1:
            raise UserError(
                f"A prompt of {prompt_length} vectors leaves no room for text in "
                f"TASK_FEATURE_LENGTHS['inputs'] = {lengths['inputs']}, which includes the prompt."
            )
        self.tasks = sources.resolve_tasks(
            config.mixture_or_task_name,
            model.vocabulary,
            module=config.module,
            split=config.split,
        )
        if prompts and prompts != len(self.tasks):
            raise UserError(
                f"{config.mixture_or_task_name!r} has {len(self.tasks)} tasks but NUM_PROMPTS = "
                f"{prompts}; every task has a prompt of its own."
            )
        self._questions: list[list[Question]] = []
        self._decoder = shared_decoder(
            model.module,
            config.method,
            lengths["targets"],
            config.batch_size,
            model.vocabulary.eos_id,
            partitioner.sharding(("batch",)),
        )

    @property
    def compilations(self) -> Sequence[tuple[int, int]]:
        """(input length, output length) of each program compiled so far."""
        return self._decoder.compilations

    def run(self, params: Any, label: str) -> list[TaskResult]:
        """Answer and score every question with these parameters, which lie on the mesh."""
        if not self._questions:
            self._questions = [self._read(task) for task in self.tasks]
        asked = [
            self._ids(task, question)
            for task, questions in zip(self.tasks, self._questions, strict=True)
            for question in questions
        ]
        progress = Progress(label, len(asked))
        decodes = self._decoder(params, asked, progress=lambda done, _: progress.update(done))
        progress.close()
        results, start = [], 0
        for task, questions in zip(self.tasks, self._questions, strict=True):
            rows = slice(start, start + len(questions))
            start = rows.stop
            # The best hypothesis of an example is its last.
            ids, log_probs = decodes.ids[rows, -1], decodes.scores[rows, -1]
            results.append(self._score(task, questions, ids, log_probs))
        return results

    def _read(self, task: sources.BoundTask) -> list[Question]:
        return read_questions(
            task,
            self._config.split,
            limit=self._config.num_examples,
            room=self._room,
            answer_length=self._config.task_feature_lengths["targets"],
        )

    def _ids(self, task: sources.BoundTask, question: Question) -> np.ndarray:
        """The encoder's ids of one question: its task's prompt, if there is one, and its text."""
        text = trim(question.inputs, self._room, self.model.vocabulary.eos_id)
        if not self.model.config.num_virtual_ids:
            return text
        return np.concatenate([prompt_ids(self.model.config, task.prompt_index), text])

    def _score(
        self,
        task: sources.BoundTask,
        questions: Sequence[Question],
        ids: Int[np.ndarray, "examples length"],
        log_probs: Float[np.ndarray, " examples"],
    ) -> TaskResult:
        records, targets, predictions = [], [], []
        for question, row, log_prob in zip(questions, ids, log_probs, strict=True):
            output = self.model.vocabulary.decode([int(i) for i in row])
            process = functools.partial(task.task.postprocess_fn, example=question.example)
            targets.append(process(question.answer, is_target=True))
            predictions.append(process(output, is_target=False))
            records.append(
                {
                    "task": task.name,
                    "id": question.id,
                    "inputs": question.text,
                    "target": plain(targets[-1]),
                    "output": output,
                    "prediction": plain(predictions[-1]),
                    "log_prob": float(log_prob),
                }
            )
        metrics: dict[str, float] = {}
        for metric in task.task.predict_metric_fns:
            metrics |= {k: float(v) for k, v in metric(targets, predictions).items()}
        trimmed = sum(len(question.inputs) > self._room for question in questions)
        return TaskResult(task=task.name, metrics=metrics, records=records, trimmed_inputs=trimmed)


def plain(value: Any) -> Any:
    """A post-processed answer as JSON can hold it."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value.decode("utf-8") if isinstance(value, bytes) else value


def write_results(directory: epath.Path, results: Sequence[TaskResult], step: int) -> None:
    """Write records and metrics as T5X names them, under `<directory>/inference_eval`.

    `<task>-<step>.jsonl` holds the records, `<task>-metrics.jsonl` a line a step.
    """
    directory = directory / "inference_eval"
    directory.mkdir(parents=True, exist_ok=True)
    for result in results:
        write_json_lines(directory / f"{result.task}-{step:06}.jsonl", result.records)
        history = directory / f"{result.task}-metrics.jsonl"
        keep_until(history, step - 1)
        append_json_line(history, {"step": step, **result.metrics})
