"""Cloud TPU slices: `promot-t5x launch tpu --name=… --zone=… --accelerator_type=… -- VERB …`.

One command from nothing to a finished run: it asks for a queued resource (of several slices with
`--node_count`), waits until it is there, installs this very package on every worker, starts the run
on all of them, follows the log of the first, and deletes the resource at the end. The run goes on
when this process does not; the same command, given again, finds it and follows it.
"""

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from promot_t5x.errors import UserError
from promot_t5x.launch import package, remote
from promot_t5x.launch.commands import Shell, check_name, parse_environment
from promot_t5x.launch.retries import FINAL, Retries, outcome, reason

_WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_POLL_SECONDS = 20.0
_LOST = 255  # ssh's status where the connection failed
_LOST_MOST = 5  # connections in a row, after which the slice counts as gone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch tpu` takes."""
    add = parser.add_argument
    add("--name", required=True, help="of the queued resource and its slices")
    add("--zone", required=True)
    add("--accelerator_type", required=True, metavar="TYPE", help="v4-128, v5litepod-64, v6e-256 …")
    add(
        "--runtime_version",
        default="tpu-ubuntu2204-base",
        metavar="VERSION",
        help="image of the TPU VMs (default tpu-ubuntu2204-base)",
    )
    add("--project", help="by default gcloud's")
    add("--node_count", type=int, default=1, metavar="N", help="slices (default 1)")
    add("--spot", action="store_true", help="cheaper, and preempted at times")
    add("--wheel", metavar="FILE", help="of this package; by default built from the clone here")
    add("--keep", action="store_true", help="do not delete the resource at the end")
    add("--poll", type=float, default=_POLL_SECONDS, help=argparse.SUPPRESS)


def launch(arguments: argparse.Namespace, words: Sequence[str], shell: Shell) -> int:
    """Run on a slice to the end, whatever happens to it meanwhile; the run's exit status."""
    check_name(arguments.name)
    if arguments.node_count < 1:
        raise UserError(f"--node_count={arguments.node_count}: give at least 1.")
    environment = parse_environment(arguments.env, os.environ)
    slices = _Slices(arguments, shell)
    run = remote.Run(arguments.name, words, environment)
    try:
        status = _run(arguments, slices, run, shell)
    except KeyboardInterrupt:
        shell.say("interrupted; the run goes on. The same command follows it; to end it:")
        shell.show(slices.delete_words)
        return 130
    if arguments.keep:
        shell.say(f"the resource is kept, and costs until it is deleted; status {status}")
        shell.show(slices.delete_words)
    else:
        slices.delete()
    return status


def _run(arguments: argparse.Namespace, slices: "_Slices", run: remote.Run, shell: Shell) -> int:
    retries = Retries(most=arguments.max_restarts, first_seconds=arguments.backoff)
    with _staged(arguments, run, shell) as directory:
        # A resource that is there already may hold this run, started by an earlier launch.
        following = slices.active() and slices.first(run.alive)
        fresh = True
        while True:
            if not following:
                ready = not fresh or (slices.obtain() and slices.install(directory, run))
                if not (ready and slices.every(run.start)):
                    fresh = True
                    slices.delete()
                    if not retries.again("the slice could not be set up", shell.say):
                        return 1
                    continue
            following = False
            status = slices.follow(run, arguments.stall_timeout)
            if status is None:
                why, fresh = "the run is stuck", False
            elif status == _LOST:
                why, fresh = "the slice was preempted or cannot be reached", True
                slices.delete()
            else:
                status = outcome([status, *(slices.statuses(run) if status else [])])
                if status in FINAL:
                    return status
                why, fresh = reason(status), not slices.active()
            if not retries.again(why, shell.say):
                return 1 if status in (None, _LOST) else status


