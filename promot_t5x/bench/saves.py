"""What a save costs: bytes, the time that training waits for it, and the time until it counts.

Of T5 1.1 small in stage one (a prompt) and in stage two (the model), with Adafactor's state, to
a directory on the local disk. The rest of a save (writing, committing, reading back, checksums)
runs beside training.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from promot_t5x.bench.training import CONFIG, PROMPT_LENGTH, STAGES
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.network import transformer
from promot_t5x.training import adafactor, state

REPEATS = 3


def show() -> None:
    """Print a line for each stage with a prompt: the median of a few saves."""
    print(f"\n{'a save of':22}{'MB':>9}{'training waits s':>18}{'counts after s':>16}")
    config = dataclasses.replace(CONFIG, num_prompts=1, prompt_length=PROMPT_LENGTH)
    shapes, axes = transformer.param_shapes(config), transformer.param_axes(config)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), shapes)
    for name, kind in STAGES.items():
        if not kind.prompted:
            continue
        optimizer = adafactor.adafactor(learning_rate=1e-3)
        made = state.create(params, axes, [kind.trainable], optimizer, Partitioner())
        megabytes, waits, counts = measure(made)
        print(f"{name:22}{megabytes:9.2f}{waits:18.3f}{counts:16.3f}", flush=True)


def measure(train_state: state.TrainState) -> tuple[float, float, float]:
    """(megabytes on disk, seconds until `save` returns, seconds until the step counts)."""
    waits, counts, size = [], [], 0
    with tempfile.TemporaryDirectory() as directory, Checkpoints(directory, keep=1) as saver:
        for step in range(1, REPEATS + 1):
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
        size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
    return size / 1e6, float(np.median(waits)), float(np.median(counts))
