"""The start of a run's processes: how they find each other, and end together.

A process is one of several where flags or the environment say so: `JAX_COORDINATOR_ADDRESS` with
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (or the completion index of a Kubernetes job), Slurm's
variables, those of TPU pods on GKE, or a Cloud TPU VM's own metadata. Every process gives the same
command; process 0 alone prints and writes what is shared (see `processes`).

No process outlives another by more than a minute. The coordination service, which lives in process
0, notices one that is gone and ends the others, each with its Python stacks; a process that fails
leaves at once instead of waiting for the others; and a watchdog beside each (`watchdog`), also in a
run of one process, says where it was, and ends it where it hangs. What is saved stays: the same
command, given again to all, resumes the run.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib.util
import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from promot_t5x import progress
from promot_t5x.distributed.watchdog import Watchdog
from promot_t5x.distributed.watchdog_process import RESUME
from promot_t5x.errors import EXIT_USER_ERROR, UserError

HEARTBEAT_TIMEOUT_SECONDS = 30
SHUTDOWN_TIMEOUT_SECONDS = 60
_COORDINATOR_PORT = 8476
_LEAVING_SECONDS = 2.0
_PATIENCE_MS = 24 * 3600 * 1000  # for tokenizing; a process that dies meanwhile ends the others
_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessAddress:
    """A process's place in a run: where process 0 listens, how many there are, which this is.

    `local_devices`: the accelerators of this host that are the process's own; none for all.
    """

    coordinator: str
    count: int
    index: int
    local_devices: tuple[int, ...] | None = None


_meetings = itertools.count()
_place: ProcessAddress | None = None  # where `start` put this process
_watchdog: Watchdog | None = None


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
        default=0,
        metavar="SECONDS",
        help="end a run that makes no progress for so long (by default half an hour; between "
        "training steps, ten times what ten of them take, and at least five minutes)",
    )


def find(parsed: argparse.Namespace, environ: Mapping[str, str]) -> ProcessAddress | None:
    """Find the place of this process by flags or environment; None where it runs alone.

    A Cloud TPU VM does not show in the environment; `start` asks its metadata.

    **Raises:** `UserError` for a place that is only half given or cannot be.
    """
    flags = {
        f"--{name}": getattr(parsed, name)
        for name in ("coordinator_address", "process_count", "process_index")
    }
    if any(value is not None for value in flags.values()):
        return _checked(flags)
    if "JAX_COORDINATOR_ADDRESS" in environ:
        index = _integer(environ, "JAX_PROCESS_ID")
        if index is None:
            index = _integer(environ, "JOB_COMPLETION_INDEX")
        return _checked(
            {
                "JAX_COORDINATOR_ADDRESS": environ["JAX_COORDINATOR_ADDRESS"],
                "JAX_NUM_PROCESSES": _integer(environ, "JAX_NUM_PROCESSES"),
                "JAX_PROCESS_ID": index,
            }
        )
    return _of_slurm(environ) or _of_gke(environ)


def _checked(given: Mapping[str, Any]) -> ProcessAddress | None:
    """Make a place of (address, count, index), under the names that the user knows them by."""
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
    return ProcessAddress(coordinator=address, count=count, index=index) if count > 1 else None


def _integer(environ: Mapping[str, str], name: str, default: int | None = None) -> int | None:
    """Read an environment variable that holds an integer from 0 on.

    **Raises:** `UserError` where it holds something else.
    """
    text = environ.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"\d+", text.strip()):
        raise UserError(f"The environment variable {name} = {text!r} must be an integer from 0 on.")
    return int(text)


def _of_slurm(environ: Mapping[str, str]) -> ProcessAddress | None:
    """Find the place that `srun` gives to each task of a step."""
    needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")
    if not all(name in environ for name in needed):
        return None
    job, count, index = (
        _integer(environ, f"SLURM_{name}") or 0 for name in ("JOB_ID", "NTASKS", "PROCID")
    )
    if count < 2:
        return None
    # A step listens on a port of its own, so that jobs that share a node do not meet.
    return ProcessAddress(
        coordinator=f"{_first_host(environ['SLURM_STEP_NODELIST'])}:{61440 + job % 4096}",
        count=count,
        index=index,
        local_devices=_slurm_devices(environ, count),
    )


def _first_host(nodes: str) -> str:
    """Return the first host of a list such as `rack[0-1]node[01-02],login`, as Slurm expands it."""
    try:
        words = ["scontrol", "show", "hostnames", nodes]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        if done.returncode == 0 and done.stdout.split():
            return done.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired):
        pass  # a container without Slurm's programs
    # Of the first entry, the first of each bracket's numbers.
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", match[0]) if match else ""
    if not re.fullmatch(r"[\w.-]+", host):
        raise UserError(f"SLURM_STEP_NODELIST = {nodes!r} is no list of hosts.")
    return host


def _slurm_devices(environ: Mapping[str, str], count: int) -> tuple[int, ...] | None:
    """Choose the accelerators of a task among those that it sees; None for all.

    Slurm hides from a task the GPUs of the others where it binds them to tasks, as
    `--gpus-per-task` does; otherwise the tasks of a node see all of them and share them out.
    """
    nodes = _integer(environ, "SLURM_STEP_NUM_NODES", 1) or 1
    local = _integer(environ, "SLURM_LOCALID", 0) or 0
    if count <= nodes:
        return None
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return None if "SLURM_GPUS_PER_TASK" in environ else (local,)
    visible = len([each for each in environ["CUDA_VISIBLE_DEVICES"].split(",") if each])
    tasks = -(-count // nodes)
    per_task = environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]
    if visible < tasks or str(visible) == per_task:
        return None
    share = visible // tasks
    return tuple(range(local * share, (local + 1) * share))


def _of_gke(environ: Mapping[str, str]) -> ProcessAddress | None:
    """Find the place that GKE gives to the pods of a TPU slice, and to those of several slices."""
    if "TPU_WORKER_HOSTNAMES" not in environ:
        return None
    hosts = environ["TPU_WORKER_HOSTNAMES"].split(",")
    slices = _integer(environ, "MEGASCALE_NUM_SLICES", 1) or 1
    slice_index = _integer(environ, "MEGASCALE_SLICE_ID", 0) or 0
    worker = _integer(environ, "TPU_WORKER_ID", 0) or 0
    first = environ.get("MEGASCALE_COORDINATOR_ADDRESS", hosts[0]).partition(":")[0]
    count = slices * len(hosts)
    if count < 2:
        return None
    return ProcessAddress(
        coordinator=f"{first}:{_COORDINATOR_PORT}",
        count=count,
        index=slice_index * len(hosts) + worker,
    )


def start(parsed: argparse.Namespace) -> None:
    """Take this process's place in its run, if it has one; before JAX looks for devices."""
    place = find(parsed, os.environ)
    if place is None and not _on_cloud_tpu(os.environ):
        _watch("the run", parsed.stall_timeout)
        return
    import jax

    settings: dict[str, Any] = {
        "initialization_timeout": parsed.initialization_timeout,
        "heartbeat_timeout_seconds": HEARTBEAT_TIMEOUT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_TIMEOUT_SECONDS,
    }
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
    # A port that is open between the hosts of a slice, which JAX's own is not everywhere.
    os.environ.setdefault("JAX_COORDINATOR_PORT", str(_COORDINATOR_PORT))
    with contextlib.suppress(ValueError):  # no metadata: a TPU of somebody else's, on one host
        jax.distributed.initialize(**settings)
    if jax.process_count() > 1:
        leader, count = "process 0, as the TPU's metadata have it", jax.process_count()
        place = ProcessAddress(coordinator=leader, count=count, index=jax.process_index())
        _join(place, parsed.stall_timeout)
    else:
        _watch("the run", parsed.stall_timeout)


