"""Plan a run: `promot-t5x plan` says whether it compiles and fits on a slice, and its cost."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from promot_t5x import quiet
from promot_t5x.cli import flags
from promot_t5x.data.batch_rows import Shape
from promot_t5x.errors import UserError
from promot_t5x.planning import chips, compiler
from promot_t5x.progress import duration

_BEGAN = time.monotonic()
_DESCRIPTION = """\
Compiles every program of a configured run (each stage's training step, and decoding) with the
TPU compiler for a slice of Cloud TPU, and prints what each takes of a chip's HBM, what it sends,
and the least time it can take. Needs no TPU, no weights and no data; takes the gin files that
`train`, `promot` or `eval` take. What was planned before is remembered."""
_EPILOG = """\
examples:
  promot-t5x plan --gin_file=paper/mt5_xxl_rte.gin --topology=v4-128

  promot-t5x plan --gin_file=paper/mt5_xxl_rte.gin --topology=v5p-16 --search

  promot-t5x plan --gin_file=paper/mt5_xxl_rte.gin --topology=v4-128 \\
      --gin.PACK='"batch"' --packed=32x612x16

  promot-t5x plan --gin_file=paper/mt5_xxl_rte.gin --fit=v5e --only=stage_one"""


def main(words: Sequence[str]) -> int:
    """Plan, print, and return 0 if everything fits, 1 if something does not."""
    given = _flags(words)
    compiler.prepare()
    # Modules that gin files import may lie in the user's directory, as for the run's own command.
    sys.path.append(os.getcwd())
    with quiet.imports():
        from promot_t5x.planning import planned_runs, settings_search, table

    def read(extra: Sequence[str]) -> planned_runs.Run:
        bindings = [*given.gin_bindings, *extra]
        return planned_runs.read(given.gin_file, bindings, given.gin_search_paths, given.packed)

    if given.fit:
        trials = settings_search.fit(read, chips.find_chip(given.fit), given.only, say)
        trial = trials[-1]
    elif given.search:
        trials = settings_search.search(read, given.slice, given.only, say)
        trial = trials[0]
    else:
        trial = settings_search.plan(read, given.slice, given.only, say)
        trials = [trial]
    if given.json:
        print(json.dumps([table.data(each) for each in trial.estimates], indent=1))
        return 0 if trial.fits else 1
    if len(trials) > 1:
        print(table.trials(trials), end="\n\n")
    print(table.text(trial))
    if trial.bindings and trial.fits:
        print(f"\nSettings: {trial.flags}")
    return 0 if trial.fits else 1


def _flags(words: Sequence[str]) -> argparse.Namespace:
    parser = flags.Parser(
        prog="promot-t5x plan",
        usage="promot-t5x plan --gin_file=FILE … [--gin.NAME=VALUE …] "
        "(--topology=NAME [--slices=N] [--search] | --fit=KIND)",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_gin_flags(parser)
    add = parser.add_argument
    add(
        "--topology",
        metavar="NAME",
        help="a slice as Cloud TPU names it: v4-128, v5p-128 (TensorCores), v5litepod-16, v6e-16",
    )
    add("--slices", type=int, default=1, metavar="N", help="so many such slices (default 1)")
    add(
        "--search",
        action="store_true",
        help="try meshes, recomputation, microbatches; recommend the fastest that fits",
    )
    add("--fit", metavar="KIND", help="find the smallest slice of a kind of chip (v4, v5e, …)")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="plan this program only, as the table names it; may be repeated",
    )
    add(
        "--packed",
        type=_shape,
        metavar="ROWSxINPUTSxTARGETS",
        help="plan the steps of PACK = 'batch' at this shape, which a run prints when it starts; "
        "without it at their largest",
    )
    add("--json", action="store_true", help="print the programs' numbers as JSON")
    given: argparse.Namespace = parser.parse_args(flags.rewrite_gin_flags(words))
    if not given.gin_file:
        raise UserError(f"plan needs a configuration: --gin_file=FILE. See `{parser.prog} --help`.")
    if bool(given.topology) == bool(given.fit):
        raise UserError("plan needs either --topology=NAME, such as v4-128, or --fit=KIND.")
    if given.fit and (given.search or given.slices != 1):
        raise UserError("--fit looks for one slice by itself: leave out --search and --slices.")
    given.slice = chips.find_slice(given.topology, given.slices) if given.topology else None
    return given


def _shape(text: str) -> Shape:
    """Read `24x612x16`."""
    sizes = [int(size) if size.isdecimal() else 0 for size in text.split("x")]
    if len(sizes) != len(Shape._fields) or min(sizes) < 1:
        raise UserError(
            f"--packed={text}: give rows, tokens of inputs and tokens of targets, as in 24x612x16."
        )
    return Shape(*sizes)


def say(text: str) -> None:
    """Print progress and the time since the start on stderr: the results are on stdout."""
    print(f"[{duration(time.monotonic() - _BEGAN)}] {text}", file=sys.stderr, flush=True)
