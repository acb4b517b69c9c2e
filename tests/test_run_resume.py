"""`kill -9` in every part of a run: the same command, given again, ends where a straight run ends.

One run is left alone. The other one is killed in stage one, between the stages, in stage two and
in the comparison. All that training determines must agree byte for byte.
"""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest
import run_lab

STEPS, PERIOD = 24, 4
STAGES = ("stage_one", "stage_two")
SLOWEST_LAUNCH_SEC = 300.0
# What may differ: wall-clock times, and how orbax names and dates its files.
FREE = ("timing.jsonl", "events.out.tfevents", "/state/", "_CHECKPOINT_METADATA")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(straight, interrupted): two finished runs of one command."""
    directory = tmp_path_factory.mktemp("resume")
    lab = run_lab.Lab(directory)
    base, model_dir, straight = (directory / name for name in ("base", "run", "straight"))
    run_lab.succeed(lab.words("train", "pretrain", "train", MODEL_DIR=base, TRAIN_STEPS=1))
    lab.write("two_stages.gin", run_lab.TWO_STAGES)
    words = lab.words(
        "promot",
        "promot",
        "prompt",
        "two_stages.gin",
        MODEL_DIR=model_dir,
        INITIAL_CHECKPOINT_PATH=base / "checkpoint_1",
        DROPOUT_RATE=0.1,
        TRAIN_STEPS=STEPS,
        EVAL_PERIOD=PERIOD,
        PROMPT_STEPS=STEPS,
        PROMPT_EVAL_PERIOD=PERIOD,
    )
    done = run_lab.process(words)
    assert done.status == 0, done.err
    # A run's directory is part of its configuration, so both have the same one, in turn.
    model_dir.rename(straight)

    rng = random.Random(0)
    kill_when(words, model_dir / "stage_one" / some_records(rng), rng.uniform(0, 0.1))
    assert not (model_dir / "stage_one" / "stage.json").exists()
    out = kill_when(words, model_dir / "stage_one" / "stage.json")
    assert "[stage_one] continues after step" in out
    assert not (model_dir / "stage_two" / "stage.json").exists()
    kill_when(words, model_dir / "stage_two" / some_records(rng), rng.uniform(0, 0.1))
    assert not (model_dir / "stage_two" / "stage.json").exists()
    out = kill_when(words, model_dir / "comparison" / "prompt_tuning" / "row.json")
    assert "[stage_one] finished before" in out and "[stage_two] continues after step" in out
    assert not (model_dir / "report.md").exists()
    done = run_lab.process(words)
    assert done.status == 0, done.err
    assert "step compiled" not in done.out
    return straight, model_dir


def some_records(rng: random.Random) -> str:
    """A file that a stage writes between its first checkpoint and its last."""
    step = PERIOD * rng.randint(2, 4)
    return f"inference_eval/run_signs-{step:06}.jsonl"


def kill_when(words: list[str], sign: Path, delay_sec: float = 0.0) -> str:
    """Start the command and SIGKILL it when a file is there, or a moment later; what it said."""
    with subprocess.Popen(
        run_lab.command(words),
        env=run_lab.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        end = time.monotonic() + SLOWEST_LAUNCH_SEC
        while not sign.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(delay_sec)
        process.kill()
        output = process.communicate()[0]
    assert sign.exists(), output
    assert process.returncode == -9, output
    return output


def test_every_array_of_every_checkpoint(runs):
    """The parameters, the optimiser's slots and the step, in all checkpoints that were kept."""
    straight, interrupted = runs
    for stage in STAGES:
        kept = sorted(path.name for path in (straight / stage).glob("checkpoint_*"))
        assert f"checkpoint_{STEPS}" in kept
        assert sorted(path.name for path in (interrupted / stage).glob("checkpoint_*")) == kept
        for name in kept:
            wanted = run_lab.checkpoint_arrays(straight / stage / name)
            assert any(path.startswith("state/opt_state/") for path in wanted)
            run_lab.assert_same_arrays(
                run_lab.checkpoint_arrays(interrupted / stage / name), wanted
            )


def test_every_other_file(runs):
    """Metrics, records, the prompt, the report: the same files with the same bytes."""
    straight, interrupted = (determined(run_lab.tree(directory)) for directory in runs)
    assert straight.keys() == interrupted.keys()
    assert {"report.md", "stage_one/prompt.npz", "stage_two/train/metrics.jsonl"} <= straight.keys()
    for name, content in straight.items():
        assert interrupted[name] == content, name


def determined(tree: dict[str, bytes]) -> dict[str, bytes]:
    """What training alone determines; of a manifest, all but what it says of orbax's files."""
    found = {}
    for name, content in tree.items():
        if name.endswith("/manifest.json") and "/state/" not in name:
            manifest = json.loads(content)
            content = json.dumps([manifest["arrays"], manifest["metadata"]]).encode()
        if "/inference_eval/" in name and name.endswith(".json"):
            content = json.dumps({**json.loads(content), "timings": None}).encode()
        if not any(part in name for part in FREE):
            found[name] = content
    return found


def test_metrics_have_one_line_a_step(runs):
    for directory in runs:
        for stage in STAGES:
            rows = run_lab.json_lines(directory / stage / "train" / "metrics.jsonl")
            assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
            assert len({row["loss"] for row in rows}) == STEPS