def _watch(name: str, stall_timeout_seconds: int) -> None:
    """Set a watchdog beside this process."""
    global _watchdog
    if stall_timeout_seconds < 0:
        raise UserError(f"--stall_timeout={stall_timeout_seconds}: give at least 1.")
    _watchdog = Watchdog(name, stall_timeout_seconds)


def end() -> None:
    """End the watch over a run of one process, whose command is done or says itself what failed."""
    global _watchdog
    if not joined():
        dismiss_watchdog()
        _watchdog = None


def dismiss_watchdog() -> None:
    """Tell the watchdog, if there is one, that this process ends on purpose."""
    if _watchdog is not None:
        _watchdog.dismiss()


def _join(place: ProcessAddress, stall_timeout_seconds: int) -> None:
    """Be one of several processes: watched, and silent unless it is process 0."""
    global _place
    _place = place
    faulthandler.enable()  # the coordination service ends a process by SIGABRT
    _watch(label().strip(" ()"), stall_timeout_seconds)
    _say(f"process {place.index} of {place.count}, coordinator {place.coordinator}")
    progress.here(f"its start, waiting for the others at {place.coordinator}")
    if place.index:
        progress.mute()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


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
    assert _place is not None
    assert _watchdog is not None
    if status != EXIT_USER_ERROR:
        _say(
            f"process {_place.index} of {_place.count} failed at {_watchdog.where}; if it lost "
            f"another process, that one knows why; {RESUME}"
        )
    dismiss_watchdog()
    sys.stdout.flush()
    sys.stderr.flush()
    if _place.index == 0:
        time.sleep(_LEAVING_SECONDS)
    os._exit(status)


def _say(text: str) -> None:
    print(f"promot-t5x: {text}", file=sys.stderr, flush=True)
