"""Train one stage: `Trainer.run` reads top to bottom, from the data to the last checkpoint."""

import concurrent.futures
import contextlib
import copy
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x import config
from promot_t5x.checkpoints import prompt_file, saving
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.data import batches, example_store, sources, store
from promot_t5x.data.assembly import Batch
from promot_t5x.data.batch_rows import Shape
from promot_t5x.distributed import preemption, processes, startup
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import Preempted, UserError
from promot_t5x.evaluation import records
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path
from promot_t5x.progress import duration
from promot_t5x.runs import (
    batch_contents,
    compiled_programs,
    goodput,
    preflight,
    run_directory,
)
from promot_t5x.runs.growth import check_growth, reopen, trained_steps
from promot_t5x.runs.initial_state import initial_state
from promot_t5x.runs.loggers import Logger, running
from promot_t5x.runs.measurements import SCORE, SUITE_DIRECTORY, Measurements, evaluators
from promot_t5x.runs.metric_writer import EvaluationEvents
from promot_t5x.runs.non_finite import NonFiniteSteps, newest_checkpoint
from promot_t5x.runs.outlook import Outlook
from promot_t5x.runs.profiling import Profile
from promot_t5x.runs.program import StageProgram
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.step_log import StepLog
from promot_t5x.runs.weights import Weights
from promot_t5x.training.step import array_names


def train(
    *,
    model: Model,
    stage: Stage,
    model_dir: str,
    partitioner: Partitioner,
    loggers: Sequence[Logger] = (),
) -> StageResult:
    """Train one stage in `model_dir`; `promot-t5x train` calls this.

    A stage that was interrupted continues from its newest checkpoint; one that has finished is
    left as it is, unless its TRAIN_STEPS has grown.

    **Arguments:**

    - `model`: the network with its vocabulary and loss.
    - `stage`: what trains, on what, for how long.
    - `model_dir`: the run's own directory.
    - `partitioner`: the mesh.
    - `loggers`: of `runs.loggers`, get the numbers besides TensorBoard and JSON lines.

    **Returns:** the finished stage.

    **Raises:** `UserError` for bad input, before anything is written.
    """
    with goodput.accounted():
        preflight.train(model=model, stage=stage, model_dir=model_dir, loggers=loggers)
        directory = user_path(model_dir, "MODEL_DIR")
        trainer = Trainer(model, stage, Weights(model), partitioner)
        run_directory.claim(
            directory,
            config.resolved_str(),
            check=lambda: check_growth({stage.name: stage}, {stage.name: directory}),
        )
        text = config.resolved_str()
        with running(loggers, directory, text), compiled_programs.kept(directory):
            # The stage is the whole run: its own time left says all.
            return trainer.run(directory, run_directory.token_cache(directory), Outlook({}, []))


