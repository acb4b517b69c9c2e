"""Asking a model a task's questions, and scoring what it answers.

One record an example holds the text as asked, the target, the raw output and the prediction
after post-processing; metrics are the task's own, over the predictions of all its examples.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jaxtyping import Float, Int

from promot_t5x import checks, config, decoding, hashing, network, records, versions
from promot_t5x.data import sources
from promot_t5x.data.questions import Question, read_questions, trim
from promot_t5x.data.tokenise import LOSSES
from promot_t5x.errors import UserError
from promot_t5x.models import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner
from promot_t5x.progress import Progress
from promot_t5x.prompt import PROMPT_PATH, prompt_ids
from promot_t5x.records import EvalRun, TaskResult
from promot_t5x.state import Tree, flatten, unflatten
from promot_t5x.tasks import dialects
from promot_t5x.tasks import metrics as task_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked, and how answers are decoded.

    **Attributes:**

    - `mixture_or_task_name`, `split`: the examples; every task is scored on its own. Without a
      split, each on the one that its definition scores.
    - `task_feature_lengths`: the longest `inputs` (soft prompt included) and the longest answer,
      `targets`, in tokens; without `targets`, each task's own. Where a question does not fit,
      the project's tasks drop demonstrations and cut articles; other tasks' questions are cut
      from the right. Both are counted.
    - `batch_size`: examples decoded together.
    - `method`: `decoding.Greedy`, `decoding.Sampling` or `decoding.BeamSearch`.
    - `num_examples`: the first so many of each task only; none takes all.
    - `module`: a Python module that registers the user's own tasks.
    """

    mixture_or_task_name: str
    split: str | None = "validation"
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    method: Any
    num_examples: int | None = None
    module: str | None = None

    def __post_init__(self) -> None:
        checks.check_feature_lengths(self.task_feature_lengths, required=("inputs",))
        checks.check_positive("EvalConfig.batch_size", self.batch_size)
        if self.num_examples is not None:
            checks.check_positive("EvalConfig.num_examples", self.num_examples)


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

    def __init__(
        self,
        model: EncoderDecoderModel,
        config: EvalConfig,
        partitioner: Partitioner,
        prompt_index: int | None = None,
    ):
        """Check the input; examples are read when they are first asked.

        **Arguments:**

        - `model`: with a prompt table, each input is preceded by its own task's prompt; without
          one the questions are asked as they stand.
        - `prompt_index`: the one prompt that precedes the inputs of all tasks instead.
        """
        self.model, self._config, self._prompt_index = model, config, prompt_index
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
            dialect=model.dialect,
            task_format=model.task_format,
        )
        for task in self.tasks:
            task.check_split(self._split(task))
        if prompts and prompt_index is None and prompts != len(self.tasks):
            raise UserError(
                f"{config.mixture_or_task_name!r} has {len(self.tasks)} tasks but NUM_PROMPTS = "
                f"{prompts}; every task has a prompt of its own."
            )
        self._questions: list[list[Question]] = []
        # One for each length of answers: most steps of a label decoded as long as a summary
        # would be wasted.
        self._decoders = {
            length: shared_decoder(
                model.module,
                config.method,
                length,
                config.batch_size,
                model.vocabulary.eos_id,
                partitioner.sharding(("batch",)),
            )
            for length in dict.fromkeys(map(self._answer_length, self.tasks))
        }

    @property
    def compilations(self) -> Sequence[tuple[int, int]]:
        """(input length, output length) of each program compiled so far."""
        return [pair for decoder in self._decoders.values() for pair in decoder.compilations]

    def run(self, params: Any, label: str, run: EvalRun | None = None) -> list[TaskResult]:
        """Answer and score every question with these parameters, which lie on the mesh.

        **Arguments:**

        - `run`: whose answers they are and where they go; tasks whose answers are there already
          are not asked again. Without it nothing is written.
        """
        if run is not None and (before := self._recorded(run)) is not None:
            return before
        if not self._questions:
            self._questions = [self._read(task) for task in self.tasks]
        began, compiled = time.monotonic(), len(self.compilations)
        progress = Progress(label, sum(map(len, self._questions)))
        done, results = 0, {}
        for length, decoder in self._decoders.items():
            asked = [
                (task, questions)
                for task, questions in zip(self.tasks, self._questions, strict=True)
                if self._answer_length(task) == length
            ]
            ids = [self._ids(task, question) for task, questions in asked for question in questions]
            report = functools.partial(_advance, progress, done)
            decodes = decoder(params, ids, progress=report)
            done += len(ids)
            start = 0
            for task, questions in asked:
                rows = slice(start, start + len(questions))
                start = rows.stop
                # The best hypothesis of an example is its last.
                best = decodes.ids[rows, -1], decodes.scores[rows, -1]
                results[task.name] = self._score(task, questions, *best)
        progress.close()
        in_order = [results[task.name] for task in self.tasks]
        if run is not None and jax.process_index() == 0:
            seconds = time.monotonic() - began
            timings = {
                "seconds": seconds,
                "examples_per_second": done / seconds,
                "compilations": len(self.compilations) - compiled,
            }
            records.write(run, in_order, **self._told, timings=timings)
        return in_order

    def _recorded(self, run: EvalRun) -> list[TaskResult] | None:
        """What an earlier launch recorded of this evaluation, if it got to its end."""

        def read() -> list[dict[str, Any]] | None:
            found = [records.read(run.directory, task.name, run.step) for task in self.tasks]
            if not all(found):
                return None
            return [dataclasses.asdict(each.result()) for each in found if each is not None]

        told = first_process_says(read)
        return None if told is None else [TaskResult(**each) for each in told]

    @property
    def _told(self) -> dict[str, Any]:
        """What the summaries say of how answers were made."""
        method = self._config.method
        return {
            "seeds": {
                "decoding": getattr(method, "seed", None),
                "shots": self.model.task_format.shot_seed,
            },
            "versions": versions.installed(),
            "decoding": {"method": repr(method), "batch_size": self._config.batch_size},
        }

    def _split(self, task: sources.BoundTask) -> str:
        return self._config.split or task.scored_split

    def _answer_length(self, task: sources.BoundTask) -> int:
        """Tokens of an answer of the task at most."""
        lengths = self._config.task_feature_lengths
        if "targets" in lengths:
            return lengths["targets"]
        if task.definition is None:
            raise UserError(
                f"Task {task.name!r} does not say how long its answers are: set "
                "TASK_FEATURE_LENGTHS['targets']."
            )
        return task.definition.output_length

    def _read(self, task: sources.BoundTask) -> list[Question]:
        questions = read_questions(
            task,
            self._split(task),
            limit=self._config.num_examples,
            room=self._room,
            answer_length=self._answer_length(task),
        )
        losses = {what: count for what, count in self._losses(task, questions).items() if count}
        if losses and jax.process_index() == 0:
            said = ", ".join(f"{what}: {count:,}" for what, count in losses.items())
            print(f"{task.name}: {len(questions):,} questions ({said})", flush=True)
        return questions

    def _losses(self, task: sources.BoundTask, questions: Sequence[Question]) -> dict[str, int]:
        """How many of a task's questions lost what, and how many rows make no question."""
        rows = None if self._config.num_examples else task.num_input_examples(self._split(task))
        left_out = {"rows left out": rows - len(questions)} if rows else {}
        return {
            **left_out,
            **{
                said: sum(bool(question.example[name]) for question in questions)
                for name, said in LOSSES.items()
                if name in questions[0].example
            },
            "inputs cut": sum(len(question.inputs) > self._room for question in questions),
        }

    def _ids(self, task: sources.BoundTask, question: Question) -> np.ndarray:
        """The encoder's ids of one question: its task's prompt, if there is one, and its text."""
        text = trim(question.inputs, self._room, self.model.vocabulary.eos_id)
        if not self.model.config.num_virtual_ids:
            return text
        index = task.prompt_index if self._prompt_index is None else self._prompt_index
        return np.concatenate([prompt_ids(self.model.config, index), text])

    def _score(
        self,
        task: sources.BoundTask,
        questions: Sequence[Question],
        ids: Int[np.ndarray, "examples length"],
        log_probs: Float[np.ndarray, " examples"],
    ) -> TaskResult:
        metrics = list(task.task.predict_metric_fns)
        answers, targets, predictions = [], [], []
        for question, row in zip(questions, ids, strict=True):
            output = self._text(task, row)
            process = functools.partial(task.task.postprocess_fn, example=question.example)
            answers.append(output)
            targets.append(plain(process(question.answer, is_target=True)))
            predictions.append(plain(process(output, is_target=False)))
        scores: Sequence[float | None] = [None] * len(questions)
        if metrics:
            scores = records.example_scores(metrics[0], targets, predictions)
        said: dict[str, float] = {}
        signatures: dict[str, str] = {}
        for metric in metrics:
            said |= {k: float(v) for k, v in metric(targets, predictions).items()}
            if hasattr(metric, "signatures"):
                signatures |= metric.signatures(targets)
        return TaskResult(
            task=task.name,
            split=self._split(task),
            metrics=said,
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
                    "log_prob": float(log_prob),
                }
                for question, target, output, prediction, score, log_prob in zip(
                    questions, targets, answers, predictions, scores, log_probs, strict=True
                )
            ],
            counts={**self._losses(task, questions), **unmatched(task, predictions)},
            signatures=signatures,
            labels=list(task.definition.labels) if task.definition else [],
        )

    def _text(self, task: sources.BoundTask, ids: Int[np.ndarray, " length"]) -> str:
        """What the model said; a task of SeqIO's registry gets it as its vocabulary decodes it."""
        listed = [int(i) for i in ids]
        if task.definition is None:
            return self.model.vocabulary.decode(listed)
        return dialects.decode(self.model.vocabulary, listed)


