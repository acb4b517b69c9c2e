"""What a save costs: bytes, the time that training waits for it, and the time until it counts.

Of T5 1.1 small in stage one (a prompt) and in stage two (the model), with Adafactor's state, to
a directory on the local disk, and as shares of a packed step of stage two. Training waits for the
check that every array is finite, and for a copy. The rest of a save (writing, committing, reading
back, checksums) runs beside it.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from promot_t5x.bench.training import CONFIG, PROMPT_LENGTH, STAGES
from promot_t5x.bench.training import measure as measure_steps
from promot_t5x.checkpoints.checksums import find_damage
from promot_t5x.checkpoints.finite import non_finite_state
from promot_t5x.checkpoints.manifest import read_manifest
from promot_t5x.checkpoints.paths import STATE_DIRECTORY, step_directory
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.checkpoints.state_tree import state_leaves
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.network import parameters
from promot_t5x.training import adafactor, state

REPEATS = 3


def show(batch_size: int, count: int) -> None:
    """Print a line for each stage with a prompt, the median of a few saves; then shares of a step.

    **Arguments:**

    - `batch_size`, `count`: of the steps of stage two that saves are compared with.
    """
    columns = ("finite check s", "training waits s", "read back s", "counts after s")
    print(f"\n{'a save of':12}{'MB':>9}" + "".join(f"{title:>18}" for title in columns))
    config = dataclasses.replace(CONFIG, num_prompts=1, prompt_length=PROMPT_LENGTH)
    shapes, axes = parameters.param_shapes(config), parameters.param_axes(config)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), shapes)
    for name, kind in STAGES.items():
        if not kind.prompted:
            continue
        optimizer = adafactor.adafactor(learning_rate=1e-3)
        made = state.create(params, axes, [kind.trainable], optimizer, Partitioner())
        megabytes, *seconds = measure(made)
        row = "".join(f"{value:18.3f}" for value in seconds)
        print(f"{name:12}{megabytes:9.2f}{row}", flush=True)
    del made
    step = 1 / measure_steps(STAGES["stage two"], True, batch_size, count)["steps_per_second"]
    shares = zip(columns, seconds, strict=True)
    print(
        f"a step of stage two takes {step:.2f} s; a save of it, of a step: "
        + ", ".join(f"{title.removesuffix(' s')} {value / step:.0%}" for title, value in shares)
    )


def measure(train_state: state.TrainState) -> tuple[float, float, float, float, float]:
    """Megabytes on disk; seconds of the check, until `save` returns, to read back, to count."""
    finite, waits, reads, counts, size = [], [], [], [], 0
    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory, keep=1) as saver:
        for step in range(1, REPEATS + 1):
            began = time.perf_counter()
            leaves = state_leaves(train_state.step, train_state.trainable, train_state.opt_state)
            assert not non_finite_state(leaves)
            finite.append(time.perf_counter() - began)
            began = time.perf_counter()
            saver.save(
                step,
                trainable=train_state.trainable,
                opt_state=train_state.opt_state,
                metadata={},
            )
            waits.append(time.perf_counter() - began)
            saver.wait()
            counts.append(time.perf_counter() - began)
            began = time.perf_counter()
            path = step_directory(saver.directory, step)
            assert not find_damage(path / STATE_DIRECTORY, read_manifest(path).arrays)
            reads.append(time.perf_counter() - began)
        size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
    found, waited, read, counted = map(np.median, (finite, waits, reads, counts))
    return size / 1e6, float(found), float(waited), float(read), float(counted)
