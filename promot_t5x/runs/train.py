"""Run one stage: `Trainer.run` reads top to bottom, from the data to the last checkpoint."""

import concurrent.futures
import contextlib
import copy
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x import config
from promot_t5x.checkpoints import prompt_file, saving
from promot_t5x.checkpoints.paths import CHECKPOINT_PREFIX
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.data import batches, sources, store
from promot_t5x.distributed import preemption, processes, startup
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import Preempted, UserError, did_you_mean
from promot_t5x.evaluation import records
from promot_t5x.evaluation.evaluator import Evaluator, eval_run
from promot_t5x.evaluation.records import EvalRun, mean_score
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path
from promot_t5x.progress import duration
from promot_t5x.runs import initial_state, preflight, run_directory
from promot_t5x.runs.program import StageProgram
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.step_log import StepLog
from promot_t5x.runs.weights import Weights
from promot_t5x.training import alignment, state

SUITE_DIRECTORY = "suite_eval"  # within a stage's, what the suite was answered while it trained
SCORE = "score"  # the name of the validation score among a checkpoint's metrics


def train(
    *,
    model: EncoderDecoderModel,
    stage: Stage,
    model_dir: str,
    partitioner: Partitioner,
) -> StageResult:
    """Train one stage in `model_dir`; `promot-t5x train` calls this.

    A stage that was interrupted continues from its newest checkpoint; one that has finished is
    left as it is. **Raises** `UserError` for bad input before anything is written.
    """
    preflight.train(model=model, stage=stage, model_dir=model_dir)
    directory = user_path(model_dir, "MODEL_DIR")
    trainer = Trainer(model, stage, Weights(model), partitioner)
    run_directory.claim(directory, config.resolved_str())
    return trainer.run(directory, run_directory.token_cache(directory))


def describe(
    task: sources.BoundTask,
    split: str,
    examples: store.Store,
    trimmed: Mapping[str, int],
) -> str:
    """How many examples a store holds, and how many lost what."""
    rows = task.num_input_examples(split)
    losses = {
        "rows left out": max(0, (rows or 0) - len(examples)),
        **examples.lost,
        **{f"{feature} cut": count for feature, count in trimmed.items()},
    }
    said = ", ".join(f"{what}: {count:,}" for what, count in losses.items() if count)
    return f"{examples.name}, {len(examples):,} examples" + (f" ({said})" if said else "")


