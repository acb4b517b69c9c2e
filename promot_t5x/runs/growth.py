"""A larger TRAIN_STEPS: a finished stage goes on, exactly as if it had been asked for at first."""

from collections.abc import Mapping, Sequence

from etils import epath

from promot_t5x.checkpoints.paths import METRICS_FILE, step_directory
from promot_t5x.checkpoints.stage_result import RESULT_FILE, StageResult
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.files import keep_until, read_json_lines
from promot_t5x.runs import metric_writer
from promot_t5x.runs.initial_state import check_schedule
from promot_t5x.runs.measurements import SUITE_DIRECTORY, TRAINING_EVAL
from promot_t5x.runs.stages import Stage
from promot_t5x.training import alignment


def trained_steps(finished: StageResult) -> int:
    """Return how many steps a finished stage was trained; an older stage's metrics say so."""
    if finished.train_steps is not None:
        return finished.train_steps
    rows = read_json_lines(finished.directory / "train" / "metrics.jsonl")
    return max((int(row["step"]) for row in rows), default=finished.step)


def check_growth(stages: Sequence[Stage], home: epath.Path) -> None:
    """Refuse a larger TRAIN_STEPS of a finished stage that later ones have started from.

    **Arguments:**

    - `stages`: of the run, in order.
    - `home`: the directory that holds theirs.
    """
    finished: Mapping[str, StageResult | None] = {
        stage.name: StageResult.read(home / stage.name) for stage in stages
    }
    for stage in stages:
        result = finished[stage.name]
        if result is None or trained_steps(result) >= stage.train_steps:
            continue
        for other in stages:
            started = finished[other.name] or complete_steps(home / other.name)
            if stage.name in (other.base, other.prompt) and started:
                raise UserError(
                    f"stage {stage.name!r} finished after {trained_steps(result)} steps and is to "
                    f"go on to {stage.train_steps}, but stage {other.name!r} in {home} has "
                    f"started from what it chose. Give this run a MODEL_DIR of its own, or remove "
                    f"{home / other.name} to train that stage again."
                )


def reopen(stage: Stage, finished: StageResult) -> None:
    """Let a finished stage go on.

    A last step that stands off EVAL_PERIOD would have been no candidate in the longer run, so what
    was measured there goes.

    **Raises:** `UserError` where the longer run would have been another one from the start.
    """
    directory, last = finished.directory, trained_steps(finished)
    check_schedule(stage, last, directory)
    is_off_period = bool(last % stage.eval_period) and stage.evaluation is not None
    if is_off_period and finished.step == last:
        raise UserError(
            f"stage {stage.name!r} cannot go on from step {last} to TRAIN_STEPS = "
            f"{stage.train_steps} as if that had been asked for at first: its chosen checkpoint is "
            f"that of step {last}, which EVAL_PERIOD = {stage.eval_period} does not divide, and a "
            "longer run would have chosen an earlier one, which is gone. Give it a MODEL_DIR of "
            "its own."
        )
    if processes.leads():
        if is_off_period:
            (step_directory(directory, last) / METRICS_FILE).unlink(missing_ok=True)
            keep_until(directory / alignment.FILE, last - 1)
            _remove_evaluation(directory, last)
        if stage.suite_period is not None and last % stage.suite_period:
            _remove_evaluation(directory / SUITE_DIRECTORY, last)
        (directory / RESULT_FILE).unlink()
    processes.wait_for_leader()


def _remove_evaluation(directory: epath.Path, step: int) -> None:
    records.remove_from(directory, step)
    for folder in (records.DIRECTORY, TRAINING_EVAL):
        for path in sorted(directory.glob(f"{folder}/*/{metric_writer.EVENTS}*")):
            metric_writer.remove_events_from(path, step)