class Trainer:
    """A stage whose input has been checked; `run` trains it.

    **Arguments:**

    - `model`: the network with its vocabulary and loss.
    - `stage`: what trains, on what, for how long.
    - `weights`: finds the pretrained checkpoint and the prompt.
    - `partitioner`: the mesh.
    - `earlier`: the stages that run before this one, by name.

    **Raises:** `UserError` for all that can be checked before the first array is read or written.
    """

    def __init__(
        self,
        model: Model,
        stage: Stage,
        weights: Weights,
        partitioner: Partitioner,
        earlier: Mapping[str, Stage] | None = None,
    ):
        self.stage, self._weights, self._partitioner = stage, weights, partitioner
        self._label = f"[{stage.name}]"
        data = stage.train_dataset
        partitioner.check_batch(data.batch_size, f"stage {stage.name!r}: BATCH_SIZE")
        if stage.microbatches > 1:
            rows = data.batch_size // stage.microbatches
            partitioner.check_batch(rows, f"stage {stage.name!r}: BATCH_SIZE / microbatches")
        for what in ("base", "prompt", "adapter"):
            weights.check(getattr(stage, what), earlier or {}, what)
        self._model = weights.model_of(stage)
        stage.check_model(self._model)
        partitioner.shard_tree(self._model.param_axes(), self._model.param_shapes())
        self._tasks = sources.resolve_tasks(
            data.mixture_or_task_name,
            model.vocabulary,
            module=data.module,
            split=data.split,
            rates=data.rates,
            dialect=model.dialect,
            task_format=model.task_format,
        )
        self._check_prompts()
        self._program = StageProgram(self._model, stage, partitioner)
        self._evaluators = evaluators(self._model, self._program.model, stage, partitioner)

    def seeded(self, seed: int, weights: Weights) -> "Trainer":
        """Return the stage with another seed; what either compiles and reads serves both.

        **Arguments:**

        - `seed`: of dropout, new parameters and the order of the data.
        - `weights`: finds the stages of the run with that seed.
        """
        other = copy.copy(self)
        other.stage, other._weights = self.stage.with_seed(seed), weights
        other._label = f"[{self.stage.name}, seed {seed}]"
        return other

    def _check_prompts(self) -> None:
        prompts, length, _ = self._model.prompt_shape
        data = self.stage.train_dataset
        longest = data.task_feature_lengths["inputs"]
        if length >= longest:
            raise UserError(
                f"stage {self.stage.name!r}: PROMPT_LENGTH = {length} leaves no room for text in "
                f"TASK_FEATURE_LENGTHS['inputs'] = {longest}, which includes the prompt."
            )
        if prompts and prompts != len(self._tasks):
            raise UserError(
                f"stage {self.stage.name!r}: {data.mixture_or_task_name!r} has "
                f"{len(self._tasks)} tasks but NUM_PROMPTS = {prompts}; every task has a prompt of "
                f"its own, so set NUM_PROMPTS = {len(self._tasks)}."
            )

    def run(
        self, directory: epath.Path, token_cache: epath.Path | None, outlook: Outlook
    ) -> StageResult:
        """Train to the stage's last step, from wherever an earlier launch left off.

        **Arguments:**

        - `directory`: of the stage; gets checkpoints, metrics and the validation's records.
        - `token_cache`: keeps tokenized examples from one launch or stage to the next.
        - `outlook`: of the run that the stage belongs to.

        **Returns:** the finished stage: its chosen step and that step's score.

        **Raises:** `NonFiniteError` at a step whose numbers are not finite, `Preempted` after
        SIGTERM, `SaveError` where a checkpoint cannot be written, `UserError` where the directory
        holds what this run cannot continue.
        """
        stage, partitioner = self.stage, self._partitioner
        if (finished := StageResult.read(directory)) is not None:
            if trained_steps(finished) >= stage.train_steps:
                self._say(f"finished before: step {finished.step}{self._scored(finished)}")
                return finished
            reopen(stage, finished)
            trained = trained_steps(finished)
            self._say(f"finished before at step {trained}; goes on to step {stage.train_steps}")

        clock = goodput.current()
        with clock.spent(goodput.DATA):
            # What is asked of the model while it trains is read before it does.
            self._evaluators.check(self._label, token_cache)

            # Where a batch comes from: a function of (tasks, seed, step).
            data, stores = self._open_data(token_cache)

        with (
            saving.Checkpoints(
                directory,
                keep=stage.keep,
                keep_period=stage.keep_period,
                best_metric=stage.best_metric,
                best_mode=stage.best_mode,
                best_ties=stage.best_ties,
            ) as saver,
            contextlib.closing(EvaluationEvents()) as events,
        ):
            # Where every parameter comes from: this run's newest checkpoint, or the stage's base.
            train_state, metadata = initial_state(
                stage, self._program, saver, self._weights, partitioner, data, self._say
            )
            start = int(train_state.step)
            measurements = Measurements(
                stage=stage,
                evaluators=self._evaluators,
                label=self._label,
                directory=saver.directory,
                token_cache=token_cache,
                report=self._say,
                events=events,
            )
            # What an earlier launch answered after that step is of weights that are no more.
            if processes.is_primary():
                for place in (directory, directory / SUITE_DIRECTORY):
                    records.forget_after(place, start)
            if start and self._is_due(start) and not saver.has_metrics(start):
                measurements.measure(saver, train_state, start)
            with clock.spent(goodput.EVALUATION):
                measurements.evaluate_suite(train_state, start)

            # What the step does with a batch: compiled ahead of the loop, once for each shape.
            self._compiled(data.shape(start))

            # Where its result goes: metrics every step, a checkpoint and a score every period.
            non_finite = NonFiniteSteps(
                arrays=array_names(train_state.trainable),
                limit=stage.skip_non_finite_steps,
                examples=functools.partial(
                    batch_contents.names, data, self._tasks, stage.train_dataset, stores
                ),
                newest=lambda: newest_checkpoint(saver),
                report=self._say,
            )
            log = StepLog(self._label, directory, start, stage.train_steps, non_finite)
            profile = Profile(directory, self._say)
            outlook.begin(start)
            with (
                contextlib.closing(log),
                contextlib.closing(profile),
                concurrent.futures.ThreadPoolExecutor(1) as reader,
                preemption.postponed(),
                clock.spent(goodput.STEPS),
            ):
                upcoming = reader.submit(self._rows, data, start)
                finite = None
                if start == 0:
                    with clock.spent(goodput.EVALUATION):
                        measurements.align(train_state, 0)
                        measurements.drift(train_state, 0)
                for number in range(start + 1, stage.train_steps + 1):
                    shape, batch = goodput.wait_for_batch(upcoming, finite)
                    upcoming = reader.submit(self._rows, data, number)
                    placed = partitioner.place_batch(batch)
                    take = functools.partial(self._compiled(shape), train_state, placed)
                    train_state, metrics, finite = profile.step(number, take)
                    outlook.step()
                    log.add(number, metrics, finite, placed)
                    saver.check()
                    due = self._is_due(number)
                    stop = preemption.reached()
                    aligned = measurements.alignment_is_due(number)
                    if not (due or stop or aligned or measurements.suite_is_due(number)):
                        continue
                    # Raises for a step that is not finite, before anything of it is saved.
                    log.pause()
                    if due or stop:
                        # Saved before it is evaluated: nothing is lost with the evaluation.
                        with clock.spent(goodput.SAVES):
                            saver.save(
                                number,
                                trainable=train_state.trainable,
                                opt_state=train_state.opt_state,
                                metadata=metadata.at(number, data),
                                temporary=not due,
                            )
                    if stop:
                        with clock.spent(goodput.SAVES):
                            saver.wait()
                        raise Preempted(
                            f"stopped by {preemption.cause()}; step {number} is in {directory}"
                        )
                    with preemption.at_once():
                        if due:
                            measurements.measure(saver, train_state, number)
                        with clock.spent(goodput.EVALUATION):
                            if aligned and not due:
                                measurements.align(train_state, number)
                            measurements.evaluate_suite(train_state, number)
                    log.resume()
            with clock.spent(goodput.SAVES):
                saver.wait()
            result = self._result(saver, measurements)
        self._finish(result, metadata.base_hash)
        self._say(f"done: best step {result.step}{self._scored(result)}")
        if result.score == 0.0:
            self._say(self._warning_of_zeros(result))
        return result

    def _result(self, saver: saving.Checkpoints, measurements: Measurements) -> StageResult:
        chosen = saver.best() or saver.latest()
        assert chosen is not None  # the loop's last step saved one
        return StageResult(
            directory=saver.directory,
            step=chosen,
            score=saver.metrics(chosen).get(SCORE),
            metric=measurements.metric(chosen),
            train_steps=self.stage.train_steps,
            selection_split=self._evaluators.selection_split,
        )

    def _say(self, text: str) -> None:
        if processes.is_primary():
            print(f"{self._label} {text}", flush=True)

    def _scored(self, result: StageResult) -> str:
        """Return a stage's score as its lines show it, with the metric's name."""
        if result.score is None:
            return ""
        name = f" ({result.metric})" if result.metric else ""
        return f", validation score {result.score:.2f}{name}"

    def _warning_of_zeros(self, result: StageResult) -> str:
        by = {
            "loss": f"the least validation loss (step {result.step})",
            "earliest": f"the earliest ({result.step})",
            "latest": f"the latest ({result.step})",
        }[self.stage.best_ties]
        return (
            f"warning: every validation score was 0: no checkpoint gave a right answer, and {by} "
            f"was chosen among them. See the answers in {result.directory / records.DIRECTORY}; "
            "train longer, or check the task's answers, DIALECT and DECODING."
        )

    def _rows(self, data: batches.Batches, step: int) -> tuple[Shape, Batch]:
        """Read the rows of a batch that this process's own devices hold."""
        shape = data.shape(step)
        return shape, data.batch(step, self._partitioner.rows(shape.rows))

    def _compiled(self, shape: Shape) -> Any:
        """Return the step; a stage of several seeds compiles it once."""
        if not self._program.is_compiled(shape):
            began = time.monotonic()
            with goodput.current().spent(goodput.COMPILE):
                self._program.compile(shape)
                startup.meet()
            of = f" for {shape}" if self.stage.train_dataset.pack == "batch" else ""
            self._say(f"step{of} compiled in {duration(time.monotonic() - began)}")
        return self._program.compile(shape)

    def _open_data(
        self, token_cache: epath.Path | None
    ) -> tuple[batches.Batches, list[example_store.Store]]:
        dataset = self.stage.train_dataset
        prompts, prompt_length, _ = self._model.prompt_shape
        lengths = dict(dataset.task_feature_lengths)
        budget = {**lengths, "inputs": lengths["inputs"] - prompt_length}
        with startup.first_on_host():  # which tokenizes
            stores = [
                store.open_store(
                    task,
                    dataset.split,
                    cache_dir=token_cache,
                    text_lengths=budget,
                    shot_seed=dataset.seed,
                )
                for task in self._tasks
            ]
        data = batches.Batches(
            self._tasks,
            stores,
            batch_size=dataset.batch_size,
            lengths=lengths,
            pack=dataset.pack,
            row_multiple=self._partitioner.batch_ways * self.stage.microbatches,
            seed=dataset.seed,
            shuffle=dataset.shuffle,
            vocab_size=self._model.config.vocab_size,
            prompt_length=prompt_length,
            use_prompts=prompts > 0,
            start_id=self._model.start_id,
        )
        for task, examples, trimmed in zip(self._tasks, stores, data.trimmed.values(), strict=True):
            described = batch_contents.describe(task, dataset.split, examples, trimmed)
            self._say(f"data: {described}")
        if dataset.pack == "batch":
            smallest = data.shapes[0]
            self._say(
                f"data: {dataset.batch_size} examples lie in {smallest} (rows, inputs, targets) "
                f"where they fit, {smallest.tokens / self._program.whole.tokens:.0%} of the "
                "unpacked tokens"
            )
        return data, stores

    def _is_due(self, step: int) -> bool:
        return step % self.stage.eval_period == 0 or step == self.stage.train_steps

    def _finish(self, result: StageResult, base_hash: str | None) -> None:
        """Leave the stage's prompt and the mark that it is done."""
        if processes.is_primary():
            self._save_prompt(result, base_hash)
            result.write()
        processes.wait_for_all()

    def _save_prompt(self, result: StageResult, base_hash: str | None) -> None:
        """Write the chosen prompt as a small file of its own, if this stage trained one."""
        trained = result.trained()
        if PROMPT_PATH not in trained.shapes:
            return
        shape = trained.shapes[PROMPT_PATH].shape
        wanted = {PROMPT_PATH: jax.ShapeDtypeStruct(shape, np.float32)}
        table = trained.read(wanted)[PROMPT_PATH]
        info = prompt_file.PromptInfo(
            tasks=tuple(task.name for task in self._tasks),
            base_hash=base_hash,
            base_path=self.stage.base,
            initialiser=str(self.stage.prompt),
            config=config.resolved_str(),
            step=result.step,
        )
        prompt_file.save_prompt(result.directory / prompt_file.FILE_NAME, table, info)
