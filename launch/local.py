"""Several processes on this machine: `promot-t5x launch local --processes=4 -- train …`.

Each process is a host of its own to JAX, with a share of the accelerators or some virtual CPU
devices; they meet at a free port. Their output comes with the number of its process in front. The
run is started again when it fails, as the launchers of real clusters do it.
"""

import argparse
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from promot_t5x.distributed.devices import Requirement
from promot_t5x.errors import UserError
from promot_t5x.launch.commands import Shell, parse_environment
from promot_t5x.launch.payload import Command
from promot_t5x.launch.retries import FINAL, Retries, outcome, reason

_GRACE_SECONDS = 60.0  # in which the others end when one has failed
_TERM_SECONDS = 120.0  # in which processes save after SIGTERM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `launch local` takes."""
    add = parser.add_argument
    add("--processes", type=int, required=True, metavar="N", help="processes to start")
    add(
        "--cpu_devices",
        type=int,
        metavar="N",
        help="run on CPUs, with N virtual devices a process",
    )
    add(
        "--gpus_per_process",
        type=int,
        metavar="N",
        help="process i sees the GPUs iN … iN + N - 1 only",
    )


def launch(arguments: argparse.Namespace, command: Command, shell: Shell) -> int:
    """Run the processes to the end; return the run's exit status."""
    for name in ("processes", "cpu_devices", "gpus_per_process"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: give at least 1.")
    words = command.requiring(_requirement(arguments))
    given = parse_environment(arguments.env, os.environ)
    retries = Retries(most=arguments.max_restarts, first_seconds=arguments.backoff)
    while True:
        group = _Group(arguments, words, given, shell)
        if shell.dry:
            return 0
        status = group.wait(arguments.stall_timeout)
        if not group.retried or not retries.again(reason(status), shell.say):
            return status if status >= 0 else 128 - status


class _Group:
    """The processes of one start."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        words: Sequence[str],
        given: dict[str, str],
        shell: Shell,
    ):
        self._shell = shell
        self._lines: queue.Queue[tuple[int, bytes | None]] = queue.Queue()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.retried = False
        port = 8476 if shell.dry else _free_port()
        for index in range(arguments.processes):
            own = {
                **given,
                "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                "JAX_NUM_PROCESSES": str(arguments.processes),
                "JAX_PROCESS_ID": str(index),
                **_devices(arguments, index),
            }
            command = [sys.executable, "-m", "promot_t5x", *words]
            shell.show(["env", *(f"{name}={value}" for name, value in own.items()), *command])
            if not shell.dry:
                self._processes.append(
                    subprocess.Popen(
                        command,
                        env={**os.environ, **own},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # Ctrl-C is passed on below, once
                    )
                )
        for index, process in enumerate(self._processes):
            threading.Thread(target=self._read, args=(index, process), daemon=True).start()

    def _read(self, index: int, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._lines.put((index, line))
        self._lines.put((index, None))

    def wait(self, stall_seconds: float) -> int:
        """Pass on output until all have ended; the run's status. Sets `retried`."""
        received: list[int] = []
        before = {
            number: signal.signal(number, lambda number, _: received.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            return self._wait(stall_seconds, received)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._signal(signal.SIGKILL)

    def _wait(self, stall_seconds: float, received: list[int]) -> int:
        reading, heard = len(self._processes), time.monotonic()
        end = float("inf")
        stuck, passed_on = False, 0
        while reading:
            if len(received) > passed_on:
                passed_on = len(received)
                self._signal(received[-1])
                end = min(end, time.monotonic() + _TERM_SECONDS)
            try:
                index, line = self._lines.get(timeout=0.1)
            except queue.Empty:
                pass
            else:
                heard = time.monotonic()
                if line is None:
                    reading -= 1
                else:
                    text = line.decode(errors="replace").rstrip("\n")
                    print(self._shell.redact(f"[{index}] {text}"), flush=True)
            now = time.monotonic()
            if any(process.poll() for process in self._processes):
                end = min(end, now + _GRACE_SECONDS)
            if now - heard > stall_seconds and not stuck:
                self._shell.say(f"no process has said anything for {stall_seconds:g} s")
                stuck, end = True, now
            if now > end:
                self._signal(signal.SIGKILL)
        statuses = [process.wait() for process in self._processes]
        status = outcome(statuses)
        self.retried = status not in FINAL and not received
        return status

    def _signal(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _requirement(arguments: argparse.Namespace) -> Requirement:
    """Return what the run must find: the devices and processes that were asked for."""
    count, platform, each = arguments.processes, None, None
    if arguments.cpu_devices:
        platform, each = "cpu", arguments.cpu_devices
    elif arguments.gpus_per_process:
        platform, each = "gpu", arguments.gpus_per_process
    return Requirement(platform=platform, count=each and each * count, processes=count)


def _devices(arguments: argparse.Namespace, index: int) -> dict[str, str]:
    if arguments.cpu_devices:
        flags = os.environ.get("XLA_FLAGS", "")
        count = f"--xla_force_host_platform_device_count={arguments.cpu_devices}"
        return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{flags} {count}".strip()}
    if arguments.gpus_per_process:
        first = index * arguments.gpus_per_process
        gpus = range(first, first + arguments.gpus_per_process)
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port
