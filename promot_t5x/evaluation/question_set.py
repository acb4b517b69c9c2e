"""The questions of an evaluation as a model gets them: token ids, the prompt's among them."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from promot_t5x import decoding
from promot_t5x.data import sources
from promot_t5x.data.questions import Question, read_questions, trim
from promot_t5x.data.tokenization import TRUNCATIONS
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError
from promot_t5x.evaluation import target_checks
from promot_t5x.evaluation.answering import EncodedQuestion
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import prompt_ids
from promot_t5x.tasks import dialects
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.templates import Candidates

Ids = Int32[np.ndarray, " tokens"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TaskQuestions:
    """The questions of one task.

    **Attributes:**

    - `task`, `split`: whose they are.
    - `questions`: with all that scoring needs, in the order of the data.
    - `encoded`: the same questions as the model gets them; several of one whose candidates have
      questions of their own, one after the other.
    - `truncation_counts`: how many lost what, how many rows of the data make no question, and how
      many right answers no model could give.
    """

    task: sources.BoundTask
    split: str
    questions: Sequence[Question]
    encoded: Sequence[EncodedQuestion]
    truncation_counts: dict[str, int]


class QuestionSet:
    """The tasks of an `EvalConfig`, checked against a model, and their questions, read once.

    **Arguments:**

    - `model`: with a prompt table, each input is preceded by its own task's prompt; without one
      the questions are asked as they stand.
    - `config`: the tasks and their lengths.
    - `prompt_index`: the one prompt that precedes the inputs of all tasks instead.

    **Raises:** `UserError` where tasks, splits, lengths, prompts and decoding do not fit together.
    Nothing is read before `by_task` is used.
    """

    def __init__(self, model: Model, config: EvalConfig, prompt_index: int | None = None):
        self._model, self._config, self._prompt_index = model, config, prompt_index
        self._measured_lengths: dict[str, int] = {}
        prompts, prompt_length, _ = model.prompt_shape
        lengths = config.task_feature_lengths
        self._text_budget = lengths["inputs"] - prompt_length
        if self._text_budget < 1:
            raise UserError(
                f"A prompt of {prompt_length} vectors leaves no room for text in "
                f"TASK_FEATURE_LENGTHS['inputs'] = {lengths['inputs']}, which includes the prompt."
            )
        self.tasks = self._resolve()
        for task in self.tasks:
            task.check_split(self.split(task))
            target_checks.check_metrics(task)
        if prompts and prompt_index is None and prompts != len(self.tasks):
            raise UserError(
                f"{config.name!r} has {len(self.tasks)} tasks but NUM_PROMPTS = "
                f"{prompts}; every task has a prompt of its own."
            )
        method = config.method
        if isinstance(method, decoding.RankClassification) and method.others is None:
            self._check_labels()

    def split(self, task: sources.BoundTask) -> str:
        """Return the split of a task that is asked."""
        return self._config.split or task.scored_split

    def answer_length(self, task: sources.BoundTask) -> int:
        """Return how many tokens an answer of the task has at most.

        **Raises:** `UserError` where neither the configuration nor the task says so.
        """
        lengths = self._config.task_feature_lengths
        if "targets" in lengths:
            return lengths["targets"]
        if task.definition is None:
            raise UserError(
                f"Task {task.name!r} does not say how long its answers are: set "
                "TASK_FEATURE_LENGTHS['targets']."
            )
        vocabulary, dialect = self._model.vocabulary, self._model.dialect
        length: int | None = task.definition.answer_limit(vocabulary, dialect)
        if length is not None:
            return length
        if task.name not in self._measured_lengths:
            self._measured_lengths[task.name] = target_checks.measured_length(
                task, self.split(task), self._text_budget
            )
        return self._measured_lengths[task.name]

    @functools.cached_property
    def by_task(self) -> list[TaskQuestions]:
        """The questions of every task, in the order of `tasks`."""
        return [self._read(task, self._config.num_examples) for task in self.tasks]

    def first(self, limit: int) -> list[TaskQuestions]:
        """Return the first questions of every task: all, where none is known to have more."""
        asked = self._config.num_examples
        counts = [asked or task.num_input_examples(self.split(task)) for task in self.tasks]
        if "by_task" in vars(self) or all(count and count <= limit for count in counts):
            return self.by_task
        return [self._read(task, min(asked or limit, limit)) for task in self.tasks]

    def _resolve(self) -> list[sources.BoundTask]:
        """Find the tasks of all names, in the order that numbers their prompts."""
        config, model = self._config, self._model
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

    def _check_labels(self) -> None:
        for task in self.tasks:
            definition = task.definition
            if not (definition and (definition.labels or definition.candidates)):
                raise UserError(
                    f"Task {task.name!r} has no labels to rank: decode its answers by another "
                    "DECODING, or say by which one in RankClassification.others."
                )

    def _read(self, task: sources.BoundTask, limit: int | None) -> TaskQuestions:
        questions = read_questions(
            task,
            self.split(task),
            limit=limit,
            token_budget=self._text_budget,
            answer_length=self.answer_length(task),
        )
        target_checks.check_targets(task, self.split(task), questions)
        longest = self.answer_length(task) if self._own_candidates(task) is None else None
        counts = self._truncation_counts(task, questions, limit) | target_checks.out_of_reach(
            task, questions, self._model.vocabulary, longest
        )
        if any(counts.values()) and processes.is_primary():
            said = ", ".join(f"{what}: {count:,}" for what, count in counts.items() if count)
            print(f"{task.name}: {len(questions):,} questions ({said})", flush=True)
        return TaskQuestions(
            task=task,
            split=self.split(task),
            questions=questions,
            encoded=self._encode(task, questions),
            truncation_counts=counts,
        )

    def _truncation_counts(
        self, task: sources.BoundTask, questions: Sequence[Question], limit: int | None
    ) -> dict[str, int]:
        rows = None if limit else task.num_input_examples(self.split(task))
        left_out = {"rows left out": rows - len(questions)} if rows else {}
        return {
            **left_out,
            **{
                said: sum(bool(question.example[name]) for question in questions)
                for name, said in TRUNCATIONS.items()
                if name in questions[0].example
            },
            "inputs cut": sum(len(question.inputs) > self._text_budget for question in questions),
        }

    def _encode(
        self, task: sources.BoundTask, questions: Sequence[Question]
    ) -> list[EncodedQuestion]:
        if (own := self._own_candidates(task)) is not None:
            return self._ranked(task, questions, own)
        limit = self.answer_length(task)
        candidates = self._candidates(task, questions)
        if any(candidates):
            limit = max(len(ids) for several in candidates for ids in several)
        return [
            EncodedQuestion(
                inputs=self._input_ids(task, question.inputs),
                limit=limit,
                # Of the task and its row, so that company does not change a sample.
                number=zlib.crc32(f"{task.name} {row}".encode()) & 0x7FFFFFFF,
                candidates=several,
            )
            for row, (question, several) in enumerate(zip(questions, candidates, strict=True))
        ]

    def _own_candidates(self, task: sources.BoundTask) -> Candidates | None:
        """Return how each question of a task chooses among candidates of its own, if it does."""
        if task.definition is None or self._config.scores_targets:
            return None
        found: Candidates | None = task.definition.candidates
        return found

    def _ranked(
        self, task: sources.BoundTask, questions: Sequence[Question], how: Candidates
    ) -> list[EncodedQuestion]:
        """Encode questions with their own candidates, whose end of text does not count."""
        vocabulary, dialect = self._model.vocabulary, self._model.dialect
        sides: list[tuple[Ids, tuple[Ids, ...]]] = []
        for question in questions:
            texts = [how.delimiter + _text(text) for text in question.example["candidates"]]
            ids = [dialects.target_ids(vocabulary, dialect, text)[:-1] for text in texts]
            if how.questions is None:
                sides.append((question.inputs, tuple(ids)))
                continue
            asked = _asked(question, dialect)
            sides += [
                (dialects.question_ids(vocabulary, dialect, text), (one,))
                for text, one in zip(asked, ids, strict=True)
            ]
        limit = max(len(ids) for _, several in sides for ids in several)
        return [
            EncodedQuestion(
                inputs=self._input_ids(task, inputs),
                limit=limit,
                number=0,
                candidates=several,
                given=int(dialect.marks_targets),
            )
            for inputs, several in sides
        ]

    def _candidates(
        self, task: sources.BoundTask, questions: Sequence[Question]
    ) -> list[tuple[Ids, ...]]:
        """Return the answers that each question chooses from by likelihood; none to decode one."""
        vocabulary, dialect = self._model.vocabulary, self._model.dialect
        if self._config.scores_targets:
            longest = self.answer_length(task)
            targets = [np.asarray(each.example["targets"], np.int32) for each in questions]
            return [(trim(ids, longest, vocabulary.eos_id),) for ids in targets]
        labels: tuple[Ids, ...] = ()
        if isinstance(self._config.method, decoding.RankClassification) and task.definition:
            known = task.definition.labels
            labels = tuple(dialects.label_ids(vocabulary, dialect, label) for label in known)
        return [labels] * len(questions)

    def _input_ids(
        self, task: sources.BoundTask, inputs: Int32[np.ndarray, " text"]
    ) -> Int32[np.ndarray, " prompted"]:
        """Return the encoder's ids: the task's prompt, if there is one, and the question's text."""
        text = trim(inputs, self._text_budget, self._model.vocabulary.eos_id)
        if not self._model.config.num_virtual_ids:
            return text
        index = task.prompt_index if self._prompt_index is None else self._prompt_index
        return np.concatenate([prompt_ids(self._model.config, index), text])


def _asked(question: Question, dialect: Dialect) -> list[str]:
    """Return a question's text as each of its candidates answers it.

    **Raises:** `UserError` where the text was cut.
    """
    example = question.example
    own = [_text(each) for each in example["questions"]]
    written = dialect.question(own[int(example["right"])])
    if not question.text.endswith(written):
        raise UserError(
            f"Question {question.id!r} was cut, so that its candidates cannot be told apart: raise "
            "TASK_FEATURE_LENGTHS['inputs']."
        )
    before = question.text.removesuffix(written)
    return [before + each for each in own]


def _text(value: object) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
