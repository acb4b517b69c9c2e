"""Cloud TPU slices through a gcloud that records its calls, runs real shells, and fails on cue."""

import json
import shutil
import subprocess

import pytest
from launch_helpers import Cloud, launch

SECRET = "hf_abcdefghijklmnop"
# All that a shell might take for its own.
AWKWARD = [
    "--gin.MODEL_DIR='gs://a b/c'",
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 512}',
    "--gin.NOTE='$HOME `id` $(id) \\ ! * ~ # ; & | < > \"'",
    "--gin.MORE='zwei\nZeilen – ünïcode'",
    "",
]
RUN = ["--", "promot", *AWKWARD]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    wheel = tmp_path / "promot_t5x-0.1.0-py3-none-any.whl"
    wheel.write_text("a wheel")
    return Cloud(tmp_path, monkeypatch)


def tpu(cloud, *words, name="rte", run=RUN):
    wheel = cloud.directory / "promot_t5x-0.1.0-py3-none-any.whl"
    where = [f"--name={name}", "--zone=us-central2-b", "--accelerator_type=v4-16"]
    pace = ["--poll=0.01", "--backoff=0.01", f"--wheel={wheel}"]
    return launch("tpu", *where, *pace, *words, *run)


def test_from_nothing_to_a_finished_run(cloud):
    cloud.cue(states=["", "", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"])
    done = tpu(cloud, "--spot", "--project=p", "--env=HF_TOKEN")
    assert done.status == 0, done
    assert cloud.verbs() == ["create", "scp", "install", "start", "follow", "delete"]
    create = next(words for words in cloud.calls() if words[4] == "create")
    assert create[:7] == ["gcloud", "compute", "tpus", "queued-resources", "create", "rte",
                          "--zone=us-central2-b"]  # fmt: skip
    assert set(create[7:]) == {
        "--project=p", "--node-id=rte", "--accelerator-type=v4-16", "--spot",
        "--runtime-version=tpu-ubuntu2204-base",
    }  # fmt: skip
    # Both workers run exactly what was given, with the secret in their environment …
    assert sorted(note["worker"] for note in cloud.ran()) == ["0", "1"]
    for note in cloud.ran():
        assert note["words"] == ["promot", *AWKWARD]
        assert note["token"] == SECRET
    # … and nowhere else: in no command, not in what is printed, not even where the run prints it.
    assert SECRET not in json.dumps(cloud.calls()) + done.out + done.err
    assert "line 2 of worker 0 ***" in done.out and "worker 1" not in done.out
    assert "# rte is WAITING_FOR_RESOURCES" in done.out
    home = cloud.directory / "home" / "rte" / "1" / "promot-t5x-rte"
    assert (home / "environment").stat().st_mode & 0o077 == 0
    assert (home / "constraints.txt").exists()
    assert list(home.glob("*.whl"))


def test_a_mistake_of_the_users_is_not_repeated(cloud):
    cloud.cue(states=["", "", "ACTIVE"], worker_0=[134], worker_1=[2])
    done = tpu(cloud)
    # Worker 0 was taken down by the one that found the mistake.
    assert done.status == 2
    assert cloud.verbs() == ["create", "scp", "install", "start", "follow", "ssh", "delete"]


def test_a_failed_run_starts_again_on_the_same_slice(cloud):
    cloud.cue(states=["", "", "ACTIVE"], worker_0=[1, 75, 0])
    done = tpu(cloud, "--keep")
    assert done.status == 0
    assert cloud.verbs().count("create") == cloud.verbs().count("install") == 1
    assert cloud.verbs().count("start") == 3 and "delete" not in cloud.verbs()
    assert "exit status 1; restart 1 of 20 in 0.01 s" in done.out
    assert "it was told to stop and has saved; restart 2 of 20 in 0.02 s" in done.out
    assert "the resource is kept" in done.out and "queued-resources delete rte" in done.out


def test_a_preempted_slice_is_replaced(cloud):
    cloud.cue(states=["", "", "ACTIVE", "SUSPENDED", "", "ACTIVE"], follow=[2, 0])
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == [
        "create", "scp", "install", "start", "follow", "delete",
        "create", "scp", "install", "start", "follow", "delete",
    ]  # fmt: skip
    assert "the slice was preempted or cannot be reached; restart 1 of 20" in done.out


def test_a_lost_connection_is_taken_up_where_it_was(cloud):
    cloud.cue(states=["", "", "ACTIVE"], follow=[2, 0])
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == ["create", "scp", "install", "start", "follow", "follow", "delete"]
    lines = [line for line in done.out.splitlines() if line.startswith("line ")]
    assert [line.split(" of")[0] for line in lines] == ["line 0", "line 1", "line 2"]


def test_a_stuck_run_is_started_again(cloud):
    cloud.cue(states=["", "", "ACTIVE"], worker_0=["stuck", 0], worker_1=["stuck", 0])
    done = tpu(cloud, "--stall_timeout=3")
    assert done.status == 0
    assert "the run is stuck; restart 1 of 20" in done.out
    assert cloud.verbs().count("start") == 2 and cloud.verbs().count("create") == 1
    assert cloud.ran()[0]["words"][-1] == "--stall_timeout=3"


def test_a_launcher_that_was_stopped_finds_its_run(cloud):
    cloud.cue(states=["", "", "ACTIVE"])
    assert tpu(cloud, "--keep").status == 0
    home = cloud.directory / "home" / "rte" / "0" / "promot-t5x-rte"
    (home / "log").write_text("what was said\nbefore\n")
    # A process group that is alive, as the run's would be, until somebody follows it.
    alive = 'until grep -q follow.sh "$LAUNCH_LAB/calls"; do sleep 0.1; done 2> /dev/null'
    (home / "start.sh").write_text(f"setsid bash -c '{alive}' & echo $! > pid; echo 0 > status")
    launched = cloud.directory / "calls"
    launched.unlink()
    subprocess.run(["bash", "start.sh"], cwd=home, check=True)
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == ["ssh", "follow", "delete"]
    assert "what was said\nbefore\n" in done.out


def test_several_slices(cloud):
    cloud.cue(states=["", "", "ACTIVE"])
    assert tpu(cloud, "--node_count=2").status == 0
    create = next(words for words in cloud.calls() if words[4] == "create")
    assert {"--node-count=2", "--node-prefix=rte"} <= set(create)
    assert not any(word.startswith("--node-id") for word in create)
    started = [words for words in cloud.calls() if "start.sh" in words[-1]]
    assert [words[5] for words in started] == ["rte-0", "rte-1"]
    assert len(cloud.ran()) == 4


def test_what_cannot_be_made_is_given_up(cloud):
    cloud.cue(states=[""], create=[1])
    done = tpu(cloud, "--max_restarts=2")
    assert done.status == 1
    assert cloud.verbs().count("create") == 3
    assert "the slice could not be set up; given up after 2 restarts" in done.out


def test_print_runs_nothing_and_shows_all(cloud):
    done = tpu(cloud, "--print", "--env=HF_TOKEN")
    assert done.status == 0 and cloud.calls() == [] and cloud.ran() == []
    assert SECRET not in done.out and "HF_TOKEN=***" in done.out
    for part in ("queued-resources create rte", "scp --recurse", "install.sh", "follow.sh 1",
                 "queued-resources delete rte", "setsid nohup bash run.sh"):  # fmt: skip
        assert part in done.out


@pytest.mark.parametrize(
    ("words", "run", "complaint"),
    [
        ((), ["--", "fly"], "there is 'fly'"),
        ((), [], "there is nothing"),
        (("--node_count=0",), RUN, "--node_count=0: give at least 1"),
        (("--env=NO_SUCH_VARIABLE",), RUN, "NO_SUCH_VARIABLE is not set here"),
        (("--env=1X=2",), RUN, "give NAME or NAME=VALUE"),
        (("--wheel=/no/such.whl",), RUN, "is no wheel of promot_t5x"),
        (("--zon=a",), RUN, "--zon"),
    ],
)
def test_bad_input_starts_nothing(cloud, words, run, complaint):
    done = tpu(cloud, *words, run=run)
    assert done.status == 2 and complaint in done.err
    assert not any(words[4] in ("create", "ssh") for words in cloud.calls())


@pytest.mark.parametrize("name", ["Rte", "a_b", "-a", "x" * 41])
def test_names_that_clouds_refuse(cloud, name):
    assert "lower-case letters" in tpu(cloud, name=name).err


def test_a_program_that_is_not_there_is_named(cloud, monkeypatch):
    programs = cloud.directory / "bin"
    (programs / "gcloud").unlink()
    (programs / "cp").symlink_to(shutil.which("cp"))
    monkeypatch.setenv("PATH", str(programs))
    done = tpu(cloud)
    assert done.status == 2 and "'gcloud' is not installed here" in done.err
