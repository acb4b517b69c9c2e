"""Cloud TPU slices through a gcloud that records its calls, runs real shells, and fails on cue."""

import json
import shutil
import subprocess
import sys

import pytest
from launch_helpers import Cloud, launch

pytestmark = pytest.mark.slow

SECRET = "hf_abcdefghijklmnop"
# All that a shell might take for its own.
AWKWARD = [
    "--gin_file=demo/promot.gin",
    '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 8}',
    "--gin.MODEL_DIR='gs://a b/`id` $(id) $ \\\\ ! * ~ # ; & | < > \"'",
    "--gin_bindings=PROMPT_LENGTH = (\n    20)  # zwei Zeilen – ünïcode",
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
        required = "--require_devices=platform=tpu,kind=TPU v4,count=8"
        assert note["words"] == ["promot", required, *AWKWARD]
        assert note["token"] == SECRET
    # … and nowhere else: in no command, not in what is printed, not even where the run prints it.
    assert SECRET not in json.dumps(cloud.calls()) + done.out + done.err
    assert "line 2 of worker 0 ***" in done.out
    assert "worker 1" not in done.out
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
    assert cloud.verbs() == ["create", "scp", "install", "start", "follow", "report", "delete"]


def test_a_failed_run_starts_again_on_the_same_slice(cloud):
    cloud.cue(states=["", "", "ACTIVE"], worker_0=[1, 75, 0])
    done = tpu(cloud, "--keep")
    assert done.status == 0
    assert cloud.verbs().count("create") == cloud.verbs().count("install") == 1
    assert cloud.verbs().count("start") == 3
    assert "delete" not in cloud.verbs()
    assert "exit status 1; restart 1 of 20 in 0.01 s" in done.out
    assert "it stopped, to be started again; restart 2 of 20 in 0.02 s" in done.out
    assert "the resource is kept" in done.out
    assert "queued-resources delete rte" in done.out


def test_a_preempted_slice_is_replaced(cloud):
    cloud.cue(states=["", "", "ACTIVE", "SUSPENDED", "", "ACTIVE"], follow=[2, 0])
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == [
        "create", "scp", "install", "start", "follow", "delete",
        "create", "scp", "install", "start", "follow", "delete",
    ]  # fmt: skip
    assert "the slice was preempted; restart 1 of 20" in done.out


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
    assert cloud.verbs().count("start") == 2
    assert cloud.verbs().count("create") == 1
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
    assert cloud.verbs() == ["report", "follow", "delete"]
    assert "what was said\nbefore\n" in done.out


def test_a_slice_that_runs_another_command_is_left_alone(cloud):
    cloud.cue(states=["", "", "ACTIVE"])
    assert tpu(cloud, "--keep").status == 0
    home = cloud.directory / "home" / "rte" / "0" / "promot-t5x-rte"
    sleeper = subprocess.Popen(["sleep", "60"], start_new_session=True)
    (home / "pid").write_text(str(sleeper.pid))
    (cloud.directory / "calls").unlink()
    done = tpu(cloud, run=[*RUN, "--gin.BATCH_SIZE=4"])
    sleeper.kill()
    sleeper.wait()
    assert done.status == 2
    assert "rte is running another command" in done.err
    assert cloud.verbs() == ["report"]


def shown_lines(done):
    return [line.split(" of")[0] for line in done.out.splitlines() if line.startswith("line ")]


def test_a_passing_error_deletes_and_restarts_nothing(cloud):
    cloud.cue(states=["", "", "ACTIVE", "error: try again", "error: 503", "ACTIVE"], follow=[2, 0])
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == ["create", "scp", "install", "start", "follow", "follow", "delete"]
    assert shown_lines(done) == ["line 0", "line 1", "line 2"]
    assert "gcloud gave no answer; attempt 2 of 20 in 0.02 s" in done.out


def test_a_failure_of_gcloud_is_not_one_of_the_run(cloud):
    # gcloud ends with 1 where it fails itself, as a run may; the worker knows.
    cloud.cue(states=["", "", "ACTIVE"], follow=[[2, 1]], report=[255, 0])
    done = tpu(cloud)
    assert done.status == 0
    verbs = ["create", "scp", "install", "start", "follow", "report", "report", "delete"]
    assert cloud.verbs() == verbs


@pytest.mark.parametrize(
    ("states", "report"), [(["", "", "ACTIVE", "error: 503"], [0]), (["", "", "ACTIVE"], [255])]
)
def test_a_cloud_that_never_answers_keeps_the_slice(cloud, states, report):
    cloud.cue(states=states, follow=[[2, 1]], report=report)
    done = tpu(cloud, "--max_restarts=2")
    assert done.status == 1
    assert "delete" not in cloud.verbs()
    assert cloud.verbs().count("start") == 1
    assert "costs until it is deleted" in done.out
    assert "queued-resources delete rte" in done.out
    assert "promot-t5x: error: " in done.err
    assert "Traceback" not in done.err


def test_a_failed_delete_is_repeated_and_then_an_error(cloud):
    cloud.cue(states=["", "", "ACTIVE"], delete=["INTERNAL: later", 0])
    assert tpu(cloud).status == 0
    assert cloud.verbs().count("delete") == 2
    cloud.cue(states=["", "", "ACTIVE"], delete=["INTERNAL: later"])
    done = tpu(cloud, "--max_restarts=2")
    assert done.status == 1
    assert cloud.verbs().count("delete") == 2 + 3
    assert "could not be deleted and still costs money: INTERNAL: later. Run: gcloud" in done.err


@pytest.mark.parametrize(
    "message",
    [
        "INVALID_ARGUMENT: Cloud TPU received an invalid argument.",
        "PERMISSION_DENIED: The caller does not have permission",
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV4' has been exceeded. Limit: 0 in region r.",
        "ERROR: (gcloud.compute) argument --zone: expected one argument",
    ],
)
def test_what_can_never_succeed_is_asked_for_once(cloud, message):
    cloud.cue(states=[""], create=[message])
    done = tpu(cloud)
    assert done.status == 2
    assert cloud.verbs() == ["create"]
    assert f"Cloud TPU refuses this slice: {message}" in done.err


def test_a_quota_may_still_count_the_slice_that_is_replaced(cloud):
    states = ["", "", "ACTIVE", "SUSPENDED", "", "", "ACTIVE"]
    cloud.cue(states=states, follow=[2, 0], create=[0, "Quota limit exceeded", 0])
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs().count("create") == 3
    assert "the slice could not be set up; restart 2 of 20" in done.out


def test_an_installation_that_fails_does_not_delete_the_slice(cloud):
    cloud.cue(states=["", "", "ACTIVE"])
    python = cloud.directory / "python"
    python.write_text(
        '#!/bin/bash\n[ -f "$LAUNCH_LAB/tried" ] || { touch "$LAUNCH_LAB/tried"; exit 1; }\n'
    )
    done = tpu(cloud)
    assert done.status == 0
    assert cloud.verbs() == [
        "create", "scp", "install", "scp", "install", "start", "follow", "delete"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "passed", "version", "required"),
    [
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite", "kind=TPU v5 lite|TPU v5e,count=16"),
        ("v5litepod-8", "v5litepod-8", "v2-alpha-tpuv5-lite", "kind=TPU v5 lite|TPU v5e,count=8"),
        ("v5p-16", "v5p-16", "v2-alpha-tpuv5", "kind=TPU v5|TPU v5p,count=8"),
        ("v6e-64", "v6e-64", "v2-alpha-tpuv6e", "kind=TPU v6 lite|TPU v6e,count=64"),
        ("v3-32", "v3-32", "tpu-ubuntu2204-base", "kind=TPU v3,count=32"),
    ],
)
def test_every_generation_has_its_image_and_its_devices(cloud, asked, passed, version, required):
    done = tpu(cloud, f"--accelerator_type={asked}", "--print")
    assert f"--accelerator-type={passed} --runtime-version={version}" in done.out
    assert f"--require_devices=platform=tpu,{required}" in done.out
    assert "--runtime-version=mine" in tpu(cloud, "--print", "--runtime_version=mine").out


