"""Compute scores again from the records of evaluations: `promot-t5x score DIR…`.

Needs neither model nor data: every score is a function of the records, and a summary says which.
"""

import argparse
import math
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.paths import user_path
from promot_t5x.report import own_metrics

_DESCRIPTION = """\
Computes every score of every evaluation below the directories again from its records alone,
and says whether that gives what its summary states. The exit status is 1 where it does not."""


def main(argv: Sequence[str]) -> int:
    """Print a line for each score; return 1 if any is not what its summary states."""
    parser = Parser(
        prog="promot-t5x score",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "directories",
        nargs="+",
        metavar="DIR",
        help="of an evaluation, a stage or a run; or one <task>-<step>.json",
    )
    parser.add_argument(
        "--module",
        help="a Python module (dotted name or file) that holds metrics of your own",
    )
    flags = parser.parse_args(argv)
    if flags.module:
        from promot_t5x.data.sources import import_task_module

        import_task_module(flags.module)
    different = 0
    for directory in (user_path(word, "DIR") for word in flags.directories):
        if not directory.exists():
            raise UserError(f"There is no {directory}.")
        found = list(records.find(directory))
        if not found:
            raise UserError(
                f"{directory} holds no evaluation: there is no {records.DIRECTORY}/<task>-<step>"
                ".json below it."
            )
        for recorded in found:
            different += _check(recorded)
    if different:
        print(f"{different} scores differ from what their summaries state.")
    return 1 if different else 0


def _check(recorded: records.Recorded) -> int:
    """Print one task's scores; return how many are not what its summary states."""
    summary = recorded.summary()
    own_metrics.load(summary)
    stated, found = summary["metrics"], records.recomputed(summary, recorded.records())
    print(f"{recorded.path.parent}  {recorded.task}  step {recorded.step}")
    different = 0
    for name in dict.fromkeys([*stated, *found]):
        before, now = (scores.get(name, math.nan) for scores in (stated, found))
        same = before == now or (math.isnan(before) and math.isnan(now))
        different += not same
        said = "as stated" if same else f"but the summary states {before!r}"
        print(f"  {name}  {now:.4f}  {said}")
    return different
