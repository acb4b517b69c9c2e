"""`promot-t5x sweep …`: one configuration over lists of values, and what its methods trade.

Parses the command line; each action is a module of its own, imported when it runs.
"""

import argparse
import re
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser, add_gin_flags, add_tfds_flag, rewrite_gin_flags, run_action

_PROGRAM = "promot-t5x sweep"
_EXAMPLES = """\
examples:
  promot-t5x sweep run --gin_file=models/t5_1_1_small.gin --gin_file=runs/rivals.gin … \\
      --gin.SEEDS='[2, 3, 4]' --over='LEARNING_RATE=[0.0003, 0.001, 0.003]' \\
      --over='TRAIN_STEPS=[200, 1000]' --output=/data/final --share=2/8
  promot-t5x sweep run … --gin.SEEDS='[0, 1]' --gin.TARGET_SPLIT='"validation"' \\
      --gin_bindings='suite/evaluate.EvalConfig.split = "validation"' --output=/data/development
  promot-t5x sweep report /data/final --development=/data/development --output=/data/frontier"""


def main(argv: Sequence[str]) -> int:
    """Run one action; return the exit status."""
    return run_action(_parser().parse_args(rewrite_gin_flags(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="One configuration of `promot-t5x promot` over lists of values. Rows of its "
        "comparison are methods; SEEDS, or RANDOM_SEED in --over, are their seeds.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="run every combination of the values, or a share of them",
        description="Runs `promot-t5x promot` for every combination of the values, one after the "
        "other in this process, each in a directory of its own. What is finished is skipped, what "
        "was interrupted goes on. A run that diverges, or that another process is at, is left out "
        "and named at the end. All configurations are checked before the first run starts.",
        allow_abbrev=False,
    )
    add_gin_flags(run)
    add_tfds_flag(run)
    run.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="'NAME=[VALUE, …]'",
        help="values of a macro; may be repeated, for every combination",
    )
    run.add_argument(
        "--output", required=True, metavar="DIR", help="the sweep's directory, local or gs://"
    )
    run.add_argument(
        "--share",
        type=_share,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N shares of the combinations, as in 2/8",
    )
    run.add_argument(
        "--dry_run", action="store_true", help="check and list the combinations, then stop"
    )
    run.set_defaults(run="promot_t5x.cli.sweep_run:run")
    report = actions.add_parser(
        "report",
        help="each method's frontier, tests between methods, drift against loss",
        description="Compares the methods of sweeps by the target score and the mean in-context "
        "score that each attains together, over all its settings. Needs neither model nor data.",
        allow_abbrev=False,
    )
    report.add_argument("sweep", nargs="+", metavar="DIR", help="directories of sweeps")
    report.add_argument(
        "--development",
        action="append",
        default=[],
        metavar="DIR",
        help="a sweep with other seeds, asked another split, that chooses the settings of each "
        "frontier; may be repeated. Without it they are chosen on what is reported, and the report "
        "says so",
    )
    report.add_argument(
        "--output", metavar="DIR", help="write frontier.md and its figures (SVG, PNG) there"
    )
    report.set_defaults(run="promot_t5x.cli.sweep_report:report")
    return parser


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write I/N, as 1/8 to 8/8")
    return int(match[1]), int(match[2])
