"""Tiny runs of the real command line: a network of 14,000 parameters, a few steps, few questions.

`Lab` writes the gin files that a user would and makes command lines of them; `here` runs one in
this process and `process` in one of its own. A run of this size is nearly all compilation, so
both compile without optimizations, and through a cache on disk.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import fork_helpers
import jax
import jaxtyping
import numpy as np
from clean_environment import xla_flags
from flax import serialization
from jax.experimental.compilation_cache import compilation_cache
from tensorflow.autograph import experimental as autograph

from promot_t5x.checkpoints.manifest import read_manifest
from promot_t5x.checkpoints.paths import absolute
from promot_t5x.checkpoints.promot_checkpoint import read_verified
from promot_t5x.cli import main

TASKS = Path(__file__).with_name("run_tasks.py")
PROMPT_PATH = "encoder/prompt/prompt"


def _processor() -> str:
    """A word for its instructions: machines that share a file system differ in them."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^(flags|Features)\s*:.*", path.read_text(), re.M) if path.exists() else None
    return hashlib.sha256((found[0] if found else platform.processor()).encode()).hexdigest()[:8]


_CACHE = f"promot-t5x-compiled-{os.getuid()}-{_processor()}"
COMPILATION = {
    "jax_disable_most_optimizations": True,
    "jax_compilation_cache_dir": f"{tempfile.gettempdir()}/{_CACHE}",
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}

SUITE = """\
from __gin__ import dynamic_registration
from promot_t5x.evaluation import evaluator as evaluate
SUITE = @suite/evaluate.EvalConfig()
suite/evaluate.EvalConfig.mixture_or_task_name = '{}'
"""

MODEL = """\
from __gin__ import dynamic_registration

include 'models/encoder_decoder.gin'

EMBED_DIM = 16
NUM_HEADS = 2
HEAD_DIM = 8
MLP_DIM = 32
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
MLP_ACTIVATIONS = ('gelu', 'linear')
LOGITS_VIA_EMBEDDING = True
ACTIVATION_DTYPE = 'float32'
"""
BYTES = MODEL + "include 'models/byte_vocabulary.gin'\n"
WORDS = (
    MODEL
    + "from promot_t5x.data import vocabularies\n"
    + "VOCABULARY = @vocabularies.tiny_world()\nNUM_EMBEDDINGS = 416\n"
)
SETTINGS = f"""\
from __gin__ import dynamic_registration

from promot_t5x import decoding

MIXTURE_OR_TASK_MODULE = '{TASKS}'
MIXTURE_OR_TASK_NAME = 'run_signs'
TASK_FEATURE_LENGTHS = {{'inputs': 16, 'targets': 6}}
BATCH_SIZE = 8
DROPOUT_RATE = 0.0
DECODING = @decoding.Greedy()
"""
TRAINING = (
    SETTINGS
    + """\
TRAIN_STEPS = 4
EVAL_PERIOD = 2
EVAL_NUM_EXAMPLES = 4
"""
)
PROMPT = "PROMPT_LENGTH = 4\n"
PROMPT_TUNING = "PROMPT_STEPS = 4\nPROMPT_EVAL_PERIOD = 2\n"
# ProMoT without the baseline.
TWO_STAGES = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import promot
from promot_t5x.runs import stages
STAGES = [@prompt_tuning/stages.Stage(), @stage_two/stages.Stage()]
ROWS = [@prompt_tuning/promot.Row(), @stage_two/promot.Row()]
"""


@dataclasses.dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str


class Lab:
    """A directory with a user's gin files, and command lines that use them."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.write("bytes.gin", BYTES)
        self.write("words.gin", WORDS)
        self.write("eval.gin", SETTINGS)
        self.write("train.gin", TRAINING)
        self.write("joint.gin", TRAINING + PROMPT)
        self.write("prompt.gin", TRAINING + PROMPT + PROMPT_TUNING)

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def words(
        self, verb: str, run: str, settings: str, *files: str, model: str = "bytes", **macros: Any
    ) -> list[str]:
        """`promot-t5x VERB` on a model file, a shipped run file and the user's own settings."""
        names = (f"{model}.gin", f"runs/{run}.gin", f"{settings}.gin", *files)
        return [
            verb,
            f"--gin_search_paths={self.directory}",
            *(f"--gin_file={name}" for name in names),
            *(f"--gin.{name}={gin_value(value)}" for name, value in macros.items()),
        ]


def gin_value(value: Any) -> str:
    return repr(str(value)) if isinstance(value, Path) else repr(value)


def here(words: list[str], *, devices: int = 1) -> Done:
    """Run a command line in this process, on so many of its devices."""
    out, err = io.StringIO(), io.StringIO()
    path = list(sys.path)
    # AutoGraph would rewrite seqio's preprocessors, which need no rewriting, for a second.
    run = autograph.do_not_convert(main.main)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        compilation_cached(),
        _first(devices),
    ):
        try:
            status = run(words)
        finally:
            sys.path[:] = path
    return Done(status, out.getvalue(), err.getvalue())


def succeed(words: list[str], *, devices: int = 1) -> str:
    """Run a command line in this process that must end well; what it prints."""
    done = here(words, devices=devices)
    assert done.status == 0, done.err
    return done.out


@contextlib.contextmanager
def _first(count: int) -> Iterator[None]:
    """Let a run see the first devices only, and check no shapes: other tests do, of each function.

    On eight devices, with the checks, a tiny run costs twice as much.
    """
    devices = jax.devices()[:count]
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with mock.patch.object(jax, "devices", return_value=devices):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@contextlib.contextmanager
def compilation_cached() -> Iterator[None]:
    before = {name: jax.config.values[name] for name in COMPILATION}
    compilation_cache.reset_cache()
    for name, value in COMPILATION.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def environment(devices: int = 1) -> dict[str, str]:
    """That of a process with so many virtual CPU devices."""
    return {
        **os.environ,
        **{name.upper(): str(value) for name, value in COMPILATION.items()},
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
    }


def process(words: list[str], *, devices: int = 1, cwd: Path | None = None) -> Done:
    """Run a command line in a process of its own."""
    started = fork_helpers.shared().start(
        words, apart=True, cwd=cwd, environ={"XLA_FLAGS": xla_flags(devices)}
    )
    return Done(started.wait().status, started.said, started.errors)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(stage: Path) -> list[float]:
    """What T5X calls `loss`: the sum that is minimized, over its normalizing factor."""
    return [row["loss_sum"] for row in json_lines(stage / "train" / "metrics.jsonl")]


def write_t5x_base(directory: Path, params: Mapping[str, Any]) -> None:
    """Parameters, a nested dict of numpy arrays, as a legacy T5X checkpoint of one file."""
    directory.mkdir(exist_ok=True)
    state = {"step": np.int32(7), "param_states": {}}
    tree = {"version": 3, "optimizer": {"target": dict(params), "state": state}}
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))


def checkpoint_arrays(step_directory: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, the optimizer's included."""
    manifest = read_manifest(absolute(step_directory))
    like = {path: record.struct for path, record in manifest.arrays.items()}
    return read_verified(absolute(step_directory), like, manifest)


def trained(step_directory: Path) -> dict[str, np.ndarray]:
    """What a checkpoint's stage trained, by path."""
    arrays = checkpoint_arrays(step_directory)
    return {p.removeprefix("target/"): a for p, a in arrays.items() if p.startswith("target/")}


def assert_same_arrays(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    """Equal by name, type and bytes."""
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def tree(directory: Path) -> dict[str, bytes]:
    """Every file under a directory and what is in it."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
