"""`promot-t5x status`: where a run is, beside real processes that train, end and are killed."""

import dataclasses
import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fork_helpers
import gcs_server
import owner_helpers
import pytest
import run_helpers

from promot_t5x.runs import ownership

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return run_helpers.Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def finished(lab):
    """A whole run of two stages with each of two seeds: its configuration, and a stage's files.

    One stage is trained; what a run of this configuration would leave is made of copies of it.
    """
    stage, run = lab.directory / "stage", lab.directory / "run"
    run_helpers.succeed(lab.words("train", "pretrain", "train", MODEL_DIR=stage))
    two = lab.write("two.gin", run_helpers.TWO_STAGES)
    words = lab.words("promot", "promot", "prompt", str(two), MODEL_DIR=run, SUITE=None,
                      INITIAL_CHECKPOINT_PATH=None, SEEDS=[3, 4])  # fmt: skip
    for name in ("seed_3/stage_one", "seed_3/stage_two", "seed_4/stage_one", "seed_4/stage_two"):
        shutil.copytree(stage, run / name)
    (run / "config.gin").write_text(run_helpers.succeed([*words, "--dry_run"]))
    (run / "report.md").write_text("")
    return run


def status(directory):
    """What the command prints, by the first column."""
    lines = run_helpers.succeed(["status", str(directory)]).splitlines()
    return dict(re.split(r"  +", line, maxsplit=1) for line in lines)


def test_a_finished_run(finished):
    shown = status(finished)
    assert shown["owner"] == "none: no process is at it"
    stages = [f"seed_{seed}/{stage}" for seed in (3, 4) for stage in ("stage_one", "stage_two")]
    assert list(shown) == ["run", "owner", *stages, "comparison", "last save"]
    for stage in stages:
        chosen = json.loads((finished / stage / "stage.json").read_text())["step"]
        assert shown[stage].startswith(f"done, 4 steps; chose step {chosen}, score ")
    assert shown["comparison"] == "done: report.md"
    written = (finished / "seed_4/stage_two/checkpoint_4/manifest.json").stat().st_mtime
    when = datetime.datetime.fromtimestamp(written, datetime.UTC)
    assert shown["last save"] == f"seed_4/stage_two, step 4, {when:%Y-%m-%d %H:%M:%S} UTC"


def test_a_run_that_was_stopped_in_its_first_seed(finished, tmp_path):
    """The pace of the newest stage that has begun holds for those that have not."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for name in ("seed_3/stage_two", "seed_4"):
        shutil.rmtree(run / name)
    (run / "report.md").unlink()
    timing = {"step": 4, "steps_per_second": 0.5}
    (run / "seed_3/stage_one/train/timing.jsonl").write_text(json.dumps(timing) + '\n{"step": 5')
    shown = status(run)
    assert shown["seed_3/stage_one"].startswith("done, 4 steps")
    for stage in ("seed_3/stage_two", "seed_4/stage_one", "seed_4/stage_two"):
        assert shown[stage] == "not begun, 4 steps"
    assert shown["comparison"] == "not done"
    assert shown["last save"].startswith("seed_3/stage_one, step 4, ")
    assert shown["time left"] == "24s: 12 training steps, without evaluations"


def until(shows, seconds=120):
    """Wait until something is true; returns it."""
    end = time.monotonic() + seconds
    while not (value := shows()):
        assert time.monotonic() < end
        time.sleep(0.2)
    return value


def test_a_run_that_goes_on_and_is_killed(lab):
    run = lab.directory / "long"
    words = lab.words("train", "pretrain", "train", MODEL_DIR=run, TRAIN_STEPS=1_000_000,
                      EVAL_PERIOD=20)  # fmt: skip
    process = fork_helpers.shared().start(words)
    try:
        until(lambda: (run / "checkpoint_20" / "manifest.json").exists())
        until(lambda: json.loads((run / "owner.json").read_text())["where"])
        shown = status(run)
        assert re.fullmatch(rf"process {process.pid} on .*, started .*; alive", shown["owner"])
        assert re.fullmatch(r"\[\w+\] .*, at heartbeat \d+", shown["now"])
        step = re.fullmatch(r"step (\d+) of 1000000, [\d.]+ steps/s", shown["."])
        assert int(step[1]) >= 20
        assert re.match(r"\., step \d+, ", shown["last save"])
        left = re.fullmatch(
            r"[\dhms]+: (\d+) training steps, without evaluations", shown["time left"]
        )
        assert int(left[1]) == 1_000_000 - int(step[1])
        before = (run / "owner.json").read_bytes()
        assert json.loads(before)["process"] == process.pid  # reading has not become the owner
    finally:
        process.kill()
        process.wait()
    shown = status(run)
    assert shown["owner"].endswith("; dead or suspended: the same command resumes the run")
    assert "now" not in shown


@pytest.fixture
def elsewhere(finished, tmp_path, monkeypatch):
    """A run whose owner, on another host, gives signs of life while the list says so."""
    for name in ("HEARTBEAT_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(ownership, name, getattr(owner_helpers, name.lstrip("_")))
    monkeypatch.setattr(ownership, "_ENDING_SECONDS", 0.2)
    shutil.copytree(finished, tmp_path / "run")
    owner = dataclasses.replace(ownership.Owner.of_this_process(), machine="elsewhere")
    return tmp_path / "run", owner


@pytest.mark.parametrize("lives", [True, False])
def test_a_host_that_cannot_be_asked_is_watched(elsewhere, lives):
    run, owner = elsewhere
    program = (
        "import json, os, sys, time\n"
        "path, owner, lives = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == 'True'\n"
        "while True:\n"
        "    owner['heartbeat'] += lives\n"
        "    open(path + '.part', 'w').write(json.dumps(owner))\n"
        "    os.replace(path + '.part', path)\n"
        "    time.sleep(0.05)\n"
    )
    words = [program, str(run / "owner.json"), json.dumps(dataclasses.asdict(owner)), str(lives)]
    process = subprocess.Popen([sys.executable, "-c", *words])
    try:
        until((run / "owner.json").exists)
        shown = status(run)
    finally:
        process.kill()
        process.wait()
    assert shown["owner"].endswith("; alive" if lives else "the same command resumes the run")


BUCKET = """
import sys
import gcs_helpers
from promot_t5x.cli.main import main
gcs_helpers.use_folder(sys.argv[1])
sys.exit(main(["status", sys.argv[2]]))
"""


def test_a_run_in_a_bucket(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "mine" / "run")
    with gcs_server.serve(tmp_path) as (url, _):
        environment = {**run_helpers.environment(), "TENSORSTORE_GCS_HTTP_URL": url}
        environment["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
        environment["PYTHONPATH"] = str(Path(owner_helpers.__file__).parent)
        done = subprocess.run(
            [sys.executable, "-c", BUCKET, str(tmp_path), "gs://mine/run"],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    local = run_helpers.succeed(["status", str(finished)])
    assert done.stdout.splitlines()[1:-1] == local.splitlines()[1:-1]  # the copy has its own times


@pytest.mark.parametrize("made", [True, False])
def test_a_directory_without_a_run_is_refused(made, tmp_path):
    if made:
        (tmp_path / "no_run").mkdir()
    done = run_helpers.here(["status", str(tmp_path / "no_run")])
    assert done.status == 2
    assert "no_run holds no run: there is no config.gin. Name a MODEL_DIR" in done.err