# ------------------------------------------------------------------- what a command needs

MODULE = """\
from promot_t5x.tasks import jsonl, register, text_task
import mine.words
register(text_task(name="TASK", source=jsonl("data/rows.jsonl"), inputs="{a}", target="{b}"))
"""
LOCAL = ["--", "promot", "--gin_file=runs/mine.gin", "--gin.MODEL_DIR='gs://b/run'"]


@pytest.fixture
def files(cloud, tmp_path, monkeypatch):
    """A working directory with gin files, a task module that imports another, and data."""
    directory = tmp_path / "work"
    module = f"tasks_{tmp_path.name}"
    texts = {
        "runs/mine.gin": "include 'demo/promot.gin'\ninclude 'runs/more.gin'\n",
        "runs/more.gin": f"MIXTURE_OR_TASK_MODULE = '{module}.py'\n",
        f"{module}.py": MODULE.replace("TASK", module),
        "mine/words.py": "",
        "data/rows.jsonl": '{"a": "x", "b": "y"}\n',
        "unused.txt": "",
    }
    for name, text in texts.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    yield directory
    for name in ("mine", "mine.words", module):
        sys.modules.pop(name, None)


def test_local_files_travel_under_their_names(cloud, files):
    cloud.cue(states=["", "", "ACTIVE"])
    done = tpu(cloud, run=LOCAL)
    assert done.status == 0, done
    (module,) = files.glob("tasks_*.py")
    wanted = {"runs/mine.gin", "runs/more.gin", module.name, "mine/words.py", "data/rows.jsonl"}
    for note in cloud.ran():
        assert set(note["files"]) == wanted
        assert note["words"][2:] == LOCAL[2:]


