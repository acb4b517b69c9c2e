"""Asking a model a task's questions, and scoring what it answers.

`Evaluator` reads the questions once and answers them with the weights of any number of steps:
`answering` decodes, `marking` scores, `records` keeps.
"""

import dataclasses
import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x import config, decoding, versions
from promot_t5x.checkpoints import hashing
from promot_t5x.config import validation
from promot_t5x.data import sources
from promot_t5x.data.questions import Question, read_questions, trim
from promot_t5x.data.tokenise import LOSSES
from promot_t5x.decoding import decoder
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records, scoring
from promot_t5x.evaluation.answering import Answerer, Ask, first_process_says
from promot_t5x.evaluation.journal import Journal
from promot_t5x.evaluation.records import EvalRun, TaskResult
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids
from promot_t5x.tasks import dialects
from promot_t5x.training.state import Tree, flatten, unflatten


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is asked, and how answers are decoded.

    **Attributes:**

    - `mixture_or_task_name`, `split`: the examples of one task or mixture, or of several; every
      task is scored on its own. Without a split, each on the one that its definition scores.
    - `task_feature_lengths`: the longest `inputs` (soft prompt included) and the longest answer,
      `targets`, in tokens; without `targets`, each task's own. Where a question does not fit,
      the project's tasks drop demonstrations and cut articles; other tasks' questions are cut
      from the right. Both are counted.
    - `batch_size`: examples decoded together.
    - `method`: `decoding.Greedy`, `decoding.Sampling` or `decoding.BeamSearch`; or
      `decoding.RankClassification` or `decoding.Likelihood`, which decode nothing.
    - `num_examples`: the first so many of each task only; none takes all.
    - `module`: a Python module that registers the user's own tasks.
    """

    mixture_or_task_name: str | Sequence[str]
    split: str | None = "validation"
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    method: Any
    num_examples: int | None = None
    module: str | None = None

    def __post_init__(self) -> None:
        validation.check_feature_lengths(self.task_feature_lengths, required=("inputs",))
        validation.check_positive("EvalConfig.batch_size", self.batch_size)
        validation.check_made("DECODING", self.method)
        if self.num_examples is not None:
            validation.check_positive("EvalConfig.num_examples", self.num_examples)

    @property
    def decoding_method(self) -> decoder.Method:
        """How answers are decoded where any are."""
        if isinstance(self.method, decoding.RankClassification):
            return self.method.others or decoding.Greedy()
        likelihood = isinstance(self.method, decoding.Likelihood)
        return decoding.Greedy() if likelihood else self.method

    @property
    def names(self) -> Sequence[str]:
        """Of the tasks and mixtures that are asked."""
        name = self.mixture_or_task_name
        return [name] if isinstance(name, str) else name

    @property
    def name(self) -> str:
        """What is asked, in words."""
        return ", ".join(self.names)


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
        self.tasks = self._resolve()
        for task in self.tasks:
            task.check_split(self._split(task))
        if prompts and prompt_index is None and prompts != len(self.tasks):
            raise UserError(
                f"{config.name!r} has {len(self.tasks)} tasks but NUM_PROMPTS = "
                f"{prompts}; every task has a prompt of its own."
            )
        method = config.method
        if isinstance(method, decoding.RankClassification) and method.others is None:
            self._check_labels()
        self._questions: list[list[Question]] = []
        self._answerer = Answerer(model, config.decoding_method, config.batch_size, partitioner)

    def _resolve(self) -> list[sources.BoundTask]:
        """The tasks of all names, in the order that numbers their prompts."""
        config, model = self._config, self.model
        tasks = [
            task
            for name in config.names
            for task in sources.resolve_tasks(
                name,
                model.vocabulary,
                module=config.module,
                split=config.split,
                dialect=model.dialect,
                task_format=model.task_format,
            )
        ]
        known = [task.name for task in tasks]
        if twice := sorted({name for name in known if known.count(name) > 1}):
            raise UserError(f"{config.name!r} asks the task {twice[0]!r} twice; name it once.")
        return [dataclasses.replace(task, prompt_index=i) for i, task in enumerate(tasks)]

    @property
    def compilations(self) -> Sequence[tuple[int, int]]:
        """(input length, output length) of each program compiled so far."""
        return self._answerer.compilations

    def run(self, params: Any, label: str, run: EvalRun | None = None) -> list[TaskResult]:
        """Answer and score every question with these parameters, which lie on the mesh.

        **Arguments:**

        - `run`: whose answers they are and where they go; what an earlier launch has recorded
          there is not asked again. Without it nothing is written.
        """
        if run is not None and (before := self._recorded(run)) is not None:
            return before
        if not self._questions:
            self._read_questions(label)
        began, compiled = time.monotonic(), len(self.compilations)
        journal = None if run is None else self._journal(run)
        answers, made = self._answerer.answers(params, label, journal)
        results, start = [], 0
        for task, questions in zip(self.tasks, self._questions, strict=True):
            rows = slice(start, start + len(questions))
            start = rows.stop
            results.append(
                scoring.mark(
                    task,
                    self._split(task),
                    self.model.vocabulary,
                    questions,
                    answers[rows],
                    self._losses(task, questions),
                    by_likelihood=isinstance(self._config.method, decoding.Likelihood),
                )
            )
        if run is not None and journal is not None and jax.process_index() == 0:
            seconds = time.monotonic() - began
            timings = {
                "seconds": seconds,
                "examples": made,
                "examples_per_second": made / seconds,
                "compilations": self.compilations[compiled:],
            }
            records.write(run, results, **self._told, timings=timings)
            journal.remove()
        return results

    def _read_questions(self, label: str) -> None:
        self._questions = [self._read(task) for task in self.tasks]
        self._answerer.plan(
            [
                ask
                for task, questions in zip(self.tasks, self._questions, strict=True)
                for ask in self._asks(task, questions)
            ]
        )
        if jax.process_index() == 0:
            count = sum(map(len, self._questions))
            shapes = ", ".join(f"{i} + {o}" for i, o in self._answerer.programs)
            print(f"{label}: {count:,} questions in programs of {shapes} tokens", flush=True)

    def _journal(self, run: EvalRun) -> Journal:
        path = run.directory / records.DIRECTORY / f"answers-{run.step:06}.partial"
        return Journal(path, self._answerer.identity(run.whose))

    def _recorded(self, run: EvalRun) -> list[TaskResult] | None:
        """What an earlier launch recorded of this evaluation, if it got to its end."""

        def read() -> list[dict[str, Any]] | None:
            found = [records.read(run, task.name) for task in self.tasks]
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
            "decoding": {
                "method": repr(method),
                "batch_size": self._config.batch_size,
                "programs": self._answerer.programs,
            },
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

    def _check_labels(self) -> None:
        for task in self.tasks:
            if not (task.definition and task.definition.labels):
                raise UserError(
                    f"Task {task.name!r} has no labels to rank: decode its answers by another "
                    "DECODING, or say by which one in RankClassification.others."
                )

    def _asks(self, task: sources.BoundTask, questions: Sequence[Question]) -> list[Ask]:
        """A task's questions as the model gets them."""
        limit = self._answer_length(task)
        candidates = self._candidates(task, questions)
        if any(candidates):
            limit = max(len(ids) for several in candidates for ids in several)
        return [
            Ask(
                inputs=self._ids(task, question),
                limit=limit,
                # Of the task and its row, so that company does not change a sample.
                number=zlib.crc32(f"{task.name} {row}".encode()) & 0x7FFFFFFF,
                candidates=several,
            )
            for row, (question, several) in enumerate(zip(questions, candidates, strict=True))
        ]

    def _candidates(
        self, task: sources.BoundTask, questions: Sequence[Question]
    ) -> list[tuple[np.ndarray, ...]]:
        """For each question the answers to choose from by their likelihood; none to decode one."""
        vocabulary, dialect = self.model.vocabulary, self.model.dialect
        if isinstance(self._config.method, decoding.Likelihood):
            room = self._answer_length(task)
            targets = [np.asarray(each.example["targets"], np.int32) for each in questions]
            return [(trim(ids, room, vocabulary.eos_id),) for ids in targets]
        labels: tuple[np.ndarray, ...] = ()
        if isinstance(self._config.method, decoding.RankClassification) and task.definition:
            known = task.definition.labels
            labels = tuple(dialects.target_ids(vocabulary, dialect, label) for label in known)
        return [labels] * len(questions)

    def _ids(self, task: sources.BoundTask, question: Question) -> np.ndarray:
        """The encoder's ids of one question: its task's prompt, if there is one, and its text."""
        text = trim(question.inputs, self._room, self.model.vocabulary.eos_id)
        if not self.model.config.num_virtual_ids:
            return text
        index = task.prompt_index if self._prompt_index is None else self._prompt_index
        return np.concatenate([prompt_ids(self.model.config, index), text])


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
