"""Slurm: `promot-t5x launch slurm --name=… --nodes=2 --gpus_per_node=8 -- VERB …`.

Writes a batch script, one process a node with all of the node's GPUs, and submits it. Slurm starts
it again where a node is preempted; the script itself where the run fails, but for a mistake of the
user's (exit status 2). It runs in the environment, and with the package, that submits it.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from promot_t5x.distributed.devices import Requirement
from promot_t5x.errors import UserError
from promot_t5x.launch.commands import Shell, check_name, is_secret, parse_environment
from promot_t5x.launch.payload import Command, check_output
from promot_t5x.launch.retries import FINAL

_SAVE_SECONDS = 300  # between Slurm's SIGTERM and the end of the time limit

_SCRIPT = """\
#!/bin/bash
{options}
{exports}
# One process a node; JAX finds the others through Slurm's own variables. SIGTERM, which Slurm sends
# before it takes the nodes away, makes the run save and end with a status that asks for more.
srun --kill-on-bad-exit=0 --label {command}
status=$?

case $status in {final}) exit $status ;; esac
restarts=${{SLURM_RESTART_COUNT:-0}}
if [ "$restarts" -ge {most} ]; then
  echo "status $status after $restarts restarts; given up" >&2
  exit $status
fi
wait=$(( {first} << (restarts < 6 ? restarts : 6) ))
echo "status $status; starts again in $wait s" >&2
sleep $wait
scontrol requeue "$SLURM_JOB_ID"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch slurm` takes."""
    add = parser.add_argument
    add("--name", required=True, help="of the job; its log is NAME-<job>.log")
    add("--nodes", type=int, default=1, metavar="N", help="default 1")
    add("--gpus_per_node", type=int, default=8, metavar="N", help="default 8")
    add("--time", default="24:00:00", help="limit of one start (default 24:00:00)")
    add("--partition")
    add("--account")
    add("--qos")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="another option of sbatch, as in --sbatch=--constraint=h100; may be repeated",
    )


def launch(arguments: argparse.Namespace, command: Command, shell: Shell) -> int:
    """Submit the job; return 0 if Slurm accepts it.

    **Raises:** `UserError` for bad input, and where Slurm refuses the job.
    """
    for name in ("nodes", "gpus_per_node"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name}={getattr(arguments, name)}: give at least 1.")
    check_output(command, shared_disk=True)
    count = arguments.nodes * arguments.gpus_per_node
    requirement = Requirement(platform="gpu", count=count, processes=arguments.nodes)
    text = script(arguments, command.requiring(requirement))
    shell.show_file(f"{arguments.name}.sbatch", text)
    done = shell.run(["sbatch", "--parsable"], stdin=text)
    if done.status:
        raise UserError("sbatch did not take the job; the reason is above.")
    shell.say(f"submitted; its log is {arguments.name}-<job>.log, to end it: scancel <job>")
    return 0


def script(arguments: argparse.Namespace, words: Sequence[str]) -> str:
    """Write the batch script.

    **Raises:** `UserError` for a secret that would be written down.
    """
    check_name(arguments.name)
    given = parse_environment(arguments.env, os.environ)
    for name in given:
        if is_secret(name):
            raise UserError(
                f"--env={name} would stand in the job's script: sbatch passes on the environment "
                f"as it is, so set {name} there and leave the flag out."
            )
    options = {
        "job-name": arguments.name,
        "nodes": arguments.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": arguments.gpus_per_node,
        "exclusive": None,
        "time": arguments.time,
        "signal": f"TERM@{_SAVE_SECONDS}",
        "requeue": None,
        "open-mode": "append",
        "output": f"{arguments.name}-%j.log",
        **{name: getattr(arguments, name) for name in ("partition", "account", "qos")},
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is None else f"={shlex.quote(str(value))}")
        for name, value in options.items()
        if value is not None or name in ("exclusive", "requeue")
    ]
    for word in arguments.sbatch:
        if not word.startswith("--"):
            raise UserError(f"--sbatch={word!r}: give an option with its dashes and value.")
        lines.append(f"#SBATCH {word}")
    return _SCRIPT.format(
        options="\n".join(lines),
        exports="".join(f"export {n}={shlex.quote(v)}\n" for n, v in given.items()),
        command=shlex.join([sys.executable, "-m", "promot_t5x", *words]),
        final="|".join(map(str, FINAL)),
        most=arguments.max_restarts,
        first=max(1, round(arguments.backoff)),
    )
