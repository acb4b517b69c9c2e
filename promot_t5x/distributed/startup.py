"""Several processes as one run: how they find each other, and what ends when one of them ends.

A process is one of several where flags or the environment say so: `JAX_COORDINATOR_ADDRESS` with
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or the completion index of a Kubernetes job), Slurm's
variables, those of TPU pods on GKE, or a Cloud TPU VM's own metadata. Every process gives the same
command; process 0 alone prints and writes what is shared (see `processes`).

No process outlives another by more than a minute. The coordination service, which lives in process
0, notices one that is gone and ends the others, each with its Python stacks; a process that fails
leaves at once instead of waiting for the others; and a witness beside each (`witness`) says where
it was, and ends it where it makes no progress at all. What is saved stays: the same command, given
again to all, goes on from there.
"""

import argparse
import atexit
import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib.util
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from promot_t5x import progress
from promot_t5x.distributed.watchdog import GO_ON
from promot_t5x.errors import EXIT_USER_ERROR, UserError

HEARTBEAT_TIMEOUT_SECONDS = 30
SHUTDOWN_TIMEOUT_SECONDS = 60
STALL_TIMEOUT_SECONDS = 1800
_COORDINATOR_PORT = 8476
_LEAVING_SECONDS = 2.0
_PATIENCE_MS = 24 * 3600 * 1000  # for tokenising; a process that dies meanwhile ends the others
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A process's place in a run: where process 0 listens, how many there are, which this is.

    `local_devices`: the accelerators of this host that are the process's own; none for all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