def eval_run(
    directory: epath.Path,
    step: int,
    params: Tree,
    *,
    path: str | None,
    origin: str,
    prompt_origin: str | None = None,
) -> EvalRun:
    """Whose answers an evaluation with these parameters has, told by the arrays themselves.

    **Arguments:**

    - `params`: on the mesh, with a prompt table or without.
    - `path`, `origin`: of the model's weights.
    - `prompt_origin`: of the prompt.
    """
    flat = flatten(params)
    table = flat.pop(PROMPT_PATH, None)
    prompt = None
    if table is not None:
        prompt = {"hash": hashing.digest(hashing.host_array(table)), "origin": prompt_origin}
    return EvalRun(
        directory=directory,
        step=step,
        checkpoint={
            "path": path,
            "hash": hashing.content_hash(unflatten(flat)),
            "origin": origin,
        },
        prompt=prompt,
        config=config.resolved_str(),
    )


def first_process_says(make: Callable[[], Any]) -> Any:
    """What `make` returns in the first process, as JSON has it, in every process.

    Only that process is sure to see what it wrote.
    """
    if jax.process_count() == 1:
        return make()
    text = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    data = np.frombuffer(text.ljust(size, b"\0"), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(data)).tobytes())


def unmatched(task: sources.BoundTask, predictions: Sequence[Any]) -> dict[str, int]:
    """How many predictions are none of the task's labels, where it has labels."""
    labels = task.definition.labels if task.definition else ()
    if not labels:
        return {}
    return {"unmatched answers": sum(prediction not in labels for prediction in predictions)}


def _advance(progress: Progress, before: int, done: int, total: int) -> None:
    """Show that `done` examples follow the `before` that other decoders have done."""
    del total
    progress.update(before + done)


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
