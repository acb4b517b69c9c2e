"""Every row and figure of the paper: planned, and run at tiny scale, into docs/paper.md.

    python -m tools.paper_rows run --tfds_data_dir=DIR --work=DIR [NAME …]
    python -m tools.paper_rows page

`run` starts each configuration of `promot-t5x paper list` with its own gin files, a tiny network of
random weights in place of its model and a few steps and questions, on the data sets that are
prepared in a directory of TensorFlow Datasets. What was made is kept in docs/paper_rows.json at once:
a configuration that this version has run is left out, and one that was interrupted goes on. `page`
writes docs/paper.md from that file and from what is known of each configuration without compiling.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
RECORD, PAGE = DOCS / "paper_rows.json", DOCS / "paper.md"

# In place of the model: bytes, and a network of 14,000 parameters. All else is the row's own.
NETWORK = """\
from __gin__ import dynamic_registration

from promot_t5x.data import vocabularies

VOCABULARY = @vocabularies.byte_level()
vocabularies.byte_level.extra_ids = 125
NUM_EMBEDDINGS = 384
EMBED_DIM = 16
NUM_HEADS = 2
HEAD_DIM = 8
MLP_DIM = 32
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
ACTIVATION_DTYPE = 'float32'
"""
# What a configuration has of these is made small.
FEW: Mapping[str, Any] = {
    "INITIAL_CHECKPOINT_PATH": None,
    "NUM_PARTITIONS": 1,
    "BATCH_SIZE": 4,
    "PROMPT_LENGTH": 4,
    "TRAIN_STEPS": 2,
    "EVAL_PERIOD": 1,
    "LORA_STEPS": 2,
    "LORA_EVAL_PERIOD": 1,
    "EVAL_NUM_EXAMPLES": 2,
    "SUITE_LENGTHS": {"inputs": 1024},
    "ALIGNMENT_BATCHES": 1,
    "ALIGNMENT_BATCH_SIZE": 2,
}
OF_PROMPTS: Mapping[str, Any] = {"PROMPT_STEPS": 2, "PROMPT_EVAL_PERIOD": 1}
OF_FIGURES: Mapping[str, Any] = {"SUITE_EVAL_PERIOD": 1}


def words(name: str, work: Path, **settings: Any) -> list[str]:
    """Return the command line of a configuration at tiny scale.

    **Arguments:**

    - `name`: of the configuration.
    - `work`: the directory that its run's directory, called as it is, and `tiny.gin` lie in.
    - `settings`: macros, in place of what `FEW` says.
    """
    from promot_t5x.planning import planned_runs
    from promot_t5x.report import printed

    (work / "tiny.gin").write_text(NETWORK)
    files = printed.files_of(name)
    run = planned_runs.read(files, [], [])
    given = {**FEW, "MODEL_DIR": str(work / name)}
    if any(list(stage.trainable) == ["prompt"] for stage in run.stages):
        given |= OF_PROMPTS
    if name in {figure.configuration for figure in printed.FIGURES}:
        given |= OF_FIGURES
    given = {macro: value for macro, value in (given | settings).items() if macro in run.macros}
    return [
        "promot",
        *(f"--gin_file={file}" for file in (*files, work / "tiny.gin")),
        *(f"--gin.{macro}={value!r}" for macro, value in given.items()),
    ]


def run(names: Sequence[str], data: str, work: Path) -> None:
    """Run what this version has not run yet, and record each configuration that made its rows."""
    # A run of this size is nearly all compilation; the runs have most programs in common.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(work / "compiled_programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    from promot_t5x.cli import main
    from promot_t5x.report import printed

    work.mkdir(parents=True, exist_ok=True)
    for name in names or [*printed.configurations(), *_figures()]:
        if _record()["runs"].get(name, {}).get("version") == metadata.version("promot_t5x"):
            print(f"{name}: recorded", flush=True)
            continue
        began = time.process_time()
        with (work / f"{name}.log").open("w") as log, contextlib.redirect_stdout(log):
            status = main.main([*words(name, work), f"--tfds_data_dir={data}"])
            made = _made(name, work / name) if status == 0 else []
        print(f"{name}: status {status}, made {len(made)}", flush=True)
        if status == 0:
            _keep("runs", name, {
                "version": metadata.version("promot_t5x"),
                "revision": _revision(),
                "jax": metadata.version("jax"),
                "cpu_seconds": round(time.process_time() - began),
                "made": made,
            })  # fmt: skip


def _made(name: str, directory: Path) -> list[str]:
    """Return the printed rows whose answers, or the figures whose points, a run has left.

    **Raises:** `RuntimeError` where one is missing.
    """
    from etils import epath

    from promot_t5x.cli import main
    from promot_t5x.report import printed, reproduction

    made = []
    for row in printed.ROWS:
        if row.configuration == name:
            if not reproduction.was_made(row, epath.Path(directory)):
                raise RuntimeError(f"{name} did not make the row {row.table}: {row.name}")
            made.append(f"{row.table}: {row.name}")
    for figure in (each for each in printed.FIGURES if each.configuration == name):
        report = directory / "report"
        flags = [word.strip() for word in figure.flags.split()]
        if main.main(["report", str(directory), f"--output={report}", *flags]):
            raise RuntimeError(f"{name}: promot-t5x report failed")
        if not (report / "figures" / f"{figure.drawn}.svg").is_file():
            raise RuntimeError(f"{name} did not draw figure {figure.number}")
        made.append(f"figure {figure.number}")
    return made


def _figures() -> list[str]:
    from promot_t5x.report import printed

    return list(dict.fromkeys(figure.configuration for figure in printed.FIGURES))


def _revision() -> str:
    """Return the commit of this checkout, with a word behind it where files differ."""
    words = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(words, cwd=DOCS, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _record() -> dict[str, dict[str, Any]]:
    if not RECORD.exists():
        return {"plans": {}, "runs": {}}
    found: dict[str, dict[str, Any]] = json.loads(RECORD.read_text())
    return found


def _keep(part: str, name: str, value: Any) -> None:
    record = _record()
    record[part][name] = value
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def main(argv: Sequence[str]) -> None:
    """Run configurations, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    runs = actions.add_parser("run")
    runs.add_argument("--tfds_data_dir", required=True)
    runs.add_argument("--work", required=True, type=Path, help="for the runs' directories")
    runs.add_argument("name", nargs="*", help="configurations; default all")
    actions.add_parser("page")
    arguments = parser.parse_args(argv)
    if arguments.action == "run":
        run(arguments.name, arguments.tfds_data_dir, arguments.work.resolve())


if __name__ == "__main__":
    main(sys.argv[1:])
