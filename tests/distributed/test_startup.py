"""The place that a process of several finds, and what the watchdog beside it says of its end."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from etils import epath

from promot_t5x import errors
from promot_t5x.distributed import startup, watchdog_process
from promot_t5x.distributed.startup import ProcessAddress
from promot_t5x.errors import UserError
from promot_t5x.runs import run_directory

pytestmark = pytest.mark.slow


def found(*words, **environ):
    parser = argparse.ArgumentParser()
    startup.add_flags(parser)
    return startup.find(parser.parse_args(words), environ)


JAX = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4"}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "4",
}
GKE = {"TPU_WORKER_HOSTNAMES": "job-0-0.svc,job-0-1.svc", "TPU_WORKER_ID": "1"}
FLAGS = ("--coordinator_address=a:1", "--process_count=3", "--process_index=1")


def test_a_configuration_is_checked_before_jax_looks_for_devices():
    """`jax.distributed.initialize` must come before that, and the check comes before both."""
    code = (
        "from promot_t5x.cli.main import main\n"
        "from jax._src import xla_bridge\n"
        "status = main(['promot', '--gin_file=demo/promot.gin', '--dry_run'])\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "raise SystemExit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "environ", "place"),
    [
        ((), {}, None),
        (FLAGS, {}, ProcessAddress(coordinator="a:1", count=3, index=1)),
        (FLAGS, {**JAX, **SLURM}, ProcessAddress(coordinator="a:1", count=3, index=1)),
        (
            (),
            {**JAX, "JAX_PROCESS_ID": "3"},
            ProcessAddress(coordinator="host0:1234", count=4, index=3),
        ),
        (
            (),
            {**JAX, "JOB_COMPLETION_INDEX": "0"},
            ProcessAddress(coordinator="host0:1234", count=4, index=0),
        ),
        ((), {**JAX, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        ((), {**SLURM, "SLURM_STEP_NODELIST": "n3", "SLURM_NTASKS": "1"}, None),
        ((), {**GKE, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ((), GKE, ProcessAddress(coordinator="job-0-0.svc:8476", count=2, index=1)),
        (
            (),
            {
                **GKE,
                "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "first-0-0.svc:8080",
            },
            ProcessAddress(coordinator="first-0-0.svc:8476", count=6, index=5),
        ),
    ],
)
def test_a_place_from_flags_or_environment(words, environ, place):
    assert found(*words, **environ) == place


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("node[3]", "node3"),
        ("gpu-a[003-010,12],b1", "gpu-a003"),
        ("gpu[1,4-5]", "gpu1"),
        ("node[1-2]-ib", "node1-ib"),
        ("rack[0-1]node[01-02]", "rack0node01"),
        ("[1-4]", "1"),
    ],
)
def test_the_first_host_of_slurms_list_is_the_coordinator(nodes, first):
    place = found(**SLURM, SLURM_STEP_NODELIST=nodes)
    assert place == ProcessAddress(coordinator=f"{first}:61441", count=4, index=2)


def test_slurm_itself_expands_its_lists_where_it_can(tmp_path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/bash\n[ "$*" = "show hostnames r[0x0]" ] && printf "r00\\nr01\\n"\n'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert found(**SLURM, SLURM_STEP_NODELIST="r[0x0]").coordinator == "r00:61441"


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        # `--gpus-per-task=1` shows each task its own GPU alone.
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "3"}, None),
        ({"SLURM_GPUS_PER_TASK": "1"}, None),
        ({"SLURM_GPUS_PER_TASK": "h100:2", "CUDA_VISIBLE_DEVICES": "2,3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (3,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (6, 7)),
        ({}, (3,)),
    ],
)
def test_gpus_of_a_node_that_tasks_share(environ, devices):
    node = {"SLURM_STEP_NUM_NODES": "1", "SLURM_LOCALID": "3", "SLURM_STEP_NODELIST": "n1"}
    assert found(**{**SLURM, **node, **environ}).local_devices == devices


def test_slurm_tasks_that_share_a_node_have_a_device_each():
    place = found(
        **{**SLURM, "SLURM_STEP_NUM_NODES": "2", "SLURM_LOCALID": "1"}, SLURM_STEP_NODELIST="n1"
    )
    assert place.local_devices == (1,)


@pytest.mark.parametrize(
    ("words", "environ", "complaint"),
    [
        (FLAGS[:2], {}, "needs --process_index besides --coordinator_address = a:1, --process_cou"),
        (FLAGS[2:], {}, "needs --coordinator_address and --process_count"),
        ((*FLAGS[:2], "--process_index=3"), {}, "--process_index = 3 is none of --process_count"),
        (("--coordinator_address=a", *FLAGS[1:]), {}, "'a' must be HOST:PORT"),
        ((), JAX, "needs JAX_PROCESS_ID besides"),
        ((), {**JAX, "JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID = 4 is none of JAX_NUM_PROCESSES"),
        (
            (),
            {**JAX, "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES = 'two' must be an integer",
        ),
        ((), {**JAX, "JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID = '-1' must be an integer"),
        ((), {**JAX, "JOB_COMPLETION_INDEX": ""}, "JOB_COMPLETION_INDEX = '' must be an integer"),
        (
            (),
            {**SLURM, "SLURM_STEP_NODELIST": "n", "SLURM_PROCID": "x"},
            "SLURM_PROCID = 'x' must be an integer",
        ),
        ((), {**GKE, "TPU_WORKER_ID": "a"}, "TPU_WORKER_ID = 'a' must be an integer"),
        ((), {**SLURM, "SLURM_STEP_NODELIST": "]["}, "'][' is no list of hosts"),
    ],
)
def test_half_a_place_is_refused(words, environ, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        found(*words, **environ)


def test_tokens_of_runs_in_buckets_are_kept_on_the_host(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = run_directory.token_cache(epath.Path("gs://bucket/run"))
    assert kept == epath.Path(tmp_path) / "promot_t5x" / "token_cache"
    assert run_directory.token_cache(epath.Path("/run")) == epath.Path("/run/token_cache")


# A process with a watchdog, which it tells where it is; then it ends or hangs, as it is told.
WATCHED = """
import os, signal, sys, time
from promot_t5x import progress
from promot_t5x import errors
from promot_t5x.distributed import startup, watchdog_process
if sys.argv[3] == "several":
    startup._place = startup.ProcessAddress(coordinator="a:1", count=4, index=3)
