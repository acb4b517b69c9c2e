"""The steps of a stage that count, what is known of them, and which is the best.

Everything here reads small files only, and may run while another process trains and saves.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from typing import Literal

from etils import epath

from promot_t5x.checkpoints.manifest import BrokenCheckpointError, read_manifest
from promot_t5x.checkpoints.paths import (
    CHECKPOINT_PREFIX,
    METRICS_FILE,
    PENDING_PREFIX,
    numbered_steps,
    step_directory,
)
from promot_t5x.files import read_json

TIES = ("loss", "earliest", "latest")
LOSS = "validation_loss"  # among a step's metrics
_DEPTH = 3  # MODEL_DIR/seed_0/<stage>/checkpoint_<step>


def complete_steps(directory: str | os.PathLike[str]) -> list[int]:
    """Return the steps, ascending, whose checkpoints have a manifest and all their files.

    Reads no arrays: a flipped byte shows only when they are read.
    """
    steps = []
    for step in numbered_steps(directory):
        with contextlib.suppress(BrokenCheckpointError):
            read_manifest(step_directory(directory, step))
            steps.append(step)
    return steps


def stages_below(directory: epath.Path, depth: int = _DEPTH) -> dict[epath.Path, list[int]]:
    """Return the stages of a run, each with its steps, complete or not.

    **Arguments:**

    - `directory`: a stage's, a run's or that of a run with several seeds.
    - `depth`: how many levels of directories are looked through.

    **Returns:** the directories that hold a `checkpoint_<step>`, sorted, with those steps.
    """
    if not directory.is_dir():
        return {}
    found = {directory: steps} if (steps := numbered_steps(directory)) else {}
    if depth:
        for entry in sorted(directory.iterdir()):
            is_step = entry.name.startswith((CHECKPOINT_PREFIX, PENDING_PREFIX))
            if not is_step and entry.is_dir():
                found |= stages_below(entry, depth - 1)
    return found


def step_metrics(directory: str | os.PathLike[str], step: int) -> dict[str, float]:
    """Return the metrics of a complete step: those saved with it and those added since."""
    step_dir = step_directory(directory, step)
    known: dict[str, float] = dict(read_manifest(step_dir).metadata.get("metrics", {}))
    with contextlib.suppress(FileNotFoundError):
        known |= read_json(step_dir / METRICS_FILE, dict[str, float])
    return known


def best_step(
    directory: str | os.PathLike[str],
    steps: Sequence[int],
    metric: str,
    mode: Literal["max", "min"] = "max",
    ties: str = "earliest",
) -> int | None:
    """Return the step with the best value of a metric.

    **Arguments:**

    - `directory`: of the stage.
    - `steps`: complete ones. Those without the metric, or where it is NaN, do not take part.
    - `metric`: its name.
    - `mode`: whether the largest or the smallest value is the best.
    - `ties`: of equals, the `earliest`, the `latest` or the one with the least validation `loss` is
      the best; of equal losses, and where there is none, the earliest.

    **Returns:** None if no step takes part.
    """
    metrics = {step: step_metrics(directory, step) for step in steps}
    scores = {step: metrics[step].get(metric, math.nan) for step in steps}
    sign = 1 if mode == "max" else -1
    taking_part = [step for step in steps if not math.isnan(scores[step])]
    later = 1 if ties == "latest" else -1
    losses = {s: metrics[s].get(LOSS, math.inf) if ties == "loss" else 0.0 for s in steps}
    order = {s: (sign * scores[s], -losses[s], later * s) for s in taking_part}
    return max(taking_part, key=order.__getitem__, default=None)
