"""Measurements of a stage as it trains: target score and loss, suite, gradient alignment."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath

from promot_t5x.checkpoints.paths import CHECKPOINT_PREFIX
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.checkpoints.steps import LOSS
from promot_t5x.distributed import processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation import drift, records
from promot_t5x.evaluation.evaluator import Evaluator, eval_run
from promot_t5x.evaluation.records import EvalRun, TaskResult, mean_score
from promot_t5x.evaluation.validation_loss import ValidationLoss
from promot_t5x.models.model import Model
from promot_t5x.runs import goodput
from promot_t5x.runs.metric_writer import ALIGNMENT, EvaluationEvents
from promot_t5x.runs.stages import Stage
from promot_t5x.training import alignment, state

SUITE_DIRECTORY = "suite_eval"  # within a stage's, the suite's answers while it trained
TRAINING_EVAL = "training_eval"  # likewise, T5X's name, the events of the validation loss
SCORE = "score"  # the name of the validation score among a checkpoint's metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluators:
    """A stage's evaluators, whose input has been checked; runs of several seeds share them."""

    partitioner: Partitioner
    target: Evaluator | None
    validation_loss: ValidationLoss | None
    suite: Evaluator | None
    alignment: alignment.Alignment | None
    drift: drift.Drift | None
    in_context: Model

    @property
    def selection_split(self) -> dict[str, str]:
        """By task, the split on whose score the stage's checkpoint is chosen."""
        if self.target is None:
            return {}
        questions = self.target.questions
        return {task.name: questions.split(task) for task in questions.tasks}

    def check(self, label: str, token_cache: epath.Path | None) -> None:
        """Read what will be asked, and score its right answers; raises as `Evaluator.check`."""
        if self.validation_loss is not None:
            self.validation_loss.open(token_cache)
        for evaluator in (self.target, self.suite):
            if evaluator is not None:
                evaluator.check(label)