startup._watch(startup.label().strip(" ()") or "the run", int(sys.argv[2]))
progress.here("[stage_two] step 16")
progress.here("[stage_two] step 17")
time.sleep(0.3)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[1] == "hangs":
    def deadlock():
        time.sleep(100)
    deadlock()
elif sys.argv[1] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
elif sys.argv[1] == "failed":
    startup.leave(1)
startup.end()
"""


def watched(end, stall, how_many="several"):
    words = [sys.executable, "-c", WATCHED, end, str(stall), how_many]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("end", "stall", "status", "said"),
    [
        ("well", 20, 0, []),
        ("failed", 20, 1, ["process 3 of 4 failed at [stage_two] step 17; if it lost another"]),
        (
            "killed",
            20,
            -signal.SIGKILL,
            ["process 3 of 4 was ended at [stage_two] step 17", "start it again to resume"],
        ),
        (
            "hangs",
            2,
            errors.EXIT_START_AGAIN,
            [
                "process 3 of 4 has made no progress for 2 s at [stage_two] step 17; its stacks:",
                "in deadlock",
                "process 3 of 4 hangs and is ended",
            ],
        ),
        # What cannot even end itself is killed.
        ("stopped", 2, -signal.SIGKILL, ["process 3 of 4 hangs and is ended"]),
    ],
)
def test_the_watchdog_says_where_a_process_was(end, stall, status, said):
    done = watched(end, stall)
    assert done.returncode == status, done.stderr
    if not said:
        assert done.stderr == ""
    for words in said:
        assert words in done.stderr


def test_a_run_of_one_process_has_a_watchdog_too():
    assert "the run was ended at [stage_two] step 17" in watched("killed", 20, "one").stderr
    done = watched("hangs", 1, "one")
    assert done.returncode == errors.EXIT_START_AGAIN
    assert "the run has made no progress for 1 s at [stage_two] step 17" in done.stderr


# A process of two: it sleeps for a while, says that it is done, and ends.
TOGETHER = """
import argparse, pathlib, sys, time
from promot_t5x.cli import ending
from promot_t5x.distributed import startup

def command():
    parser = argparse.ArgumentParser()
    startup.add_flags(parser)
    startup.start(parser.parse_args(sys.argv[3:]))
    time.sleep(float(sys.argv[1]))
    pathlib.Path(sys.argv[2]).touch()
    return 0

ending.run_and_exit(command)
"""


@pytest.mark.parametrize("late", [0, 1])
def test_who_is_first_waits_for_the_others(tmp_path, late):
    """JAX's service ends those that stay where one is gone without a word."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator_address=localhost:{free.getsockname()[1]}"
    done = [tmp_path / "0", tmp_path / "1"]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(2 * (index == late)), done[index], coordinator,
             "--process_count=2", f"--process_index={index}"]
        )
        for index in range(2)
    ]  # fmt: skip
    assert started[1 - late].wait(timeout=100) == 0
    assert done[late].exists()
    assert started[late].wait(timeout=100) == 0


def paced(step_seconds, *, steps=60, lines=(), stall=0.0):
    """The limit of a run that took so long for each step, and was then somewhere else."""
    pace = watchdog_process.Pace(stall)
    for number in range(steps):
        pace.add(f"[stage_two] step {number}", number * step_seconds)
    for line in lines:
        pace.add(line, steps * step_seconds)
    return pace.limit()


def test_the_limit_of_a_hang_follows_the_pace_of_steps():
    assert paced(6.0) == 10 * 60.0  # ten times what ten steps take
    assert paced(0.01) == 300.0
    assert paced(60.0) == 1800.0
    # Before there is a pace, and wherever there is none, half an hour.
    assert paced(6.0, steps=30) == paced(6.0, lines=["[stage_two] step 60, saving"]) == 1800.0
    assert paced(6.0, lines=["[stage_two] validation 3/9", "[stage_two] step 60"]) == 600.0
    assert paced(6.0, stall=7.0) == 7.0


def test_the_coordinator_of_a_tpu_slice_listens_where_hosts_reach_it(monkeypatch):
    import jax

    seen = []
    monkeypatch.delenv("JAX_COORDINATOR_PORT", raising=False)
    monkeypatch.setattr(startup, "_on_cloud_tpu", lambda environ: True)
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda **settings: seen.append(os.environ["JAX_COORDINATOR_PORT"]),
    )
    parser = argparse.ArgumentParser()
    startup.add_flags(parser)
    startup.start(parser.parse_args([]))
    startup.end()
    assert seen == ["8476"]
