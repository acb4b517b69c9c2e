"""`promot-t5x tasks …`: list, show, measure, check and prepare what can be trained on.

Parses the command line and lists; each of the other actions is a module of its own, imported
when it runs. Listing imports neither TensorFlow nor numpy and opens no data set.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from promot_t5x.cli.flags import Parser, add_gin_flags, add_tfds_flag, rewrite_gin_flags, run_action
from promot_t5x.errors import did_you_mean
from promot_t5x.paths import user_path

_PROGRAM = "promot-t5x tasks"
_EXAMPLES = """\
examples:
  promot-t5x tasks list 'icl_*'
  promot-t5x tasks show rte --shots 1 --n 3 --gin_file=models/mt5_xl.gin
  promot-t5x tasks stats xsum --shots 4 --over 1024,2048 --gin_file=models/mt5_xl.gin
  promot-t5x tasks check my_tasks.py
  promot-t5x tasks prepare rte icl_4shot --tfds_data_dir=/data/tfds"""


def main(argv: Sequence[str]) -> int:
    """Run one action; the exit status, 1 where nothing matches or a check finds problems."""
    arguments = _parser().parse_args(rewrite_gin_flags(argv))
    if getattr(arguments, "tfds_data_dir", None):
        # tensorflow-datasets reads it when it is imported.
        os.environ["TFDS_DATA_DIR"] = str(user_path(arguments.tfds_data_dir, "--tfds_data_dir"))
    return run_action(arguments)


def list_tasks(arguments: argparse.Namespace) -> int:
    """`tasks list`: one line a task or mixture; status 1 if none matches."""
    lines = dict(_described(arguments.module))
    shown = _matching(lines, arguments.pattern)
    width = max(map(len, shown), default=0)
    for name in shown:
        print(f"{name:{width}}  {lines[name]}")
    if not shown:
        hint = did_you_mean(arguments.pattern or "", lines)
        print(f"no task or mixture matches {arguments.pattern!r}.{hint}", file=sys.stderr)
    return 0 if shown else 1


def _described(module: str | None) -> Iterable[tuple[str, str]]:
    from promot_t5x.tasks import registry

    if module:
        from promot_t5x.data import lazy, sources

        sources.import_task_module(module)
        seqio = lazy.import_seqio()
        yield from ((name, "a SeqIO task") for name in seqio.TaskRegistry.names())
        yield from ((name, "a SeqIO mixture") for name in seqio.MixtureRegistry.names())
    for name in registry.names():
        find = registry.get_task if registry.is_task(name) else registry.get_mixture
        yield name, find(name).description


def _matching(names: Iterable[str], pattern: str | None) -> list[str]:
    import fnmatch

    return sorted(names if pattern is None else fnmatch.filter(names, pattern))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="What MIXTURE_OR_TASK_NAME can be: tasks and mixtures, the user's own too.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_list(actions)
    _add_show(actions)
    _add_stats(actions)
    _add_check(actions)
    _add_prepare(actions)
    return parser


def _action(
    actions: "argparse._SubParsersAction[Parser]", name: str, run: str, help: str, more: str
) -> Parser:
    parser = actions.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}. {more}", allow_abbrev=False
    )
    parser.set_defaults(run=f"promot_t5x.cli.{run}")
    return parser


def _add_list(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = _action(
        actions,
        "list",
        "tasks:list_tasks",
        "names and descriptions",
        "Reads no data. Exit status 1 if no name matches.",
    )
    parser.add_argument("pattern", nargs="?", help="names to show, as in 'tiny_*'; default all")
    _add_module(parser)


def _add_show(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = _action(
        actions,
        "show",
        "tasks_show:show",
        "examples exactly as a model is asked them",
        "With a model's gin file they are in its dialect and counted in its tokens.",
    )
    _add_task(parser)
    parser.add_argument("--n", type=_count, default=3, help="examples of each task (default 3)")


def _add_stats(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = _action(
        actions,
        "stats",
        "tasks_stats:stats",
        "lengths of questions and answers, and the balance of labels",
        "In the tokens of the model whose gin file is given, otherwise in words.",
    )
    _add_task(parser)
    parser.add_argument(
        "--n",
        type=_count,
        default=10_000,
        help="examples of each task to read, the first of the split (default 10000)",
    )
    parser.add_argument(
        "--over",
        type=_counts,
        default=[512, 1024],
        metavar="LENGTH,…",
        help="count the questions longer than each of these (default 512,1024)",
    )


def _add_check(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = _action(
        actions,
        "check",
        "tasks_check:check",
        "a task, or a module of your own tasks, before it costs a run",
        "Splits exist and can be read, ids are unique, labels match, the right answers get the top "
        "score and empty ones do not. Exit status 1 with a list of problems, 0 with a summary.",
    )
    parser.add_argument(
        "subject",
        metavar="NAME_OR_MODULE",
        help="a task, a mixture, or a module whose tasks are all checked: a dotted name or a path "
        "to a .py file",
    )
    _add_module(parser)
    parser.add_argument(
        "--n", type=_count, default=1000, help="examples of each split to read (default 1000)"
    )
    add_gin_flags(parser)
    add_tfds_flag(parser)


def _add_prepare(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = _action(
        actions,
        "prepare",
        "tasks_prepare:prepare",
        "download and prepare the data sets that tasks and mixtures read",
        "The only command that downloads. What is prepared already is left alone; interrupted, the "
        "same command goes on with what is missing.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a task or a mixture")
    _add_module(parser)
    add_tfds_flag(parser)


def _add_task(parser: Parser) -> None:
    add = parser.add_argument
    add("name", help="a task or a mixture; `promot-t5x tasks list` shows them")
    add(
        "--shots",
        type=_count_or_none,
        metavar="N",
        help="demonstrations before each question; the task's own number if not given",
    )
    add("--split", help="default: validation, or the first of test and train that the task has")
    add(
        "--dialect",
        metavar="DIALECT",
        help="how the model is asked: lm, instruction, span_corruption (with <extra_id_0> in "
        "question and answer), span_corruption:targets or span_corruption:none; default: that of "
        "the gin file's model, without one lm",
    )
    add(
        "--inputs_length",
        type=_count,
        metavar="TOKENS",
        help="tokens that a question may take; demonstrations that do not fit are dropped. Needs "
        "--gin_file (default: as many as it has)",
    )
    _add_module(parser)
    add_gin_flags(parser)
    add_tfds_flag(parser)


def _add_module(parser: Parser) -> None:
    parser.add_argument(
        "--module", help="a module that registers tasks of your own: a dotted name or a .py file"
    )


def _count(text: str) -> int:
    number = _count_or_none(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _count_or_none(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def _counts(text: str) -> list[int]:
    return sorted({_count(part) for part in text.split(",")})