_meetings = itertools.count()
_place: Place | None = None  # where `start` put this process
_witness: "_Witness | None" = None


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--coordinator_address` and the others, in T5X's spelling."""
    add = parser.add_argument
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, in a run of several")
    add("--process_count", type=int, metavar="N", help="processes of the run")
    add("--process_index", type=int, metavar="I", help="which of them this is, from 0")
    add(
        "--initialization_timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="how long the processes wait for each other at the start",
    )
    add(
        "--stall_timeout",
        type=int,
        default=STALL_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help="in a run of several processes, end one that makes no progress for so long",
    )


def find(parsed: argparse.Namespace, environ: Mapping[str, str]) -> Place | None:
    """This process's place according to flags or environment; None where it runs alone.

    A Cloud TPU VM does not show in the environment; `start` asks its metadata.

    **Raises** `UserError` for a place that is only half given or cannot be.
    """
    flags = {
        f"--{name}": getattr(parsed, name)
        for name in ("coordinator_address", "process_count", "process_index")
    }
    if any(value is not None for value in flags.values()):
        return _checked(flags)
    if "JAX_COORDINATOR_ADDRESS" in environ:
        index = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
        return _checked(
            {
                "JAX_COORDINATOR_ADDRESS": environ["JAX_COORDINATOR_ADDRESS"],
                "JAX_NUM_PROCESSES": _number(environ, "JAX_NUM_PROCESSES"),
                "JAX_PROCESS_ID": None if index is None else int(index),
            }
        )
    return _of_slurm(environ) or _of_gke(environ)


def _checked(given: Mapping[str, Any]) -> Place | None:
    """A place from (address, count, index) under the names that the user knows them by."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        known = ", ".join(f"{n} = {value}" for n, value in given.items() if value is not None)
        raise UserError(
            f"A run of several processes needs {' and '.join(missing)} besides {known}."
        )
    (_, address), (counted, count), (numbered, index) = given.items()
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"{numbered} = {index} is none of {counted} = {count} processes, which count from 0."
        )
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"The coordinator's address {address!r} must be HOST:PORT of process 0.")
    return Place(coordinator=address, count=count, index=index) if count > 1 else None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    return int(environ[name]) if name in environ else None


def _of_slurm(environ: Mapping[str, str]) -> Place | None:
    """From the variables that `srun` sets; several tasks of a node have one accelerator each."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(name in environ for name in needed) or int(environ["SLURM_NTASKS"]) < 2:
        return None
    # The first of 'node7,node9', of 'node[003-010,12],other' and of 'node[3]'.
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", environ["SLURM_STEP_NODELIST"])
    assert match is not None
    port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096
    count, nodes = int(environ["SLURM_NTASKS"]), int(environ.get("SLURM_STEP_NUM_NODES", 1))
    return Place(
        coordinator=f"{match[1]}{match[2] or ''}:{port}",
        count=count,
        index=int(environ["SLURM_PROCID"]),
        local_devices=(int(environ["SLURM_LOCALID"]),) if count > nodes else None,
    )


def _of_gke(environ: Mapping[str, str]) -> Place | None:
    """From the variables that GKE gives to the pods of a TPU slice, and to those of several."""
    if "TPU_WORKER_HOSTNAMES" not in environ:
        return None
    hosts = environ["TPU_WORKER_HOSTNAMES"].split(",")
    slices, slice_ = (
        int(environ.get(f"MEGASCALE_{name}", default))
        for name, default in (("NUM_SLICES", 1), ("SLICE_ID", 0))
    )
    leader = environ.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).partition(":")[0]
    count = slices * len(hosts)
    return (
        None
        if count < 2
        else Place(
            coordinator=f"{leader}:{_COORDINATOR_PORT}",
            count=count,
            index=slice_ * len(hosts) + int(environ.get("TPU_WORKER_ID", 0)),
        )
    )


def start(parsed: argparse.Namespace) -> None:
    """Take this process's place in its run, if it has one; before JAX looks for devices."""
    place = find(parsed, os.environ)
    if place is None and not _on_cloud_tpu(os.environ):
        return
    import jax

    settings: dict[str, Any] = dict(
        initialization_timeout=parsed.initialization_timeout,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_TIMEOUT_SECONDS,
    )
    if place is not None:
        _join(place, parsed.stall_timeout)
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            place.local_devices,
            cluster_detection_method="deactivate",
            **settings,
        )
        progress.here("its start")
        return
    with contextlib.suppress(ValueError):  # no metadata: a TPU of somebody else's, on one host
        jax.distributed.initialize(**settings)
    if jax.process_count() > 1:
        leader, count = "process 0, as the TPU's metadata have it", jax.process_count()
        place = Place(coordinator=leader, count=count, index=jax.process_index())
        _join(place, parsed.stall_timeout)


def _join(place: Place, stall_timeout_seconds: int) -> None:
    """Be one of several: watched by a witness, and silent unless it is process 0."""
    global _place, _witness
    _place = place
    faulthandler.enable()  # the coordination service ends a process by SIGABRT
    _witness = _Witness(stall_timeout_seconds)
    _say(f"process {place.index} of {place.count}, coordinator {place.coordinator}")
    progress.here(f"its start, waiting for the others at {place.coordinator}")
    if place.index:
        progress.mute()
        sys.stdout = open(os.devnull, "w")


def _on_cloud_tpu(environ: Mapping[str, str]) -> bool:
    """Whether this is a Cloud TPU VM that JAX will use as one."""
    wanted = environ.get("JAX_PLATFORMS", "tpu").split(",")
    return (
        "tpu" in wanted
        and "TPU_SKIP_MDS_QUERY" not in environ
        and any(map(os.path.exists, _TPU_DEVICES))
        and importlib.util.find_spec("libtpu") is not None
    )


def joined() -> bool:
    """Whether this process is one of several."""
    return _place is not None


def label() -> str:
    """` (process 3 of 8)` for a message, or nothing in a run of one process."""
    return "" if _place is None else f" (process {_place.index} of {_place.count})"


def meet() -> None:
    """Wait until all processes are here, however long one of them compiles or reads.

    Collectives are less patient: on CPUs, those that begin one wait half a minute for the others.
    """
    if joined():
        import orbax.checkpoint as ocp

        wait = ocp.multihost.get_barrier_sync_fn()
        wait(key=f"promot_t5x.{next(_meetings)}", timeout_ms=_PATIENCE_MS)


@contextlib.contextmanager
def first_on_host() -> Iterator[None]:
    """Run the body in one process of each host first, and in the others when it is done there.

    What the first one leaves on the host's disk, or on a shared one, the others then find.
    """
    if not joined():
        yield
        return
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    name = hashlib.sha256(socket.gethostname().encode()).digest()[:8]
    hosts = multihost_utils.process_allgather(np.frombuffer(name, np.uint8))
    same = [index for index, host in enumerate(hosts) if host.tobytes() == name]
    if same[0] == jax.process_index():
        yield
        meet()
    else:
        meet()
        yield


def leave(status: int) -> None:
    """End a process of several that has failed, without the handshake that ends a good run.

    The others notice at once or by the missing heartbeats. Process 0 takes them down with it, so it
    waits a moment for those that are about to report the same.
    """
    assert _place is not None and _witness is not None
    if status != EXIT_USER_ERROR:
        _say(
            f"process {_place.index} of {_place.count} failed at {_witness.where}; if it lost "
            f"another process, that one knows why; {GO_ON}"
        )
    _witness.dismiss()
    sys.stdout.flush()
    sys.stderr.flush()
    if _place.index == 0:
        time.sleep(_LEAVING_SECONDS)
    os._exit(status)


def _say(text: str) -> None:
    print(f"promot-t5x: {text}", file=sys.stderr, flush=True)


class _Witness:
    """The process beside this one; it is told where this one is, and reports its end."""

    def __init__(self, stall_timeout_seconds: int):
        faulthandler.register(signal.SIGUSR1)  # by which the witness asks for stacks
        program = Path(__file__).with_name("watchdog.py")
        words = [str(os.getpid()), label().strip(" ()"), str(stall_timeout_seconds)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for the witness
        )
        self.where = "its start"
        progress.tell(self._tell)
        atexit.register(self.dismiss)

    def _tell(self, where: str) -> None:
        self.where = where
        self._write(where.replace("\n", " "))

    def dismiss(self) -> None:
        """Say farewell to it: this process ends as it should, or has said why not."""
        self._write("")

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone; the run goes on without
