"""`promot-t5x ckpt …`: show, compare and verify checkpoints.

Parses the command line; each action is a module of its own, imported when it runs.
"""

import argparse
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser, run_action

_PROGRAM = "promot-t5x ckpt"
_EXAMPLES = """\
examples:
  promot-t5x ckpt show /data/runs/rte_promot
  promot-t5x ckpt show /data/runs/rte_promot/stage_two/checkpoint_400
  promot-t5x ckpt diff /data/t5_1_1_small/checkpoint_1000000 /data/runs/rte_promot/stage_two
  promot-t5x ckpt verify /data/runs/rte_promot"""


def main(argv: Sequence[str]) -> int:
    """Run one action.

    **Returns:** the exit status, 1 where checkpoints differ or one is damaged.

    **Raises:** `UserError` for what is no checkpoint, or cannot be read.
    """
    return run_action(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Inspects, compares and verifies checkpoints: the project's own, with their "
        "optimizer's state, and any other that a run can start from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = actions.add_parser(
        "show",
        help="steps, metrics and origins; tree, shapes, dtypes, sizes",
        description="Lists the checkpoints of a run or a stage, or shows one: where it came from, "
        "what it says of the run, and its arrays.",
    )
    add.add_argument(
        "directory", help="of a run, a stage or a checkpoint; or a name, such as mt5_small"
    )
    add.add_argument("--all", action="store_true", help="list the optimizer's state too")
    add.set_defaults(run="promot_t5x.cli.ckpt_show:show")
    add = actions.add_parser(
        "diff",
        help="which arrays differ, and how much",
        description="Compares two checkpoints of any formats array by array. Exit status 1 if they "
        "differ.",
    )
    add.add_argument("old", help="a checkpoint's directory or name, or a stage's for its newest")
    add.add_argument("new", help="likewise")
    add.add_argument("--match", default="", help="only arrays whose path matches this pattern")
    add.add_argument("--all", action="store_true", help="compare the optimizer's state too")
    add.set_defaults(run="promot_t5x.cli.ckpt_diff:diff")
    add = actions.add_parser(
        "verify",
        help="read everything again; compare checksums",
        description="Reads every array. The project's own checkpoints have a checksum for each; of "
        "others, arrays must be readable. All numbers must be finite. Exit status 1 if a "
        "checkpoint is damaged, 2 if there is none.",
    )
    add.add_argument("directories", nargs="+", help="of runs, stages or checkpoints; or names")
    add.set_defaults(run="promot_t5x.cli.ckpt_verify:verify")
    return parser
