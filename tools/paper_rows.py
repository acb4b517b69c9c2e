"""Every row and figure of the paper: planned, and run at tiny scale, for docs/paper.md.

    python -m tools.paper_rows plan
    python -m tools.paper_rows run --tfds_data_dir=DIR --work=DIR [NAME …]
    python -m tools.paper_rows page > docs/paper.md

`plan` keeps what each configuration takes at least of a slice, compiling nothing. `run` starts each
configuration of `promot-t5x paper list` with its own gin files, a tiny network of random weights in
place of its model and a few steps and questions, on the data sets that are prepared in a directory
of TensorFlow Datasets. Both keep what they find in docs/paper_rows.json: a configuration that this
version has run is left out, and one that was interrupted goes on. `page` prints the page that is
made of that file.
"""

import argparse
import contextlib
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
RECORD = DOCS / "paper_rows.json"
SLICE = "v4-128"  # the paper's 64 chips
INTERRUPTED = 75  # the exit status of a run that is to go on

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
    if "SUITE" in settings:  # another one, or none, has its own lengths
        del given["SUITE_LENGTHS"]
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

    work.mkdir(parents=True, exist_ok=True)
    revision = _revision()
    for name in names or _configurations():
        if _record()["runs"].get(name, {}).get("version") == metadata.version("promot_t5x"):
            print(f"{name}: recorded", flush=True)
            continue
        began = time.process_time()
        with (work / f"{name}.log").open("w") as log, contextlib.redirect_stdout(log):
            status = main.main([*words(name, work), f"--tfds_data_dir={data}"])
            made = _made(name, work / name) if status == 0 else []
        print(f"{name}: exit status {status}; rows made: {len(made)}", flush=True)
        if status == INTERRUPTED:
            sys.exit(status)
        if status == 0:
            _keep("runs", name, {
                "version": metadata.version("promot_t5x"),
                "revision": revision,
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
        made.append(f"figure {figure.number}: {figure.about}")
    return made


def plan() -> None:
    """Record what every configuration takes at least of the paper's slice."""
    from promot_t5x.cli.plan import say
    from promot_t5x.planning import chips, compiler
    from promot_t5x.report import printed

    compiler.prepare()
    from promot_t5x.planning import estimates, planned_runs, settings_search

    slice_ = chips.find_slice(SLICE)
    for name in _configurations():
        files = printed.files_of(name)

        def read(extra: Sequence[str], files: Sequence[str] = files) -> planned_runs.Run:
            return planned_runs.read(files, extra, [])

        say(name)
        stages = [stage.name for stage in read([]).stages]
        trial = settings_search.plan(read, slice_, stages, say, estimates.bounds)
        held = max(each.total_bytes or 0 for each in trial.estimates)
        _keep("plans", name, {
            "stages": [[each.program, each.steps] for each in trial.estimates],
            "mesh": trial.mesh,
            "held_gib": round(held / chips.GIB, 2),
            "hbm_gib": round(slice_.chip.hbm_bytes / chips.GIB, 2),
            "chip_hours": round(trial.seconds / 3600 * slice_.chips, 1),
        })  # fmt: skip


HEAD = """\
# The paper's rows and figures

Made by `python -m tools.paper_rows page`. Every row that the paper prints and every figure is one
configuration of `gin/paper`: `promot-t5x paper run NAME` starts it, `promot-t5x paper compare DIR`
sets the paper's numbers beside a run's ([reports](reports.md#the-papers-numbers-beside-yours)).
None was trained at the paper's size with this project.

## Configurations

What each takes of the paper's 64 chips (v4-128), one example a row, as `promot-t5x paper plan
--bounds` says without compiling. *Held*: GiB of a chip's {hbm} that weights and optimizer of its
largest stage hold; activations come on top. *Chip-hours*: all training steps, if the chips did
nothing but their operations at peak; evaluations come on top. [The table of plans](plan.md) has
what the compiler says of those that were compiled. *Run*: the version and the commit that ran the
configuration at tiny scale, and the processor time that it took.

Such a run has the configuration's own gin files, in which bytes and a tiny network of random
parameters take the place of the model, on sample rows of its data sets: a batch of {batch}
examples, {steps} steps a stage with a checkpoint and a validation each, {questions} questions of
the target and of each task of both suites, decoded as the configuration says, behind the
demonstrations for which {length} bytes have room. It shows that every stage, row and column is
made, and nothing about scores. {done} of {all} configurations were run; `python -m tools.paper_rows
run` goes on with what is left.

| configuration | stages (steps) | mesh | held | chip-hours | run |
|---|---|---|---|---|---|
"""
ROWS_HEAD = """
## Rows and figures

*Made*: whether the run at tiny scale left answers to everything that the paper prints of the row,
or the figure.

| table | row | configuration | made |
|---|---|---|---|
"""


def page() -> str:
    """Return the page that is made of the record."""
    from promot_t5x.report import printed

    record = _record()
    plans, runs = record["plans"], record["runs"]
    text = HEAD.format(
        hbm=next(iter(plans.values()))["hbm_gib"],
        done=len(runs),
        all=len(plans),
        batch=FEW["BATCH_SIZE"],
        steps=FEW["TRAIN_STEPS"],
        questions=FEW["EVAL_NUM_EXAMPLES"],
        length=FEW["SUITE_LENGTHS"]["inputs"],
    )
    for name in _configurations():
        planned, ran = plans[name], runs.get(name)
        stages = ", ".join(f"{stage} ({steps:,})" for stage, steps in planned["stages"])
        said = "not yet"
        if ran:
            said = f"{ran['version']} ({ran['revision']}), {ran['cpu_seconds']} s"
        held, hours = f"{planned['held_gib']:.2f}", f"{planned['chip_hours']:,.1f}"
        text += f"| `{name}` | {stages} | {planned['mesh']} | {held} | {hours} | {said} |\n"
    text += ROWS_HEAD
    for table, row, name in _printed():
        made = f"{table}: {row}" in runs.get(name, {}).get("made", ())
        text += f"| {table} | {row} | `{name}` | {'yes' if made else 'not yet'} |\n"
    text += "\n"
    return text + (
        "The paper has runs of other models whose numbers are not here: "
        f"{', '.join(f'`{name}`' for name in printed.WITHOUT_NUMBERS)}.\n"
    )


def _printed() -> list[tuple[str, str, str]]:
    """Return table, row and configuration of everything that the paper prints."""
    from promot_t5x.report import printed

    rows = [(row.table, row.name, row.configuration) for row in printed.ROWS]
    figures = [(f"figure {f.number}", f.about, f.configuration) for f in printed.FIGURES]
    return [*rows, *figures]


def _configurations() -> list[str]:
    from promot_t5x.report import printed

    figures = dict.fromkeys(figure.configuration for figure in printed.FIGURES)
    return [*printed.configurations(), *figures]


def _revision() -> str:
    """Return the commit of this checkout."""
    words = ["git", "rev-parse", "--short", "HEAD"]
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
    """Plan or run configurations, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    runs = actions.add_parser("run")
    runs.add_argument("--tfds_data_dir", required=True)
    runs.add_argument("--work", required=True, type=Path, help="for the runs' directories")
    runs.add_argument("name", nargs="*", help="configurations; default all")
    actions.add_parser("plan")
    actions.add_parser("page")
    arguments = parser.parse_args(argv)
    if arguments.action == "run":
        run(arguments.name, arguments.tfds_data_dir, arguments.work.resolve())
    elif arguments.action == "plan":
        plan()
    else:
        print(page(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