@contextlib.contextmanager
def _staged(arguments: argparse.Namespace, run: remote.Run, shell: Shell) -> Iterator[Path]:
    """A directory with all that a worker needs, readable by its owner alone."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path("/tmp" if shell.dry else temporary) / run.directory
        if not shell.dry:
            directory.mkdir()
        wheel = package.stage(directory, arguments.wheel, shell)
        for name, text in run.files(wheel).items():
            shell.show_file(f"{directory}/{name}", run.hidden(name, text))
            if not shell.dry:
                (directory / name).touch(mode=0o600)
                (directory / name).write_text(text, encoding="utf-8")
        yield directory


class _Slices:
    """The queued resource and the TPU VMs of its slices, through gcloud."""

    def __init__(self, arguments: argparse.Namespace, shell: Shell):
        self._arguments, self._shell = arguments, shell
        self._where = [f"--zone={arguments.zone}"]
        if arguments.project:
            self._where.append(f"--project={arguments.project}")
        name, count = arguments.name, arguments.node_count
        self.nodes = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]

    @property
    def delete_words(self) -> list[str]:
        return self._queued("delete", "--force", "--quiet")

    def _queued(self, verb: str, *words: str) -> list[str]:
        name = self._arguments.name
        return ["gcloud", "compute", "tpus", "queued-resources", verb, name, *self._where, *words]

    def _state(self, *, dry: str, loud: bool = True) -> str:
        """The resource's state, or nothing where there is none."""
        words = self._queued("describe", "--format=value(state.state)")
        return self._shell.read(words, dry=dry, loud=loud).out.strip()

    def active(self) -> bool:
        """Whether the slices are there."""
        return self._state(dry="") == "ACTIVE"

    def obtain(self) -> bool:
        """Ask for the slices, unless that is done, and wait until they are there."""
        state = self._state(dry="", loud=not self._shell.dry)
        if state and state not in (*_WAITING, "ACTIVE"):
            self.delete()
            state = ""
        if not state and self._shell.run(self._create_words()).status:
            return False
        shown = ""
        while (state := self._state(dry="ACTIVE", loud=not shown)) in _WAITING:
            if state != shown:
                self._shell.say(f"{self._arguments.name} is {state}")
                shown = state
            time.sleep(self._arguments.poll)
        self._shell.say(f"{self._arguments.name} is {state or 'gone'}")
        return state == "ACTIVE"

    def _create_words(self) -> list[str]:
        arguments = self._arguments
        nodes = [f"--node-id={arguments.name}"]
        if arguments.node_count > 1:
            nodes = [f"--node-count={arguments.node_count}", f"--node-prefix={arguments.name}"]
        return self._queued(
            "create",
            *nodes,
            f"--accelerator-type={arguments.accelerator_type}",
            f"--runtime-version={arguments.runtime_version}",
            *(["--spot"] if arguments.spot else []),
        )

    def delete(self) -> None:
        """Give the slices back, whatever their state."""
        self._shell.run(self.delete_words)

    def install(self, directory: Path, run: remote.Run) -> bool:
        """Copy the staged directory to every worker and install the package there."""
        for node in self.nodes:
            copy = ["scp", "--recurse", str(directory), f"{node}:"]
            words = ["gcloud", "compute", "tpus", "tpu-vm", *copy, "--worker=all", *self._where]
            if self._shell.run(words).status:
                return False
        return self.every(run.install)

    def every(self, command: str) -> bool:
        """Run a command on every worker of every slice."""
        return not any(
            self._shell.run(self._ssh(node, "all", command)).status for node in self.nodes
        )

    def first(self, command: str) -> bool:
        """Whether a command ends well on the first worker."""
        return not self._shell.run(self._ssh(self.nodes[0], "0", command)).status

    def _ssh(self, node: str, worker: str, command: str) -> list[str]:
        words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, f"--worker={worker}"]
        return [*words, *self._where, f"--command={command}"]

    def follow(self, run: remote.Run, silence_seconds: float) -> int | None:
        """Show the first worker's log until the run ends; None where it falls silent.

        A lost connection is taken up again where it was, while the slice is there.
        """
        seen = lost = 0

        def line(text: str) -> None:
            nonlocal seen, lost
            seen, lost = seen + 1, 0
            print(text, flush=True)

        while True:
            words = self._ssh(self.nodes[0], "0", run.follow(seen))
            status = self._shell.follow(words, line, silence_seconds=silence_seconds)
            if status != _LOST:
                return status
            lost += 1
            if lost == _LOST_MOST or not self.active():
                return _LOST
            self._shell.say("the connection was lost")
            time.sleep(self._arguments.poll)

    def statuses(self, run: remote.Run) -> list[int]:
        """Exit statuses of the run's other processes, as far as they are known."""
        found = []
        for node in self.nodes:
            words = self._ssh(node, "all", run.status)
            found += [int(each) for each in self._shell.read(words).out.split() if each.isdigit()]
        return found
