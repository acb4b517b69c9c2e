"""The command line: `promot-t5x COMMAND …`.

A command is an entry of `commands.COMMANDS`; what it runs is imported only when it runs. Errors end
in one message on stderr and an exit status, which docs/reliability.md lists: 2 for bad input
(`UserError`, and files that may not be read or written), 73 for a directory of another run, 74 for
a failed save, 75 after SIGTERM or Ctrl-C ("start me again", see `preemption`), 76 for numbers that
are not finite, 130 after a second Ctrl-C, and 1 for anything else, a fault of the program, whose
traceback goes to a log file.
"""

import argparse
import errno
import importlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from promot_t5x import quiet
from promot_t5x.cli import ending, flags
from promot_t5x.cli.commands import COMMANDS, OVERVIEW, Command
from promot_t5x.distributed import devices, preemption, startup
from promot_t5x.errors import (
    EXIT_FAULT,
    EXIT_IN_USE,
    EXIT_INTERRUPTED,
    EXIT_NON_FINITE,
    EXIT_NOT_SAVED,
    EXIT_START_AGAIN,
    EXIT_USER_ERROR,
    InUseError,
    NonFiniteError,
    Preempted,
    SaveError,
    UserError,
    did_you_mean,
)

EXIT_BROKEN_PIPE = 141
# What happens to a path that may not be read or written, and to nothing else.
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
# Of XLA's errors on every kind of device; buckets say so too, of a quota.
_MEMORY_IS_FULL = ("JaxRuntimeError", "RESOURCE_EXHAUSTED")
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
    "--require_devices",
    "--dry_run",
    "--help",
)


