"""`promot-t5x paper …`: the paper's printed rows: list, plan, run, compare.

Parses the command line; each action is a module of its own, imported when it runs.
"""

import argparse
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser, rewrite_gin_flags, run_action

_PROGRAM = "promot-t5x paper"
_EXAMPLES = """\
examples:
  promot-t5x paper list
  promot-t5x paper list /data/paper                  which rows its runs have made
  promot-t5x paper plan mt5_xxl_rte mt5_xxl_enfr --topology=v4-128
  promot-t5x paper run mt5_xxl_rte --gin.MODEL_DIR='"/data/paper/mt5_xxl_rte"'
  promot-t5x paper compare /data/paper
  promot-t5x paper compare mt5_xxl_rte=/data/rte_again"""
_DIRECTORIES = (
    "NAME=DIR, a directory that is called as its configuration, or one that holds such directories"
)


def main(argv: Sequence[str]) -> int:
    """Run one action; return the exit status."""
    return run_action(_parser().parse_args(rewrite_gin_flags(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="The rows that the ProMoT paper (arXiv 2211.00635) prints, each made by a "
        "configuration in gin/paper.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listed = actions.add_parser(
        "list",
        help="every printed row and its configuration, and whether it was run",
        description="Lists the printed rows, table by table. Reads no data.",
        allow_abbrev=False,
    )
    listed.add_argument("directory", nargs="*", metavar="DIR", help=f"runs: {_DIRECTORIES}")
    listed.set_defaults(run="promot_t5x.cli.paper_list:list_rows")
    planned = actions.add_parser(
        "plan",
        help="what configurations take of a TPU slice: HBM, time, chip-hours",
        description="Plans every program of configurations as `promot-t5x plan` does, and "
        "remembers what it compiled. An XXL program takes minutes to compile. Exit status 1 if "
        "something does not fit.",
        allow_abbrev=False,
    )
    planned.add_argument("name", nargs="*", metavar="NAME", help="configurations; default all")
    planned.add_argument(
        "--topology", default="v4-128", metavar="NAME", help="a slice (default v4-128, the paper's)"
    )
    planned.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PROGRAM",
        help="plan this program only, as in stage_two; may be repeated",
    )
    planned.add_argument(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="'X = VALUE'",
        help="set something in all of them; --gin.NAME=VALUE sets a macro",
    )
    planned.add_argument(
        "--bounds",
        action="store_true",
        help="compile nothing: what weights, optimizer and operations take at least, in seconds",
    )
    planned.set_defaults(run="promot_t5x.cli.paper_plan:plan")
    run = actions.add_parser(
        "run",
        usage=f"{_PROGRAM} run NAME [flags of `promot-t5x promot`]",
        help="start the run of a configuration",
        description="Starts `promot-t5x promot` with a configuration's gin files; all flags behind "
        "the name are its own.",
        allow_abbrev=False,
    )
    run.add_argument("name", metavar="NAME", help="a configuration")
    run.add_argument("flags", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(run="promot_t5x.cli.paper_run:run")
    compared = actions.add_parser(
        "compare",
        help="the paper's numbers beside those of runs, cell by cell",
        description="Prints the paper's number beside a run's with its 95%% interval for every "
        "cell that the runs made, where they differ significantly, and what the paper leaves open.",
        allow_abbrev=False,
    )
    compared.add_argument("directory", nargs="+", metavar="DIR", help=f"runs: {_DIRECTORIES}")
    compared.set_defaults(run="promot_t5x.cli.paper_compare:compare")
    return parser
