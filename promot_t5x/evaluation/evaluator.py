"""Evaluate a model on a task's questions: answer them, score the answers, and keep both.

`Evaluator` reads the questions once and answers them with the weights of any number of steps.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from promot_t5x import config, versions
from promot_t5x.checkpoints import hashing
from promot_t5x.data import sources
from promot_t5x.distributed import processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import listed
from promot_t5x.evaluation import records, scoring
from promot_t5x.evaluation.answering import Answer, Answerer, primary_process_result
from promot_t5x.evaluation.eval_config import EvalConfig as EvalConfig
from promot_t5x.evaluation.journal import Journal
from promot_t5x.evaluation.question_set import QuestionSet
from promot_t5x.evaluation.records import EvalRun, TaskResult
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.training.state import Tree, flatten, unflatten

_CHECKED = 1_000  # questions of each task that are read before a run trains


class Evaluator:
    """Asks a fixed set of questions; `run` may be called with the weights of many steps.

    **Arguments:**

    - `model`: with a prompt table, each input is preceded by its own task's prompt; without one
      the questions are asked as they stand.
    - `config`: what is asked, and how answers are decoded.
    - `partitioner`: the mesh that the weights lie on.
    - `prompt_index`: the one prompt that precedes the inputs of all tasks instead.

    **Raises:** `UserError` for input that does not fit together. Examples are read when they are
    first asked.
    """

    def __init__(
        self,
        model: Model,
        config: EvalConfig,
        partitioner: Partitioner,
        prompt_index: int | None = None,
    ):
        self.model, self._config = model, config
        self.questions = QuestionSet(model, config, prompt_index)
        self._answerer = Answerer(model, config.decoding_method, config.batch_size, partitioner)
        self._is_checked = self._is_planned = False

    @property
    def tasks(self) -> Sequence[sources.BoundTask]:
        """The tasks that are asked, in the order that numbers their prompts."""
        return self.questions.tasks

    @property
    def compilations(self) -> Sequence[tuple[int, int]]:
        """(input length, output length) of each program compiled so far."""
        return self._answerer.compilations

    def check(self, label: str) -> None:
        """Read the questions and score their own right answers: what would fail, fails now.

        **Arguments:**

        - `label`: what lines start with.

        **Raises:** `UserError` for a row that cannot be read and answers that cannot be scored.
        Of a task with more than 1,000 questions it is the first 1,000, and a line says so.
        """
        if self._is_checked:
            return
        self._is_checked = True
        read = self.questions.first(_CHECKED)
        for asked in read:
            scoring.check_scoring(
                asked, self.model.vocabulary, by_likelihood=self._config.scores_targets
            )
        cut = [
            asked.task.name
            for asked in read
            if len(asked.questions) == _CHECKED != self._config.num_examples
        ]
        if cut and processes.is_primary():
            print(f"{label}: checked the first {_CHECKED:,} questions of {listed(cut)}", flush=True)

    def run(self, params: Tree, label: str, run: EvalRun | None = None) -> list[TaskResult]:
        """Answer and score every question with these parameters.

        **Arguments:**

        - `params`: nested dict of arrays that lie on the mesh.
        - `label`: what lines and progress of this evaluation start with.
        - `run`: the weights that answer, and where the results go; what an earlier launch has
          recorded there is not asked again. Without it nothing is written.

        **Returns:** a result for each task, in the order of `tasks`.
        """
        if run is not None and (before := self._recorded(run)) is not None:
            return before
        if not self._is_planned:
            self._plan(label)
        began, compiled = time.monotonic(), len(self.compilations)
        journal = None if run is None else self._journal(run)
        answers, made = self._answerer.answers(params, label, journal)
        results = self._scored(answers)
        if run is not None and journal is not None and processes.is_primary():
            seconds = time.monotonic() - began
            timings = {
                "seconds": seconds,
                "examples": made,
                "examples_per_second": made / seconds,
                "compilations": self.compilations[compiled:],
            }
            records.write(run, results, **self._provenance(), timings=timings)
            journal.remove()
        return results

    def _plan(self, label: str) -> None:
        """Read the questions and plan the batches that answer them."""
        encoded = [question for each in self.questions.by_task for question in each.encoded]
        self._answerer.plan(encoded)
        self._is_planned = True
        if processes.is_primary():
            shapes = ", ".join(f"{i} + {o}" for i, o in self._answerer.programs)
            print(f"{label}: {len(encoded):,} questions in programs of {shapes} tokens", flush=True)

    def _scored(self, answers: Sequence[Answer]) -> list[TaskResult]:
        results, start = [], 0
        for asked in self.questions.by_task:
            rows = slice(start, start + len(asked.encoded))
            start = rows.stop
            results.append(
                scoring.score_answers(
                    asked,
                    answers[rows],
                    self.model.vocabulary,
                    by_likelihood=self._config.scores_targets,
                )
            )
        return results

    def _journal(self, run: EvalRun) -> Journal:
        path = run.directory / records.DIRECTORY / f"answers-{run.step:06}.partial"
        return Journal(path, self._answerer.identity(run.weights))

    def _recorded(self, run: EvalRun) -> list[TaskResult] | None:
        """Return what an earlier launch recorded of this evaluation, if it got to its end."""

        def read() -> list[dict[str, Any]] | None:
            found = [records.read(run, task.name) for task in self.tasks]
            if not all(found):
                return None
            return [dataclasses.asdict(each.result()) for each in found if each is not None]

        results = primary_process_result(read)
        return None if results is None else [TaskResult(**each) for each in results]

    def _provenance(self) -> dict[str, Any]:
        """Return what the summaries say of how answers were made."""
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


def eval_run(
    directory: epath.Path,
    step: int,
    params: Tree,
    *,
    path: str | None,
    origin: str,
    prompt_origin: str | None = None,
    selection_split: Mapping[str, str] | None = None,
) -> EvalRun:
    """Identify an evaluation by the content hashes of the parameters themselves.

    **Arguments:**

    - `directory`, `step`: where the results go, and under which step.
    - `params`: nested dict of arrays on the mesh, with a prompt table or without.
    - `path`, `origin`: where the model's weights come from.
    - `prompt_origin`: where the prompt comes from.
    - `selection_split`: by task, the split on which the weights' checkpoint was chosen.
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
        selection_split=selection_split or {},
        config=config.resolved_str(),
    )
