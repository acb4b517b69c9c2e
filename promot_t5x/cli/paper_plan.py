"""`promot-t5x paper plan`: what the paper's configurations take of a TPU slice."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from promot_t5x import quiet
from promot_t5x.cli.plan import say
from promot_t5x.planning import chips, compiler
from promot_t5x.report import printed

_BOUNDS = """
Nothing was compiled: HBM is what weights and optimizer hold, time what the operations take at the
chips' peak. Every program needs more of both."""


def plan(arguments: argparse.Namespace) -> int:
    """Plan, print a line a program, and return 0 if everything fits, 1 if something does not."""
    names = arguments.name or list(printed.configurations())
    files = {name: printed.files_of(name) for name in names}
    slice_ = chips.find_slice(arguments.topology, 1)
    compiler.prepare()
    with quiet.imports():
        from promot_t5x.planning import estimates, planned_runs, settings_search, table
    from promot_t5x.report.table import aligned

    def read(own: Sequence[str], extra: Sequence[str]) -> Any:
        return planned_runs.read(own, [*arguments.gin_bindings, *extra], [])

    estimated = estimates.bounds if arguments.bounds else estimates.estimate
    lines, fits = [["configuration", "mesh", *table.HEADINGS]], True
    for name, own in files.items():
        say(name)
        trial = settings_search.plan(
            functools.partial(read, own), slice_, arguments.only, say, estimated
        )
        fits = fits and trial.fits
        for each in trial.estimates:
            lines.append([name, trial.mesh, *table.row(each, slice_)])
    print(f"{slice_.name}: {slice_.chips} chips; HBM in GiB a chip\n")
    print(aligned(lines))
    if arguments.bounds:
        print(_BOUNDS)
    return 0 if fits else 1
