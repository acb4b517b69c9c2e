"""A larger TRAIN_STEPS: a finished stage goes on, exactly as if it had been asked for at first."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from promot_t5x.checkpoints.paths import METRICS_FILE, step_directory
from promot_t5x.checkpoints.stage_result import RESULT_FILE, StageResult
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError
from promot_t5x.evaluation import drift, records
from promot_t5x.files import keep_until, read_json_lines
from promot_t5x.runs import metric_writer
from promot_t5x.runs.measurements import SUITE_DIRECTORY, TRAINING_EVAL
from promot_t5x.runs.stages import Stage
from promot_t5x.training import alignment


def trained_steps(finished: StageResult) -> int:
    """Return how many steps a finished stage was trained; an older stage's metrics say so."""
    if finished.train_steps is not None:
        return finished.train_steps
    rows = read_json_lines(finished.directory / "train" / "metrics.jsonl")
    return max((int(row["step"]) for row in rows), default=finished.step)


def check_growth(stages: Mapping[str, Stage], directories: Mapping[str, epath.Path]) -> None:
    """Refuse a TRAIN_STEPS whose run would have been another one from the start.

    **Arguments:**

    - `stages`: of the run, by name.
    - `directories`: of each of them.

    **Raises:** `UserError` where the learning rates of steps already taken would have been others,
    where the chosen checkpoint would not have been there, and where later stages have started from
    a stage that is to go on.
    """
    for name, stage in stages.items():
        directory = directories[name]
        finished = StageResult.read(directory)
        if finished is None:
            check_schedule(stage, max(complete_steps(directory), default=0), directory)
        elif (last := trained_steps(finished)) < stage.train_steps:
            check_schedule(stage, last, directory)
            _check_chosen(stage, finished)
            for other in stages.values():
                place = directories[other.name]
                started = StageResult.read(place) or complete_steps(place)
                if name in (other.base, other.prompt) and started:
                    raise UserError(
                        f"stage {name!r} finished after {last} steps and is to go on to "
                        f"{stage.train_steps}, but stage {other.name!r} has started from what it "
                        "chose. Give this run a MODEL_DIR of its own, or remove "
                        f"{place} to train that stage again."
                    )


def check_schedule(stage: Stage, step: int, directory: epath.Path) -> None:
    """Refuse to go on where the learning rates up to a step would have been others.

    With a larger TRAIN_STEPS a schedule that depends on it changes from its first step on.
    """
    rows = read_json_lines(directory / "train" / "metrics.jsonl")
    rates = {row["step"]: row["learning_rate"] for row in rows if row["step"] <= step}
    if not rates:
        return
    counts = jnp.asarray(sorted(rates), jnp.int32) - 1 + stage.optimizer_step
    schedule: Callable[..., jax.Array] = jax.vmap(
        lambda count: jnp.asarray(stage.learning_rate(count), jnp.float32)
    )
    now = dict(zip(sorted(rates), np.asarray(schedule(counts)).tolist(), strict=True))
    for number, rate in now.items():
        # The compiled step may round a schedule's last digit otherwise.
        if not np.isclose(rate, rates[number], rtol=1e-5, atol=0):
            raise UserError(
                f"stage {stage.name!r}: step {number} was trained at a learning rate of "
                f"{rates[number]:g}, and the schedule now has {rate:g} there: it depends on "
                f"TRAIN_STEPS = {stage.train_steps} or was changed, so this run cannot go on as if "
                "it had been asked for at first. Give it a MODEL_DIR of its own, or a schedule "
                "that is the same up to there, such as a constant one."
            )


def _check_chosen(stage: Stage, finished: StageResult) -> None:
    """Refuse a chosen last step that stands off EVAL_PERIOD."""
    last = trained_steps(finished)
    if _is_off_period(stage, last) and finished.step == last:
        raise UserError(
            f"stage {stage.name!r} cannot go on from step {last} to TRAIN_STEPS = "
            f"{stage.train_steps} as if that had been asked for at first: its chosen checkpoint is "
            f"that of step {last}, which EVAL_PERIOD = {stage.eval_period} does not divide, and a "
            "longer run would have chosen an earlier one, which is gone. Give it a MODEL_DIR of "
            "its own."
        )


def _is_off_period(stage: Stage, step: int) -> bool:
    return bool(step % stage.eval_period) and stage.evaluation is not None


def reopen(stage: Stage, finished: StageResult) -> None:
    """Let a finished stage go on, which `check_growth` has passed.

    A last step that stands off EVAL_PERIOD would have been no candidate in the longer run, so what
    was measured there goes.
    """
    directory, last = finished.directory, trained_steps(finished)
    if processes.is_primary():
        if _is_off_period(stage, last):
            (step_directory(directory, last) / METRICS_FILE).unlink(missing_ok=True)
            for measured in (alignment.FILE, drift.FILE):
                keep_until(directory / measured, last - 1)
            _remove_evaluation(directory, last)
        if stage.suite_period is not None and last % stage.suite_period:
            _remove_evaluation(directory / SUITE_DIRECTORY, last)
        (directory / RESULT_FILE).unlink()
    processes.wait_for_all()


def _remove_evaluation(directory: epath.Path, step: int) -> None:
    records.remove_from(directory, step)
    for folder in (records.DIRECTORY, TRAINING_EVAL):
        for path in sorted(directory.glob(f"{folder}/*/{metric_writer.EVENTS}*")):
            metric_writer.remove_events_from(path, step)
