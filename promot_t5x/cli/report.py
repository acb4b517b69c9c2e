"""`promot-t5x report`: tables, comparisons, changed examples and a page, from records alone."""

import argparse
import sys
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser
from promot_t5x.errors import UserError

_EXAMPLES = """\
examples:
  promot-t5x report /data/rte_promot
  promot-t5x report /data/rte_promot --output /data/rte_promot/report
  promot-t5x report pretrained=/data/evals/base ProMoT=/data/evals/promot --format latex
  promot-t5x report /data/run_a /data/run_b /data/run_c     rows that differ in the seed are one
  promot-t5x report rte=/data/rte_promot cb=/data/cb_promot   rows "rte: ProMoT", "cb: ProMoT", …
  promot-t5x report /data/rte_promot --compare 'standard fine-tuning' ProMoT
  promot-t5x report /data/rte_promot --changed pretrained ProMoT --task cb --direction lost"""


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.changed and (arguments.compare or arguments.output or arguments.lm_eval):
        raise UserError(
            "--changed prints examples only: leave out --compare, --output and --lm_eval."
        )
    if not arguments.changed and (arguments.task or arguments.direction):
        raise UserError("--task and --direction choose among what --changed A B prints.")
    from promot_t5x.report import changed, comparison, lm_eval, output, pairs, runs, table

    if arguments.module:
        from promot_t5x.data.sources import import_task_module

        import_task_module(arguments.module)
    found = runs.read(arguments.run, targets=arguments.targets, step=arguments.step)
    groups = dict(arguments.group)
    made = comparison.compare(found, baseline=arguments.baseline, groups=groups)
    if arguments.changed:
        first, second = arguments.changed
        print(
            changed.as_text(
                made,
                first,
                second,
                task=arguments.task,
                direction=arguments.direction,
                limit=arguments.limit,
            )
        )
        return 0
    compared = [pairs.pair(made, *labels) for labels in arguments.compare]
    if arguments.format == "terminal":
        print(table.terminal(made, output.width()), *table.legend(made), sep="\n", end="\n\n")
        for pair in compared:
            print(table.aligned(table.pair_lines(pair)), *pair.statements, sep="\n", end="\n\n")
    else:
        formats = {"markdown": table.markdown, "latex": table.latex, "csv": table.tidy_csv}
        print(formats[arguments.format](made).rstrip("\n"))
        for pair in compared if arguments.format == "markdown" else ():
            print("", table.markdown_table(table.pair_lines(pair)), sep="\n")
            print(*(f"\n{statement}" for statement in pair.statements), sep="\n")
    if arguments.output:
        chosen = [tuple(labels) for labels in arguments.compare] or pairs.of_interest(made)
        output.write(arguments.output, made, arguments.run, chosen, title=arguments.title)
        print(f"The page is {arguments.output}/report.html.", file=sys.stderr)
    if arguments.lm_eval:
        written = "\n".join(f"Wrote {path}." for path in lm_eval.write(arguments.lm_eval, made))
        print(written, file=sys.stderr)
    return 0


def _group(text: str) -> tuple[str, list[str]]:
    name, equals, tasks = text.partition("=")
    if not name or not equals or not tasks:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=TASK,…")
    return name, [task for task in tasks.split(",") if task]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="promot-t5x report",
        description="Compares models by what evaluations recorded; no model and no data needed. "
        "RUN is the directory of a promot run, of one of its rows or stages, or what eval wrote; "
        "LABEL=RUN names its row, or goes before the names of its rows. Rows of one label are "
        "seeds of one method where they differ in their seed and directory alone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", nargs="+", metavar="RUN")
    add("--output", metavar="DIR", help="write report.html, .md, .tex, .csv and figures/ there")
    add(
        "--lm_eval",
        metavar="DIR",
        help="write each row's scores to DIR/<row>/results.json, in the form of "
        "lm-evaluation-harness",
    )
    add(
        "--format",
        choices=("terminal", "markdown", "latex", "csv"),
        default="terminal",
        help="of the table that is printed",
    )
    add(
        "--baseline",
        metavar="LABEL",
        help="the row that changes are counted from (default: pretrained, else the first)",
    )
    add(
        "--compare",
        nargs=2,
        action="append",
        default=[],
        metavar=("A", "B"),
        help="print B minus A on every task, with tests; may be repeated",
    )
    add(
        "--changed",
        nargs=2,
        metavar=("A", "B"),
        help="print the examples that A and B answered differently, instead of the table",
    )
    add("--task", metavar="TASK", help="with --changed: of this task only")
    add(
        "--direction",
        choices=("lost", "won", "other"),
        help="with --changed: only what B has worse, better, or in other words",
    )
    add(
        "--limit",
        type=int,
        default=20,
        metavar="N",
        help="with --changed: examples of each task and direction (default 20)",
    )
    add(
        "--targets",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="TASK,…",
        help="the fine-tuned tasks, where the runs do not say (what eval asked without a prompt)",
    )
    add(
        "--group",
        type=_group,
        action="append",
        default=[],
        metavar="NAME=TASK,…",
        help="show the mean of these tasks of the suite too, and their trade-off; may be repeated",
    )
    add("--module", help="a Python module (dotted name or file) that holds metrics of your own")
    add("--step", type=int, metavar="N", help="of a stage: this step (default: the chosen one)")
    add("--title", default="ProMoT: report", help="of the page")
    return parser
