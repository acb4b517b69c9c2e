"""Cloud TPU slices: `promot-t5x launch tpu --name=… --zone=… --accelerator_type=… -- VERB …`.

One command from nothing to a finished run: it asks for a queued resource (of several slices with
`--node_count`), waits until it is there, installs this very package on every worker, starts the run
on all of them, follows the log of the first, and deletes the resource at the end. The run goes on
when this process does not; the same command, given again, finds it and follows it.

Nothing is deleted or started again because a question failed: gcloud must have said that the slice
is gone, or the worker that the run has ended or is silent.
"""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from promot_t5x.errors import UserError
from promot_t5x.launch import accelerators, cloud, package, remote
from promot_t5x.launch.commands import Shell, check_name, parse_environment
from promot_t5x.launch.payload import Command, check_output, traveling
from promot_t5x.launch.retries import FINAL, Retries, outcome, reason

_ACTIVE = "ACTIVE"
_GONE = ("FAILED", "SUSPENDED")  # a queued resource in these states has no machines any more
_GOING = ("SUSPENDING", "DELETING")
_POLL_SECONDS = 20.0
_KILLED = 137  # of a run that left no status
_LOST = 255  # ssh's status where the connection failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch tpu` takes."""
    add = parser.add_argument
    add("--name", required=True, help="of the queued resource and its slices")
    add("--zone", required=True)
    add("--accelerator_type", required=True, metavar="TYPE", help="v4-128, v5e-64, v6e-256 …")
    add(
        "--runtime_version",
        metavar="VERSION",
        help="image of the TPU VMs (by default the one that the accelerator type needs)",
    )
    add("--project", help="by default gcloud's")
    add("--node_count", type=int, default=1, metavar="N", help="slices (default 1)")
    add("--spot", action="store_true", help="cheaper, and preempted at times")
    add("--wheel", metavar="FILE", help="of this package; by default built from the clone here")
    add("--keep", action="store_true", help="do not delete the resource at the end")
    add("--poll", type=float, default=_POLL_SECONDS, help=argparse.SUPPRESS)


def launch(arguments: argparse.Namespace, command: Command, shell: Shell) -> int:
    """Run on a slice to the end, whatever happens to it meanwhile.

    **Returns:** the run's exit status; 1 where the cloud did not answer any more.

    **Raises:** `UserError` for bad input, and for a request that the cloud refuses.
    """
    check_name(arguments.name)
    if arguments.node_count < 1:
        raise UserError(f"--node_count={arguments.node_count}: give at least 1.")
    tpu = accelerators.find_tpu_slice(arguments.accelerator_type)
    environment = parse_environment(arguments.env, os.environ)
    check_output(command, shared_disk=False)
    words = command.requiring(tpu.requirement(arguments.node_count))
    run = remote.Run(arguments.name, words, environment, traveling(command))
    slices = _Slices(arguments, tpu, shell)
    try:
        status = _run(arguments, slices, run, shell)
        if arguments.keep:
            shell.say(f"the resource is kept, and costs until it is deleted; status {status}")
            shell.show(slices.delete_words)
        else:
            slices.delete()
        return status
    except KeyboardInterrupt:
        shell.say("interrupted; what runs, goes on. The same command follows it; to end it:")
        shell.show(slices.delete_words)
        return 130
    except (cloud.CloudError, UserError) as error:
        if slices.may_exist:
            shell.say("the slice may be running, and costs until it is deleted. To delete it:")
            shell.show(slices.delete_words)
        if isinstance(error, UserError):
            raise
        print(f"promot-t5x: error: {shell.redact(str(error))}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace, slices: "_Slices", run: remote.Run, shell: Shell) -> int:
    retries = Retries(most=arguments.max_restarts, first_seconds=arguments.backoff)
    with _staged(arguments, run, shell) as directory:
        # A resource that is there already may hold this run, started by an earlier launch.
        following = slices.state() == _ACTIVE and slices.is_running(run)
        installed = False
        while True:
            if not following:
                installed = installed or (slices.obtain() and slices.install(directory, run))
                if not installed or not slices.every(run.start):
                    installed = installed and slices.state() == _ACTIVE
                    if not retries.again("the slice could not be set up", shell.say):
                        return 1
                    continue
            following = False
            status = slices.follow(run, arguments.stall_timeout)
            if status == _Slices.GONE:
                why, installed = "the slice was preempted", False
                slices.delete()
            elif status == _Slices.STUCK:
                why, installed = "the run is stuck", True
            else:
                if status in FINAL:
                    return status
                why, installed = reason(status), slices.state() == _ACTIVE
            if not retries.again(why, shell.say):
                return max(status, 1)


@contextlib.contextmanager
def _staged(arguments: argparse.Namespace, run: remote.Run, shell: Shell) -> Iterator[Path]:
    """Make a directory with all that a worker needs, readable by its owner alone."""
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
        for name, path in run.local_files.items():
            shell.say(f"{directory}/{name} is {path}")
            if not shell.dry:
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, directory / name)
        yield directory


