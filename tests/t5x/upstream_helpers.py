"""Runs of upstream T5X's own command line, and what they leave."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import run_helpers
import tensorflow as tf

from promot_t5x import config


def environment(devices: int = 1) -> dict[str, str]:
    """That of a T5X process with so many virtual CPU devices."""
    paths = [os.environ.get("T5X_PATH", ""), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(filter(None, paths))
    return {**run_helpers.environment(devices), "PYTHONPATH": joined, "TF_CPP_MIN_LOG_LEVEL": "3"}


def words_of(macros: Mapping[str, Any]) -> list[str]:
    """`--gin.NAME=VALUE` of each; paths become text."""
    values = {k: str(v) if isinstance(v, os.PathLike) else v for k, v in macros.items()}
    return [f"--gin.{name}={value!r}" for name, value in values.items()]


def run(words: Sequence[str], *, devices: int = 1, cwd: Path | None = None) -> str:
    """Run `python -m` with these words; it must end well. Returns its log."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        env=environment(devices),
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def t5x(verb: str, files: Sequence[str], macros: Mapping[str, Any], *more: str, **options) -> str:
    """Run `t5x.train`, `t5x.eval` or `t5x.infer` with this project's gin files."""
    given = [f"--gin_file={name}" for name in files]
    search = f"--gin_search_paths={config.gin_root()}"
    return run([f"t5x.{verb}", search, *given, *words_of(macros), *more], **options)


def losses(model_dir: Path) -> list[float]:
    """The loss of each step, as T5X writes it for TensorBoard."""
    found = {}
    for path in sorted((model_dir / "train").glob("events*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == "loss":
                    found[event.step] = float(tf.make_ndarray(value.tensor))
    return [found[step] for step in sorted(found)]


def predictions(directory: Path, task: str, step: int) -> list[Any]:
    """Post-processed answers of an evaluation, of either engine: T5X's name for the file."""
    path = directory / "inference_eval" / f"{task}-{step:06}.jsonl"
    return [row["prediction"] for row in run_helpers.json_lines(path)]


def inferences(directory: Path, task: str) -> list[dict[str, Any]]:
    """The lines of `t5x.infer`."""
    path = directory / f"{task}-predict.jsonl-00000-of-00001"
    return [json.loads(line) for line in path.read_text().splitlines()]