def refused(cloud, *words, run="promot"):
    done = tpu(cloud, run=["--", run, "--gin_file=demo/promot.gin", *words])
    assert done.status == 2, done
    assert cloud.calls() == []
    return done.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "MODEL_DIR = 'runs/demo' is a directory of one machine"),
        (["--gin.MODEL_DIR='/data/run'"], "MODEL_DIR = '/data/run' is a directory of one machine"),
        (["--gin.MODEL_DIR=''"], "MODEL_DIR = '' is empty"),
        ([*LOCAL[3:], "--gin.TRAIN_STEP=4"], "TRAIN_STEP"),
        ([*LOCAL[3:], "--gin_file=no_such.gin"], "no gin file 'no_such.gin'"),
        ([*LOCAL[3:], "--no_such_flag"], "does not take '--no_such_flag'"),
        ([*LOCAL[3:], "--dry_run"], "--dry_run after `--` would start machines"),
        ([*LOCAL[3:], "--gin.INITIAL_CHECKPOINT_PATH='./runs'"], "directories do not travel"),
        (
            [*LOCAL[3:], "--gin.INITIAL_CHECKPOINT_PATH='/no/such'"],
            "'/no/such' does not exist here",
        ),
        ([*LOCAL[3:], "--tfds_data_dir=/no/such"], "--tfds_data_dir = '/no/such' does not exist"),
        ([*LOCAL[3:], "--gin.MIXTURE_OR_TASK_MODULE='no_such.py'"], "no file"),
    ],
)
def test_what_cannot_travel_or_run_is_refused_at_once(cloud, files, words, complaint):
    assert complaint in refused(cloud, *words)


def test_files_outside_the_working_directory_are_refused(cloud, files, tmp_path):
    outside = tmp_path / "outside.gin"
    outside.write_text("TRAIN_STEPS = 4\n")
    for name in (str(outside), "../outside.gin"):
        said = refused(cloud, *LOCAL[3:], f"--gin_file={name}")
        assert "outside.gin cannot travel to other machines" in said


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
    assert done.status == 0
    assert cloud.calls() == []
    assert cloud.ran() == []
    assert SECRET not in done.out
    assert "HF_TOKEN=***" in done.out
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
        (("--accelerator_type=v9-8",), RUN, "there is no such slice"),
        (("--accelerator_type=v4-15",), RUN, "counts TensorCores"),
    ],
)
def test_bad_input_starts_nothing(cloud, words, run, complaint):
    done = tpu(cloud, *words, run=run)
    assert done.status == 2
    assert complaint in done.err
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
    assert done.status == 2
    assert "'gcloud' is not installed here" in done.err