class _Slices:
    """The queued resource and the TPU VMs of its slices, through gcloud.

    **Attributes:**

    - `nodes`: the names of the slices.
    - `may_exist`: whether the resource exists, as far as is known.
    """

    GONE, STUCK = -1, -2  # what `follow` returns instead of a status

    def __init__(self, arguments: argparse.Namespace, tpu: accelerators.TpuSlice, shell: Shell):
        self._arguments, self._tpu, self._shell = arguments, tpu, shell
        self._where = [f"--zone={arguments.zone}"]
        if arguments.project:
            self._where.append(f"--project={arguments.project}")
        name, count = arguments.name, arguments.node_count
        self.nodes = [name] if count == 1 else [f"{name}-{index}" for index in range(count)]
        self.may_exist = False
        self._was_active = False

    @property
    def delete_words(self) -> list[str]:
        """The command that deletes the resource."""
        return self._queued("delete", "--force", "--quiet")

    def _queued(self, verb: str, *words: str) -> list[str]:
        name = self._arguments.name
        return ["gcloud", "compute", "tpus", "queued-resources", verb, name, *self._where, *words]

    def _patience(self) -> Retries:
        """Return the retries of one question or order."""
        most, first = self._arguments.max_restarts, self._arguments.backoff
        return Retries(what="attempt", most=most, first_seconds=first)

    def state(self, *, dry: str = "", loud: bool = True) -> str | None:
        """Ask for the resource's state; None where gcloud says that there is no such resource.

        **Raises:** `CloudError` where gcloud does not answer, `UserError` where it refuses to.
        """
        words = self._queued("describe", "--format=value(state.state)")
        state = cloud.ask(self._shell, words, self._patience(), dry=dry, loud=loud)
        self.may_exist = state is not None
        self._was_active = self._was_active or state == _ACTIVE
        return state

    def obtain(self) -> bool:
        """Ask for the slices, unless that is done, and wait until they are there.

        **Returns:** False where they were not granted this time.

        **Raises:** `UserError` where they can never be.
        """
        state = self.state(loud=not self._shell.dry)
        if state in _GONE:
            self.delete()
            state = None
        if state is None and not self._create():
            return False
        shown = None
        while (state := self.state(dry=_ACTIVE, loud=not shown)) not in (_ACTIVE, None, *_GONE):
            if state != shown:
                self._shell.say(f"{self._arguments.name} is {state}")
                shown = state
            time.sleep(self._arguments.poll)
        self._shell.say(f"{self._arguments.name} is {state or 'gone'}")
        return state == _ACTIVE

    def _create(self) -> bool:
        arguments = self._arguments
        nodes = [f"--node-id={arguments.name}"]
        if arguments.node_count > 1:
            nodes = [f"--node-count={arguments.node_count}", f"--node-prefix={arguments.name}"]
        runtime_version = arguments.runtime_version or self._tpu.generation.runtime_version
        words = self._queued(
            "create",
            *nodes,
            f"--accelerator-type={self._tpu.accelerator_type}",
            f"--runtime-version={runtime_version}",
            *(["--spot"] if arguments.spot else []),
        )
        done = self._shell.read(words)
        if cloud.is_refused(done, quota=not self._was_active):
            raise UserError(f"Cloud TPU refuses this slice: {cloud.reason(done)}")
        # An order whose answer was lost may have been carried out.
        self.may_exist = True
        return done.status == 0

    def delete(self) -> None:
        """Give the slices back, whatever their state.

        **Raises:** `CloudError` where that fails again and again: they cost on.
        """
        retries = self._patience()
        while True:
            done = self._shell.read(self.delete_words)
            if done.status == 0 or cloud.is_missing(done):
                self.may_exist = False
                return
            refused = cloud.is_refused(done)
            if refused or not retries.again("the slice could not be deleted", self._shell.say):
                raise cloud.CloudError(
                    f"{self._arguments.name} could not be deleted and still costs money: "
                    f"{cloud.reason(done)}. Run: {shlex.join(self.delete_words)}"
                )

    def install(self, directory: Path, run: remote.Run) -> bool:
        """Copy the staged directory to every worker and install the package there."""
        for node in self.nodes:
            copy = ["scp", "--recurse", str(directory), f"{node}:"]
            words = ["gcloud", "compute", "tpus", "tpu-vm", *copy, "--worker=all", *self._where]
            if self._shell.run(words).status:
                return False
        return self.every(run.install)

    def every(self, command: str) -> bool:
        """Run a command on every worker of every slice; False where it fails on any."""
        return not any(
            self._shell.run(self._ssh(node, "all", command)).status for node in self.nodes
        )

    def _ssh(self, node: str, worker: str, command: str) -> list[str]:
        words = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, f"--worker={worker}"]
        return [*words, *self._where, f"--command={command}"]

    def _report(self, run: remote.Run) -> remote.Report | None:
        """Ask the workers how the run is; None where gcloud says that the slices are gone.

        **Raises:** `CloudError` where neither answers.
        """
        retries = self._patience()
        while True:
            answers = [self._shell.read(self._ssh(n, "all", run.report)).out for n in self.nodes]
            if (report := remote.Report.parse("".join(answers))) is not None:
                return report
            if self.state(loud=False) in (None, *_GONE, *_GOING):
                return None
            if not retries.again("the workers gave no answer", self._shell.say):
                raise cloud.CloudError("The slice is ACTIVE, but its workers do not answer.")

    def is_running(self, run: remote.Run) -> bool:
        """Whether the run is running on any worker.

        **Raises:** `UserError` where another command is.
        """
        report = self._report(run)
        if report is not None and report.digests - {run.digest}:
            raise UserError(
                f"{self._arguments.name} is running another command: wait for its end, delete the "
                "slice, or give this run a --name of its own."
            )
        return report is not None and bool(report.quiet_seconds)

    def follow(self, run: remote.Run, silence_seconds: float) -> int:
        """Show the first worker's log until the run ends.

        A lost connection is taken up again where it was, while the slice is there.

        **Returns:** the run's exit status; `GONE` where the slice is, `STUCK` where the workers
        say that the run has been silent for too long.
        """
        seen, retries = 0, self._patience()

        def line(text: str) -> None:
            nonlocal seen, retries
            seen, retries = seen + 1, self._patience()
            print(text, flush=True)

        while True:
            words = self._ssh(self.nodes[0], "0", run.follow(seen))
            status = self._shell.follow(words, line, silence_seconds=silence_seconds)
            if status == 0:
                return 0
            if self.state() in (None, *_GONE, *_GOING):
                return self.GONE
            # gcloud's own failures end with statuses that a run may have too.
            if status != _LOST:
                report = self._report(run)
                if report is None:
                    return self.GONE
                if not report.quiet_seconds or any(report.statuses):
                    return outcome(list(report.statuses)) if report.statuses else _KILLED
                if status is None and min(report.quiet_seconds) >= silence_seconds:
                    return self.STUCK
            if not retries.again("the connection was lost", self._shell.say):
                raise cloud.CloudError("The slice is ACTIVE, but its first worker does not answer.")