def program() -> NoReturn:
    """Run the command line of this process, and end it."""
    ending.run_and_exit(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    **Arguments:**

    - `argv`: the words after the program's name; by default the process's own.

    **Returns:** the exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    status = _status_of(words)
    # What SIGTERM stops, it stops in all processes of a run at once; what fails may fail alone.
    if startup.joined() and status not in (0, EXIT_START_AGAIN):
        startup.leave(status)
    return status


def _status_of(words: list[str]) -> int:
    try:
        return _run(words)
    except UserError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {message(error)}", file=sys.stderr)
        return EXIT_USER_ERROR
    except InUseError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {message(error)}", file=sys.stderr)
        return EXIT_IN_USE
    except SaveError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {message(error)}", file=sys.stderr)
        return EXIT_NOT_SAVED
    except NonFiniteError as error:
        print(f"{_PROGRAM}{startup.label()}: error: {message(error)}", file=sys.stderr)
        return EXIT_NON_FINITE
    except Preempted as stop:
        print(
            f"{_PROGRAM}{startup.label()}: {message(stop)}; start it again to resume",
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
    except Exception as error:
        return _fault(words, error)


def _first_line(error: Exception) -> str:
    return next(iter(message(error).strip().splitlines()), "")


def _fault(words: list[str], error: Exception) -> int:
    """Report an exception that nothing foresaw: one message here, the traceback in a log file."""
    start = f"{_PROGRAM}{startup.label()}: error: "
    if isinstance(error, OSError) and error.errno in _NOT_ALLOWED and error.filename:
        print(f"{start}{error.filename}: {error.strerror}.", file=sys.stderr)
        return EXIT_USER_ERROR
    if isinstance(error, ConnectionError) and error.errno is None:  # ours: the system's have one
        print(f"{start}{message(error)}", file=sys.stderr)
        return EXIT_FAULT
    kind, code = _MEMORY_IS_FULL
    if type(error).__name__ == kind and code in str(error):
        print(
            f"{start}the memory of the devices is too small for this: {_first_line(error)}\n"
            "Take a smaller BATCH_SIZE, microbatches, remat, a mesh that splits more, or larger "
            "devices: `promot-t5x plan` says what fits. What was saved is intact.",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    text = f"{_PROGRAM} {' '.join(words)}\n\n{traceback.format_exc()}"
    said = f"{type(error).__name__}: {_first_line(error)}"
    if startup.joined():
        # What is on the disk of one of several hosts is seldom found; their output is collected.
        print(text, file=sys.stderr)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="promot-t5x-", suffix=".log", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
        where = f"The traceback is in {file.name}"
    except OSError:
        print(text, file=sys.stderr)
        where = "The traceback is above"
    print(
        f"{start}a fault of this program, or of a library or module that it called: {said}\n"
        f"{where}; please report it with the command.",
        file=sys.stderr,
    )
    return EXIT_FAULT


def _run(words: list[str]) -> int:
    if flags.COMPLETING in os.environ:
        from promot_t5x.cli import completion

        return completion.answer(lambda name: run_command(find_command(name), []))
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from promot_t5x import __version__

        print(f"{_PROGRAM} {__version__}")
        return 0
    return run_command(find_command(words[0]), words[1:])


def run_command(command: Command, words: list[str]) -> int:
    """Run a command with the words behind its name; return the exit status."""
    if command.takes_gin:
        with preemption.watched():
            return _run_gin(command, parse_flags(command, words))
    quiet.set_defaults()
    return _load(command.target)(words) or 0


def find_command(name: str) -> Command:
    """Find a command by its name; raise `UserError` where there is none."""
    names = [command.name for command in COMMANDS]
    if name in names:
        return COMMANDS[names.index(name)]
    if name.startswith("-"):
        raise UserError(f"name a command before {name}: {', '.join(names)}.")
    raise UserError(
        f"there is no command {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}."
    )


def configure(command: Command, parsed: argparse.Namespace) -> Callable[[], Any]:
    """Read and check the configuration of a command; start nothing.

    **Returns:** the function that the configuration configures, to be called without arguments.

    **Raises:** `UserError` where the configuration is missing or wrong.
    """
    if not parsed.gin_file and not parsed.gin_bindings:
        raise UserError(
            f"{command.name} needs a configuration: --gin_file=FILE. "
            f"See `{_PROGRAM} {command.name} --help`."
        )
    quiet.set_defaults()
    if parsed.tfds_data_dir:
        from promot_t5x.paths import user_path

        # tensorflow-datasets reads it when it is imported, which may be never in this run.
        os.environ["TFDS_DATA_DIR"] = str(user_path(parsed.tfds_data_dir, "--tfds_data_dir"))
    # Modules that gin files import may lie in the user's directory, as with `python -m`; last, so
    # that nothing there stands in for an installed package.
    sys.path.append(os.getcwd())
    with quiet.imports():
        from promot_t5x import config

        function = _load(command.target)
        configured = config.configured(function)
        config.parse(parsed.gin_file, parsed.gin_bindings, parsed.gin_search_paths)
    if command.run_files:
        _check_run_file(command, parsed.gin_file)
    config.check([function])
    if command.check:
        _check_values(command, function)
    return configured


def _check_values(command: Command, function: Callable[..., Any]) -> None:
    """Make the objects of the configuration, so that they refuse what a start would refuse.

    What only the run's machines have is left out: devices, weights, data and the vocabulary.
    """
    from promot_t5x import config
    from promot_t5x.planning.planned_runs import AnyVocabulary

    stand_ins = {"VOCABULARY": AnyVocabulary()}
    try:
        values = config.arguments(function, without=("partitioner",), stand_ins=stand_ins)
        _load(command.check)(**values)
    except (AttributeError, TypeError, ValueError) as error:
        # A value of another type than any that was thought of.
        called = re.search(r"In call to configurable '([\w.]+)'", str(error))
        where = f"a value of {called[1]} is wrong" if called else "a value is wrong"
        raise UserError(
            f"{where}: {message(error)}. See --help and the comments of the gin files for what "
            "each takes."
        ) from error


def _check_run_file(command: Command, files: Sequence[str]) -> None:
    """Raise `UserError` where no file configures the command's function."""
    from promot_t5x import config

    if config.bound(command.target.replace(":", ".")):
        return
    for other in COMMANDS:
        if other.run_files and config.bound(other.target.replace(":", ".")):
            raise UserError(
                f"{', '.join(files)} configure `{_PROGRAM} {other.name}`, not {command.name}. Run "
                f"`{_PROGRAM} {other.name}` with them, or name a run file for {command.name} "
                f"instead: {', '.join(command.run_files)}."
            )
    given = " ".join(f"--gin_file={file}" for file in files)
    raise UserError(
        f"no run file was named. Name one after the model's file, as in\n  {_PROGRAM} "
        f"{command.name} {given} --gin_file={command.run_files[0]}\n"
        f"Shipped for {command.name}: {', '.join(command.run_files)}."
    )


def _run_gin(command: Command, parsed: argparse.Namespace) -> int:
    """Check a command's configuration, and run it or show it."""
    configured = configure(command, parsed)
    from promot_t5x.runs import ownership, profiling

    profiling.ask(parsed.profile if command.trains else None)
    if parsed.dry_run:
        from promot_t5x import config

        print(config.explained_str())
        return 0
    startup.start(parsed)
    try:
        devices.announce(parsed.require_devices)
        configured()
    finally:
        ownership.release_all()
        startup.end()
    return 0


def _load(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def message(error: BaseException) -> str:
    """Return what an error says, without what gin adds to it."""
    # gin appends which configurable was being called; the user has named none of them.
    return str(error).partition("\n  In call to configurable '")[0]


def parse_flags(command: Command, words: Sequence[str]) -> argparse.Namespace:
    """Read the flags of a command that takes gin; raise `UserError` for an unknown one."""
    parser = flags.Parser(
        prog=f"{_PROGRAM} {command.name}",
        usage=f"{_PROGRAM} {command.name} --gin_file=FILE … [--gin.NAME=VALUE …] [--dry_run]",
        description=command.description,
        epilog=_epilog(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_gin_flags(parser)
    flags.add_tfds_flag(parser)
    startup.add_flags(parser)
    devices.add_flag(parser)
    parser.add_argument(
        "--dry_run", action="store_true", help="check and print the configuration, then stop"
    )
    if command.trains:
        parser.add_argument(
            "--profile",
            metavar="START:STOP",
            help="trace these steps of each stage, the first and the last, for TensorBoard and "
            "XProf: into <stage>/train/plugins/profile/",
        )
    parser.answer_shell()
    parsed, unknown = parser.parse_known_args(flags.rewrite_gin_flags(words))
    if unknown:
        name = unknown[0].partition("=")[0]
        known = (*_FLAGS, "--profile") if command.trains else _FLAGS
        hint = did_you_mean(name, known) if name.startswith("-") else ""
        raise UserError(
            f"{command.name} does not take {unknown[0]!r}.{hint} "
            f"See `{_PROGRAM} {command.name} --help`."
        )
    return parsed


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS)
    commands = "\n".join(f"  {command.name:{width}}  {command.help}" for command in COMMANDS)
    return (
        f"usage: {_PROGRAM} COMMAND …\n\n{OVERVIEW}\n\ncommands:\n{commands}\n\n"
        f"`{_PROGRAM} COMMAND --help` shows a command's arguments and where its results go.\n\n"
        f"First try, a few minutes without any download:\n  {_PROGRAM} promot "
        "--gin_file=demo/promot.gin"
    )


def _epilog(command: Command) -> str:
    width = max(len(macro.name) for macro in command.macros)
    macros = "\n".join(
        f"  {macro.name:{width}}  {macro.meaning}"
        + (f" (default {macro.default})" if macro.default else " (required)")
        for macro in command.macros
    )
    examples = "\n\n".join("  " + example.replace("\n", "\n  ") for example in command.examples)
    return (
        f"common settings (--gin.NAME=VALUE; --dry_run shows all):\n{macros}\n\n"
        f"examples:\n{examples}"
    )
