"""`promot-t5x launch WHERE … -- VERB …`: the command line of the launchers."""

import argparse
import importlib
import os
from collections.abc import Sequence

from promot_t5x.cli import main as main_program
from promot_t5x.cli.commands import COMMANDS
from promot_t5x.cli.flags import Parser
from promot_t5x.errors import UserError
from promot_t5x.launch import payload
from promot_t5x.launch.commands import Redactor, Shell
from promot_t5x.launch.payload import Command

_PROGRAM = "promot-t5x launch"
PLACES = {
    "tpu": "Cloud TPU slices, by queued resources; one slice or several",
    "gke": "TPU slices or GPU nodes of a GKE cluster, by a JobSet",
    "slurm": "GPU nodes of a Slurm cluster, by sbatch",
    "local": "several processes on this machine",
}
_STALL_SECONDS = 1800.0
_EXAMPLES = """\
After `--` comes what every process runs, as it would be given on one machine. The run is started
again when a machine is preempted, fails or is stuck, and goes on from what is saved; a mistake of
the user's (exit status 2) is not repeated. `--print` shows every command and every file, and runs
nothing.

examples:
  promot-t5x launch tpu --name=rte --zone=us-central2-b --accelerator_type=v4-128 --spot -- \\
      promot --gin_file=models/mt5_xxl.gin --gin_file=runs/promot.gin …
  promot-t5x launch local --processes=2 --cpu_devices=4 -- promot --gin_file=demo/promot.gin
"""


def main(words: Sequence[str]) -> int:
    """Launch a run; the exit status is the run's."""
    own, command = _divided(list(words))
    arguments = _parser().parse_args(own)
    if arguments.stall_timeout != _STALL_SECONDS:
        # Each process watches over itself too.
        command.append(f"--stall_timeout={arguments.stall_timeout:.0f}")
    checked = _checked(command)
    place = importlib.import_module(f"promot_t5x.launch.{arguments.place}")
    shell = Shell(dry=arguments.print, redact=Redactor(os.environ))
    status: int = place.launch(arguments, checked, shell)
    return status


def _divided(words: list[str]) -> tuple[list[str], list[str]]:
    """Part what the launcher takes from what it launches."""
    if "--" in words:
        middle = words.index("--")
        return words[:middle], words[middle + 1 :]
    return words, []


def _checked(words: list[str]) -> Command:
    """Read and check the configuration of a command, by the same code as its `--dry_run`.

    **Raises:** `UserError` for whatever the command itself would refuse before it starts.
    """
    names = [command.name for command in COMMANDS if command.takes_gin]
    if not words or words[0] not in names:
        found = repr(words[0]) if words else "nothing"
        raise UserError(
            f"after `--` comes what to run, with its arguments: {', '.join(names)}; there is "
            f"{found}. See `{_PROGRAM} --help`."
        )
    command = main_program.find_command(words[0])
    parsed = main_program.parse_flags(command, words[1:])
    if parsed.dry_run:
        raise UserError(
            f"--dry_run after `--` would start machines to print a configuration: run "
            f"`promot-t5x {words[0]} … --dry_run` here, or `{_PROGRAM} … --print`."
        )
    main_program.configure(command, parsed)
    return payload.read(words, parsed, command.target.partition(":")[2])


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        usage=f"{_PROGRAM} {{{','.join(PLACES)}}} [--print] … -- VERB …",
        description="Starts a run somewhere, follows it, and starts it again when it is cut short.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    places = parser.add_subparsers(dest="place", required=True, metavar="WHERE")
    for name, text in PLACES.items():
        place = places.add_parser(name, help=text, description=text, allow_abbrev=False)
        add = place.add_argument
        add("--print", action="store_true", help="show every command and file, and run nothing")
        add(
            "--env",
            action="append",
            default=[],
            metavar="NAME[=VALUE]",
            help="set a variable for the run, by default to its value here; may be repeated",
        )
        add(
            "--max_restarts",
            type=int,
            default=20,
            metavar="N",
            help="restarts in a row of a run that does not hold out half an hour (default 20)",
        )
        add(
            "--backoff",
            type=float,
            default=10.0,
            metavar="SECONDS",
            help="wait before the first restart; the waits double, up to ten minutes (default 10)",
        )
        add(
            "--stall_timeout",
            type=float,
            default=_STALL_SECONDS,
            metavar="SECONDS",
            help="a run that says nothing for so long is stuck (default 1800)",
        )
        importlib.import_module(f"promot_t5x.launch.{name}").add_arguments(place)
    return parser
