"""Where a process of several finds its place, and what the witness beside it says of its end."""

import argparse
import re
import signal
import subprocess
import sys

import pytest
from etils import epath

from promot_t5x.distributed import startup
from promot_t5x.distributed.startup import Place
from promot_t5x.errors import UserError
from promot_t5x.runs import run_directory


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


@pytest.mark.parametrize(
    ("words", "environ", "place"),
    [
        ((), {}, None),
        (FLAGS, {}, Place(coordinator="a:1", count=3, index=1)),
        (FLAGS, {**JAX, **SLURM}, Place(coordinator="a:1", count=3, index=1)),
        ((), {**JAX, "JAX_PROCESS_ID": "3"}, Place(coordinator="host0:1234", count=4, index=3)),
        (
            (),
            {**JAX, "JOB_COMPLETION_INDEX": "0"},
            Place(coordinator="host0:1234", count=4, index=0),
        ),
        ((), {**JAX, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        ((), {**SLURM, "SLURM_STEP_NODELIST": "n3", "SLURM_NTASKS": "1"}, None),
        ((), {**GKE, "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ((), GKE, Place(coordinator="job-0-0.svc:8476", count=2, index=1)),
        (
            (),
            {
                **GKE,
                "MEGASCALE_NUM_SLICES": "3",
                "MEGASCALE_SLICE_ID": "2",
                "MEGASCALE_COORDINATOR_ADDRESS": "first-0-0.svc:8080",
            },
            Place(coordinator="first-0-0.svc:8476", count=6, index=5),
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
    ],
)
def test_the_first_node_of_slurms_list_leads(nodes, first):
    place = found(**SLURM, SLURM_STEP_NODELIST=nodes)
    assert place == Place(coordinator=f"{first}:61441", count=4, index=2)


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
    ],
)
def test_half_a_place_is_none(words, environ, complaint):
    with pytest.raises(UserError, match=re.escape(complaint)):
        found(*words, **environ)


def test_tokens_of_runs_in_buckets_are_kept_on_the_host(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = run_directory.token_cache(epath.Path("gs://bucket/run"))
    assert kept == epath.Path(tmp_path) / "promot_t5x" / "token_cache"
    assert run_directory.token_cache(epath.Path("/run")) == epath.Path("/run/token_cache")


# A process with a witness that tells where it is, and then ends or hangs as it is told.
WATCHED = """
import argparse, os, signal, sys, time
from promot_t5x import distributed, progress
distributed._place = distributed.Place(coordinator="a:1", count=4, index=3)
distributed._witness = distributed._Witness(float(sys.argv[2]))
progress.here("[stage_two] step 16")
progress.here("[stage_two] step 17")
time.sleep(0.3)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[1] == "stuck":
    def deadlock():
        time.sleep(100)
    deadlock()
elif sys.argv[1] == "failed":
    distributed.leave(1)
"""


@pytest.mark.parametrize(
    ("end", "stall", "status", "said"),
    [
        ("well", 20, 0, []),
        ("failed", 20, 1, ["process 3 of 4 failed at [stage_two] step 17; if it lost another"]),
        (
            "killed",
            20,
            -signal.SIGKILL,
            ["process 3 of 4 was ended at [stage_two] step 17", "start all processes again"],
        ),
        (
            "stuck",
            2,
            -signal.SIGKILL,
            [
                "process 3 of 4 has not got on for 2 s at [stage_two] step 17; its stacks:",
                "in deadlock",
                "process 3 of 4 was stuck and has been ended",
            ],
        ),
    ],
)
def test_the_witness_says_where_a_process_was(end, stall, status, said):
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, end, str(stall)], capture_output=True, text=True
    )
    assert done.returncode == status, done.stderr
    if not said:
        assert done.stderr == ""
    for words in said:
        assert words in done.stderr
