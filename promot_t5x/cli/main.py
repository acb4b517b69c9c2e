"""The command line: `promot-t5x VERB …`.

A verb is an entry of `verbs.VERBS`; what it runs is imported only when it runs. A `UserError`
becomes one message on stderr and exit status 2, a failed save one and status 74, SIGTERM status 75
("start me again", see `preemption`), Ctrl-C status 130; anything else is a fault of the program and
shows its traceback.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from promot_t5x import quiet
from promot_t5x.cli import flags
from promot_t5x.cli.commands import OVERVIEW, VERBS, Verb
from promot_t5x.distributed import preemption, startup
from promot_t5x.errors import (
    EXIT_NOT_SAVED,
    EXIT_START_AGAIN,
    EXIT_USER_ERROR,
    Preempted,
    SaveError,
    UserError,
    did_you_mean,
)

EXIT_FAULT = 1
EXIT_INTERRUPTED = 130  # 128 + the signal's number, as shells count
EXIT_BROKEN_PIPE = 141
_PROGRAM = "promot-t5x"
_FLAGS = (
    "--gin_file",
    "--gin_bindings",
    "--gin_search_paths",
    "--tfds_data_dir",
    "--coordinator_address",
    "--process_count",
    "--process_index",
    "--initialization_timeout",
    "--stall_timeout",
    "--dry_run",
    "--help",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status.

    Args:
        argv: the words after the program's name; by default the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _status_of(words)
    except Exception:
        if not startup.joined():
            raise
        traceback.print_exc()
        status = EXIT_FAULT
    # What SIGTERM stops, it stops in all processes of a run at once; what fails may fail alone.
    if startup.joined() and status not in (0, EXIT_START_AGAIN):
        startup.leave(status)
    return status


def _status_of(words: list[str]) -> int:
    try:
        return _run(words)
    except UserError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {_message(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except SaveError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {_message(error)}", file=sys.stderr)
        return EXIT_NOT_SAVED
    except Preempted as stop:
        print(
            f"{_PROGRAM}{startup.label()}: {_message(stop)}; start it again to go on",
            file=sys.stderr,
        )
        return EXIT_START_AGAIN
    except KeyboardInterrupt:
        print(f"{_PROGRAM}{startup.label()}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader, `head` for one, has seen enough; flushing at exit would raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from promot_t5x import __version__

        print(f"{_PROGRAM} {__version__}")
        return 0
    verb = _find_verb(words[0])
    if verb.takes_gin:
        with preemption.watched():
            return _run_gin(verb, _parse_flags(verb, words[1:]))
    quiet.set_defaults()
    return _load(verb)(words[1:]) or 0


def _find_verb(name: str) -> Verb:
    for verb in VERBS:
        if verb.name == name:
            return verb
    names = [verb.name for verb in VERBS]
    if name.startswith("-"):
        raise UserError(f"name a verb before {name}: {', '.join(_listed())}.")
    raise UserError(
        f"there is no verb {name!r}.{did_you_mean(name, names)} There are: {', '.join(_listed())}."
    )


def _run_gin(verb: Verb, parsed: argparse.Namespace) -> int:
    """Read the configuration, check it, and call the function that it configures."""
    if not parsed.gin_file and not parsed.gin_bindings:
        raise UserError(
            f"{verb.name} needs a configuration: --gin_file=FILE. "
            f"See `{_PROGRAM} {verb.name} --help`."
        )
    quiet.set_defaults()
    if parsed.tfds_data_dir:
        # tensorflow-datasets reads it when it is imported, which may be never in this run.
        os.environ["TFDS_DATA_DIR"] = parsed.tfds_data_dir
    # Modules that gin files import may lie in the user's directory, as with `python -m`; last, so
    # that nothing there stands in for an installed package.
    sys.path.append(os.getcwd())
    with quiet.imports():
        from promot_t5x.config import config

        function = _load(verb)
        configured = config.configured(function)
        config.parse(parsed.gin_file, parsed.gin_bindings, parsed.gin_search_paths)
    config.check([function])
    if parsed.dry_run:
        print(config.resolved_str())
    else:
        startup.start(parsed)
        configured()
    return 0


def _load(verb: Verb) -> Callable[..., Any]:
    module, _, name = verb.target.partition(":")
    return getattr(importlib.import_module(module), name)


def _message(error: BaseException) -> str:
    # gin appends which configurable was being called; the user has named none of them.
    return str(error).partition("\n  In call to configurable '")[0]


def _parse_flags(verb: Verb, words: Sequence[str]) -> argparse.Namespace:
    parser = flags.Parser(
        prog=f"{_PROGRAM} {verb.name}",
        usage=f"{_PROGRAM} {verb.name} --gin_file=FILE … [--gin.NAME=VALUE …] [--dry_run]",
        description=verb.description,
        epilog=_epilog(verb),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_gin_flags(parser)
    flags.add_tfds_flag(parser)
    startup.add_flags(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="check and print the configuration, then stop"
    )
    parsed, unknown = parser.parse_known_args(flags.rewrite_gin_flags(words))
    if unknown:
        name = unknown[0].partition("=")[0]
        hint = did_you_mean(name, _FLAGS) if name.startswith("-") else ""
        raise UserError(
            f"{verb.name} does not take {unknown[0]!r}.{hint} See `{_PROGRAM} {verb.name} --help`."
        )
    return parsed


def _listed() -> list[str]:
    return [verb.name for verb in VERBS if verb.listed]


def _overview() -> str:
    width = max(len(name) for name in _listed())
    verbs = "\n".join(f"  {verb.name:{width}}  {verb.help}" for verb in VERBS if verb.listed)
    return (
        f"usage: {_PROGRAM} VERB …\n\n{OVERVIEW}\n\nverbs:\n{verbs}\n\n"
        f"`{_PROGRAM} VERB --help` says what a verb takes and where its results go.\n\n"
        f"First try, a few minutes without any download:\n  {_PROGRAM} promot "
        "--gin_file=demo/promot.gin"
    )


def _epilog(verb: Verb) -> str:
    width = max(len(macro.name) for macro in verb.macros)
    macros = "\n".join(
        f"  {macro.name:{width}}  {macro.meaning}"
        + (f" (default {macro.default})" if macro.default else " (required)")
        for macro in verb.macros
    )
    examples = "\n\n".join("  " + example.replace("\n", "\n  ") for example in verb.examples)
    return f"commonest values (--gin.NAME=VALUE; --dry_run shows all):\n{macros}\n\n" + (
        f"examples:\n{examples}"
    )