class Trainer:
    """A stage whose input has been checked; `run` trains it."""

    def __init__(
        self,
        model: EncoderDecoderModel,
        stage: Stage,
        weights: Weights,
        partitioner: Partitioner,
        earlier: Mapping[str, Stage] | None = None,
    ):
        """Check everything that can be checked before the first array is read or written.

        **Arguments:**

        - `weights`: finds the base and the prompt.
        - `earlier`: the stages that run before this one, by name.
        """
        self.stage, self._weights, self._partitioner = stage, weights, partitioner
        self._model = model if stage.prompt is not None else model.without_prompt()
        data = stage.train_dataset
        partitioner.check_batch(data.batch_size, f"stage {stage.name!r}: BATCH_SIZE")
        if stage.microbatches > 1:
            rows = data.batch_size // stage.microbatches
            partitioner.check_batch(rows, f"stage {stage.name!r}: BATCH_SIZE / microbatches")
        for what in ("base", "prompt"):
            weights.check(getattr(stage, what), earlier or {}, what)
        shapes = self._model.param_shapes()
        state.split(shapes, stage.trainable)
        partitioner.shard_tree(self._model.param_axes(), shapes)
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
        self._evaluator = (
            Evaluator(self._model, stage.evaluation, partitioner) if stage.evaluation else None
        )
        self._suite = (
            Evaluator(model.without_prompt(), stage.suite, partitioner)
            if stage.suite and stage.suite_period
            else None
        )
        self._alignment = (
            alignment.Alignment(self._model, stage.alignment, data, partitioner)
            if stage.alignment
            else None
        )

    def seeded(self, seed: int, weights: Weights) -> "Trainer":
        """The stage with another seed; what either compiles and reads serves both.

        **Arguments:**

        - `weights`: finds the stages of the run with that seed.
        """
        other = copy.copy(self)
        other.stage, other._weights = self.stage.with_seed(seed), weights
        return other

    def _check_prompts(self) -> None:
        prompts, length, _ = self._model.prompt_shape
        data = self.stage.train_dataset
        room = data.task_feature_lengths["inputs"]
        if length >= room:
            raise UserError(
                f"stage {self.stage.name!r}: PROMPT_LENGTH = {length} leaves no room for text in "
                f"TASK_FEATURE_LENGTHS['inputs'] = {room}, which includes the prompt."
            )
        if prompts and prompts != len(self._tasks):
            raise UserError(
                f"stage {self.stage.name!r}: {data.mixture_or_task_name!r} has "
                f"{len(self._tasks)} tasks but NUM_PROMPTS = {prompts}; every task has a prompt of "
                f"its own, so set NUM_PROMPTS = {len(self._tasks)}."
            )

    def run(self, directory: epath.Path, token_cache: epath.Path | None) -> StageResult:
        """Train to the stage's last step, from wherever an earlier launch left off.

        **Arguments:**

        - `directory`: of the stage; gets checkpoints, metrics and the validation's records.
        - `token_cache`: keeps tokenised examples from one launch or stage to the next.
        """
        stage, partitioner = self.stage, self._partitioner
        if (finished := StageResult.read(directory)) is not None:
            self._say(f"finished before: step {finished.step}, score {finished.score}")
            return finished

        # Where a batch comes from: a function of (tasks, seed, step).
        data = self._open_data(token_cache)

        with saving.Checkpoints(
            directory,
            keep=stage.keep,
            keep_period=stage.keep_period,
            best_metric=stage.best_metric,
            best_mode=stage.best_mode,
            best_ties=stage.best_ties,
        ) as saver:
            # Where every parameter comes from: this run's newest checkpoint, or the stage's base.
            train_state, identity = initial_state.begin(
                stage, self._program, saver, self._weights, partitioner, data, say=self._say
            )
            start = int(train_state.step)
            # What an earlier launch answered after that step is of weights that are no more.
            if processes.leads():
                for place in (directory, directory / SUITE_DIRECTORY):
                    records.forget_after(place, start)
            if start and self._is_due(start) and not saver.has_metrics(start):
                self._measure(saver, train_state, start, token_cache)
            self._evaluate_suite(train_state, directory, start)

            # What the step does with a batch: compiled once, ahead of the loop.
            train_step = self._compiled()

            # Where its result goes: metrics every step, a checkpoint and a score every period.
            log = StepLog(stage.name, directory, start, stage.train_steps)
            with (
                contextlib.closing(log),
                concurrent.futures.ThreadPoolExecutor(1) as reader,
                preemption.postponed(),
            ):
                # Each process reads the rows that its own devices hold.
                rows = partitioner.rows(stage.train_dataset.batch_size)
                upcoming = reader.submit(data.batch, start, rows)
                if start == 0:
                    self._align(train_state, directory, 0, token_cache)
                for number in range(start + 1, stage.train_steps + 1):
                    batch = upcoming.result()
                    upcoming = reader.submit(data.batch, number, rows)
                    placed = partitioner.place_batch(batch)
                    train_state, metrics = train_step(train_state, placed)
                    log.add(number, metrics, placed)
                    saver.check()
                    due = self._is_due(number)
                    stop = preemption.reached()
                    if not (due or stop or self._suite_is_due(number)):
                        continue
                    log.pause()
                    if due or stop:
                        # Saved before it is evaluated: nothing is lost with the evaluation.
                        saver.save(
                            number,
                            trainable=train_state.trainable,
                            opt_state=train_state.opt_state,
                            metadata=identity.metadata(data, number),
                            temporary=not due,
                        )
                    if stop:
                        saver.wait()
                        raise Preempted(f"stopped by SIGTERM; step {number} is in {directory}")
                    with preemption.at_once():
                        if due:
                            self._measure(saver, train_state, number, token_cache)
                        self._evaluate_suite(train_state, directory, number)
                    log.resume()
            saver.wait()
            chosen = saver.best() or saver.latest()
            assert chosen is not None  # the loop's last step saved one
            result = StageResult(
                directory=directory, step=chosen, score=saver.metrics(chosen).get(SCORE)
            )
        self._finish(result, identity.base_hash)
        self._say(f"done: best step {result.step}, score {result.score}")
        return result

    def _say(self, text: str) -> None:
        if processes.leads():
            print(f"[{self.stage.name}] {text}", flush=True)

    def _compiled(self) -> Any:
        """The step; a stage of several seeds compiles it once."""
        if not self._program.is_compiled:
            began = time.monotonic()
            self._program.compile()
            startup.meet()
            self._say(f"step compiled in {duration(time.monotonic() - began)}")
        return self._program.compile()

    def _open_data(self, token_cache: epath.Path | None) -> batches.Batches:
        dataset = self.stage.train_dataset
        prompts, prompt_length, _ = self._model.prompt_shape
        lengths = dict(dataset.task_feature_lengths)
        room = {**lengths, "inputs": lengths["inputs"] - prompt_length}
        with startup.first_on_host():  # which tokenises
            stores = [
                store.open_store(task, dataset.split, cache_dir=token_cache, text_lengths=room)
                for task in self._tasks
            ]
        data = batches.Batches(
            self._tasks,
            stores,
            batch_size=dataset.batch_size,
            lengths=lengths,
            pack=dataset.pack,
            seed=dataset.seed,
            shuffle=dataset.shuffle,
            vocab_size=self._model.config.vocab_size,
            prompt_length=prompt_length,
            use_prompts=prompts > 0,
        )
        for task, examples, trimmed in zip(self._tasks, stores, data.trimmed.values(), strict=True):
            self._say(f"data: {describe(task, dataset.split, examples, trimmed)}")
        return data

    def _is_due(self, step: int) -> bool:
        return step % self.stage.eval_period == 0 or step == self.stage.train_steps

    def _measure(
        self,
        saver: saving.Checkpoints,
        train_state: state.TrainState,
        step: int,
        token_cache: epath.Path | None,
    ) -> None:
        """Measure what the stage asks for on a saved step; metrics in its checkpoint end it."""
        self._align(train_state, saver.directory, step, token_cache)
        saver.add_metrics(step, self._evaluate(train_state, saver.directory, step))

    def _evaluate(
        self, train_state: state.TrainState, directory: epath.Path, step: int
    ) -> dict[str, float]:
        """The target's validation score and the metrics that it is made of."""
        if self._evaluator is None:
            return {}
        run = self._eval_run(directory, step, train_state.params)
        with self._partitioner.activate():
            label = f"[{self.stage.name}] validation"
            results = self._evaluator.run(train_state.params, label, run)
        score = mean_score(results)
        self._say(f"step {step}: validation score {score:.2f}")
        found = {f"{r.task}/{name}": value for r in results for name, value in r.metrics.items()}
        found = {name: value for name, value in found.items() if not np.isnan(value)}
        if not np.isnan(score):
            found[SCORE] = score
        if (best := self.stage.best_metric) not in found and best != SCORE:
            raise UserError(
                f"stage {self.stage.name!r}: BEST_METRIC = {best!r} is not among the metrics of "
                f"its validation: {', '.join(found)}.{did_you_mean(best, found)}"
            )
        return found

    def _suite_is_due(self, number: int) -> bool:
        stage = self.stage
        if self._suite is None or stage.suite_period is None:
            return False
        return number % stage.suite_period == 0 or number == stage.train_steps

    def _evaluate_suite(
        self, train_state: state.TrainState, directory: epath.Path, number: int
    ) -> None:
        """Ask the suite without the prompt, if it is due and not on file already."""
        if self._suite is None or not self._suite_is_due(number):
            return
        flat = state.flatten(train_state.params)
        flat.pop(PROMPT_PATH, None)
        params = state.unflatten(flat)
        run = self._eval_run(directory / SUITE_DIRECTORY, number, params)
        with self._partitioner.activate():
            results = self._suite.run(params, f"[{self.stage.name}] suite", run)
        self._say(f"step {number}: suite's mean score {mean_score(results):.2f}")

    def _eval_run(self, directory: epath.Path, number: int, params: state.Tree) -> EvalRun:
        origin = f"this run: stage {self.stage.name}, step {number}"
        path = str(directory / f"{CHECKPOINT_PREFIX}{number}")
        return eval_run(directory, number, params, path=path, origin=origin, prompt_origin=origin)

    def _align(
        self,
        train_state: state.TrainState,
        directory: epath.Path,
        number: int,
        token_cache: epath.Path | None,
    ) -> None:
        """Measure and write down gradient alignment, if the stage asks for it."""
        if self._alignment is None:
            return
        cosines = self._alignment.measure(train_state.params, token_cache)
        if processes.leads():
            alignment.write(directory, number, cosines)
        said = "  ".join(f"{block} {cosine:.2f}" for block, cosine in cosines.items())
        self._say(f"step {number}: gradient alignment {said}")

    def _finish(self, result: StageResult, base_hash: str | None) -> None:
        """Leave the stage's prompt and the mark that it is done."""
        if processes.leads():
            self._save_prompt(result, base_hash)
            result.write()
        processes.wait_for_leader()

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