def evaluators(
    model: Model,
    trained: Model,
    stage: Stage,
    partitioner: Partitioner,
) -> Evaluators:
    """Check what a stage measures, and make what measures it.

    **Arguments:**

    - `model`: with a prompt table if the stage has a prompt.
    - `trained`: the same with the stage's own label smoothing.
    """
    target, validation_loss, drifted = None, None, None
    in_context = stage.in_context(model)
    if stage.evaluation:
        target = Evaluator(model, stage.evaluation, partitioner)
        pack = bool(stage.train_dataset.pack)
        questions = target.questions
        validation_loss = ValidationLoss(
            trained, stage.evaluation, questions, partitioner, pack=pack
        )
        if stage.drift:
            length = model.prompt_shape[1]
            drifted = drift.Drift(
                in_context, length, stage.evaluation, questions, partitioner, pack=pack
            )
    suite, aligned = None, None
    if stage.suite and stage.suite_period:
        suite = Evaluator(in_context, stage.suite, partitioner)
    if stage.alignment:
        data = stage.train_dataset
        aligned = alignment.Alignment(model, stage.alignment, data, partitioner)
    return Evaluators(
        partitioner=partitioner,
        target=target,
        validation_loss=validation_loss,
        suite=suite,
        alignment=aligned,
        drift=drifted,
        in_context=in_context,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measurements of one run of a stage, and the files that they go to.

    **Attributes:**

    - `evaluators`: of the stage.
    - `label`: what lines start with, such as `[stage_one]`.
    - `directory`: of the stage.
    - `token_cache`: keeps tokenized examples from one launch to the next.
    - `report`: prints a line.
    - `events`: gets the scalars.
    """

    stage: Stage
    evaluators: Evaluators
    label: str
    directory: epath.Path
    token_cache: epath.Path | None
    report: Callable[[str], None]
    events: EvaluationEvents

    def measure(self, saver: Checkpoints, train_state: state.TrainState, step: int) -> None:
        """Measure what the stage asks for on a saved step; metrics in its checkpoint end it."""
        with goodput.current().spent(goodput.EVALUATION):
            self.align(train_state, step)
            drifts = self.drift(train_state, step)
            saver.add_metrics(step, {**self.validate(train_state, step), **drifts})

    def validate(self, train_state: state.TrainState, step: int) -> dict[str, float]:
        """Return the target's validation score and loss and the metrics that they are made of."""
        target, validation_loss = self.evaluators.target, self.evaluators.validation_loss
        if target is None or validation_loss is None:
            return {}
        run = self._eval_run(self.directory, step, train_state.params)
        with self.evaluators.partitioner.activate():
            results = target.run(train_state.params, f"{self.label} validation", run)
        losses = validation_loss.measure(train_state.params, self.token_cache)
        self._write_events(self.directory, step, results)
        if processes.is_primary():
            for task, scalars in losses.items():
                self.events.write(self.directory / TRAINING_EVAL / task, step, scalars)
        found = {f"{r.task}/{name}": value for r in results for name, value in r.metrics.items()}
        found[SCORE] = mean_score(results)
        if losses:
            found[LOSS] = float(np.mean([each["loss"] for each in losses.values()]))
        name = records.score_name([result.primary for result in results])
        self.report(
            f"step {step}: validation score {found[SCORE]:.2f}{f' ({name})' if name else ''}, "
            f"loss {found.get(LOSS, math.nan):.4f}"
        )
        found = {name: value for name, value in found.items() if not math.isnan(value)}
        if (best := self.stage.best_metric) not in found and best != SCORE:
            raise UserError(
                f"stage {self.stage.name!r}: BEST_METRIC = {best!r} is not among the metrics of "
                f"its validation: {', '.join(found)}.{did_you_mean(best, found)}"
            )
        return found

    def suite_is_due(self, step: int) -> bool:
        """Whether the suite is evaluated at a step."""
        period = self.stage.suite_period
        if self.evaluators.suite is None or period is None:
            return False
        return step % period == 0 or step == self.stage.train_steps

    def evaluate_suite(self, train_state: state.TrainState, step: int) -> None:
        """Evaluate the suite without what is attached, if it is due and not on file already."""
        suite = self.evaluators.suite
        if suite is None or not self.suite_is_due(step):
            return
        params = self._in_context(train_state.params)
        directory = self.directory / SUITE_DIRECTORY
        run = self._eval_run(directory, step, params)
        with self.evaluators.partitioner.activate():
            results = suite.run(params, f"{self.label} suite", run)
        self._write_events(directory, step, results)
        self.report(f"step {step}: suite's mean score {mean_score(results):.2f}")

    def alignment_is_due(self, step: int) -> bool:
        """Whether gradient alignment is measured at a step without a validation score."""
        return self.evaluators.alignment is not None and self.evaluators.alignment.is_due(step)

    def align(self, train_state: state.TrainState, step: int) -> None:
        """Measure and write down gradient alignment, if the stage asks for it."""
        if self.evaluators.alignment is None:
            return
        seed = self.stage.train_dataset.seed
        cosines = self.evaluators.alignment.measure(train_state.params, self.token_cache, seed)
        if processes.is_primary():
            alignment.write(self.directory, step, cosines)
            scalars = {f"gradient_alignment/{block}": each.value for block, each in cosines.items()}
            self.events.write(self.directory / "train", step, scalars, ALIGNMENT)
        shown = "  ".join(f"{block} {each.value:.2f}" for block, each in cosines.items())
        self.report(f"step {step}: gradient alignment {shown}")

    def drift(self, train_state: state.TrainState, step: int) -> dict[str, float]:
        """Measure and write down how far the model has gone, if the stage asks for it.

        **Returns:** the metrics of the step's checkpoint.
        """
        if self.evaluators.drift is None:
            return {}
        base = state.merge(train_state.base, train_state.frozen)
        drifts = self.evaluators.drift.measure(
            self._in_context(train_state.params), self._in_context(base), self.token_cache
        )
        if processes.is_primary():
            drift.write(self.directory, step, drifts)
            for task, value in drifts.items():
                self.events.write(self.directory / TRAINING_EVAL / task, step, {drift.NAME: value})
        shown = "  ".join(f"{task} {value:.4f}" for task, value in drifts.items())
        self.report(f"step {step}: drift {shown} nats per target token")
        return {f"{task}/{drift.NAME}": value for task, value in drifts.items()}

    def metric(self, step: int) -> str | None:
        """Return the name of the score of an evaluated step, as the primary process knows it."""
        if self.evaluators.target is None or not processes.is_primary():
            return None
        folder = self.directory / records.DIRECTORY
        found = [each for each in records.find(folder) if each.step == step]
        return records.score_name([each.summary()["primary"] for each in found])

    def _write_events(
        self, directory: epath.Path, step: int, results: Sequence[TaskResult]
    ) -> None:
        if not processes.is_primary():
            return
        for result in results:
            # T5X's tag of a metric of decoded answers.
            metrics = {f"eval/{name}": value for name, value in result.metrics.items()}
            self.events.write(directory / records.DIRECTORY / result.task, step, metrics)

    def _eval_run(self, directory: epath.Path, step: int, params: state.Tree) -> EvalRun:
        origin = f"this run: stage {self.stage.name}, step {step}"
        return eval_run(
            directory,
            step,
            params,
            path=str(directory / f"{CHECKPOINT_PREFIX}{step}"),
            origin=origin,
            prompt_origin=origin,
            selection_split=self.evaluators.selection_split,
        )

    def _in_context(self, params: state.Tree) -> state.Tree:
        return state.only(params, self.evaluators.in_context.param_shapes())
