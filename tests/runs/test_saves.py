"""Saving and going on where something is wrong or different: the disk, the data, the devices."""

import json
import signal

import fork_helpers
import numpy as np
import pytest
import run_helpers
from checkpoint_helpers import flip_arrays
from clean_environment import xla_flags
from fork_helpers import Death

from promot_t5x import errors
from promot_t5x.checkpoints.steps import complete_steps

pytestmark = pytest.mark.slow

WRITTEN = Death("promot_t5x.checkpoints.saving:write_manifest", after=True)
TASKS = """\
import run_tasks

run_tasks.add("saved_signs", "sign", {answers})
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return run_helpers.Lab(tmp_path_factory.mktemp("saves"))


@pytest.fixture(scope="module")
def server():
    return fork_helpers.shared()


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Those of a whole model's training, as `kept_programs` has them: most runs here are of it."""
    return tmp_path_factory.mktemp("programs"), True


def training(lab, name, **macros):
    """(words, stage directory) of four steps of a whole model, saved after two and four."""
    directory = lab.directory / name
    return lab.words("train", "pretrain", "train", MODEL_DIR=directory, **macros), directory


def test_a_full_disk_ends_the_run_and_harms_no_checkpoint(lab, server, programs):
    words, directory = training(lab, "full")
    assert server.run(words, programs=programs, death=WRITTEN).status == -signal.SIGKILL
    before = run_helpers.tree(directory / "checkpoint_2")
    ended = server.run(words, programs=(programs[0], False), file_limit=40_000)
    assert ended.status == errors.EXIT_NOT_SAVED
    message = ended.said.splitlines()[-1]  # after what the libraries' own threads have to say
    assert message.startswith("promot-t5x: error: ")
    assert f"Saving step 4 in {directory} failed: " in message
    assert "File too large" in message
    assert "the same command goes on from the newest" in message
    assert complete_steps(directory) == [2]
    after = run_helpers.tree(directory / "checkpoint_2")
    assert {name: after[name] for name in before} == before
    ended = server.run(words, programs=programs)
    assert ended.status == 0
    assert "resumes after step 2" in ended.said
    assert 4 in complete_steps(directory)
    # Orbax's threads may write a while after the save has failed; the next launch cleans up.
    assert not list(directory.glob("*.orbax-checkpoint-tmp*"))
    assert not list(directory.glob("pending_*"))


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(lab, server, programs):
    words, directory = training(lab, "damaged", KEEP=None)
    death = Death("promot_t5x.checkpoints.stage_result:StageResult.write")
    assert server.run(words, programs=programs, death=death).status == -signal.SIGKILL
    straight = run_helpers.tree(directory)
    flip_arrays(directory / "checkpoint_4")
    ended = server.run(words, programs=programs)
    assert ended.status == 0
    start = "[train] warning: checkpoint_4 is damaged"
    (warning,) = [line for line in ended.said.splitlines() if line.startswith(start)]
    assert "target/" in warning
    assert "resumes after step 2" in ended.said
    again = run_helpers.tree(directory)
    for name in ("train/metrics.jsonl", "inference_eval/run_signs-000004.jsonl"):
        assert again[name] == straight[name]


def test_sigterm_before_there_is_anything_to_save_stops_at_once(lab, server):
    words, directory = training(lab, "early")
    ended = server.run(words, sign=directory / "config.gin", number=signal.SIGTERM)
    assert ended.status == errors.EXIT_START_AGAIN
    assert "stopped by SIGTERM; start it again to resume" in ended.said
    assert complete_steps(directory) == []


def test_ctrl_c_saves_and_the_same_command_resumes(lab, server, programs):
    words, directory = training(lab, "ctrl_c", TRAIN_STEPS=200, EVAL_PERIOD=200)
    sign = directory / "train" / "metrics.jsonl"
    ended = server.run(words, programs=programs, sign=sign, number=signal.SIGINT)
    assert ended.status == errors.EXIT_START_AGAIN, ended.said
    assert "stopped by Ctrl-C; step" in ended.said
    (step,) = complete_steps(directory)
    assert 0 < step < 200
    assert not (directory / "owner.json").exists()
    ended = server.run(words, programs=programs)
    assert ended.status == 0
    assert f"resumes after step {step}" in ended.said


def test_other_devices_go_on_with_the_same_batches_and_losses(lab, server):
    """From one to eight, among which the model is split, and back; losses agree to rounding."""
    layout = {1: {"NUM_PARTITIONS": 1}, 8: {"NUM_PARTITIONS": 2}}

    def run(directory, devices, **how):
        given = {"DROPOUT_RATE": 0.1, **layout[devices]}
        words, directory = training(lab, directory, **given)
        flags = {"XLA_FLAGS": xla_flags(devices)}
        return directory, server.run(words, environ=flags, **how)

    grown = []
    for first, then in ((1, 8), (8, 1)):
        _, ended = run(f"from_{first}", first, death=WRITTEN)
        assert ended.status == -signal.SIGKILL
        directory, ended = run(f"from_{first}", then)
        assert ended.status == 0, ended.said
        assert "resumes after step 2" in ended.said
        grown.append(directory)
    losses = [run_helpers.losses(directory) for directory in grown]
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=1e-5)
    rows = [run_helpers.json_lines(d / "train" / "metrics.jsonl") for d in grown]
    for name in ("real_tokens/encoder", "real_tokens/decoder"):
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    positions = [
        json.loads((d / "checkpoint_4" / "manifest.json").read_text())["metadata"]["position"]
        for d in grown
    ]
    assert positions[0] == positions[1]


def test_data_that_changed_are_refused(lab, server, programs):
    lab.write("saved_tasks.py", TASKS.format(answers=("even", "odd")))
    words, _directory = training(lab, "data", MIXTURE_OR_TASK_NAME="saved_signs")
    words += [f"--gin.MIXTURE_OR_TASK_MODULE={str(lab.directory / 'saved_tasks.py')!r}"]
    ended = server.run(words, programs=programs, death=WRITTEN)
    assert ended.status == -signal.SIGKILL, ended.said
    lab.write("saved_tasks.py", TASKS.format(answers=("odd", "even")))
    ended = server.run(words, programs=programs)
    assert ended.status == errors.EXIT_USER_ERROR, ended.said
    assert "The run that saved step 2 cannot go on as it was" in ended.said
    assert "its data changed: examples: was {'saved_signs/train'" in ended.said


def test_what_a_checkpoint_says_of_its_run(lab, server):
    words, directory = training(lab, "told", OPTIMIZER_STEP=1000, RANDOM_SEED=3)
    ended = server.run(words)
    assert ended.status == 0, ended.said
    assert "optimizer's state from scratch, counting from 1000" in ended.said
    manifest = json.loads((directory / "checkpoint_4" / "manifest.json").read_text())
    told = manifest["metadata"]
    assert told["origins"] == ["28 arrays, 12,528 parameters from scratch (seed 3)"]
    assert told["rng"]["random_seed"] == 3
    assert told["data"]["examples"]["run_signs/train"]["examples"] == 48
    assert told["position"]["next_batch"] == 4
    arrays = run_helpers.checkpoint_arrays(directory / "checkpoint_4")
    assert arrays["state/step"] == 4
    assert arrays["state/opt_state/count"] == 1004
    # The schedule of `runs/pretrain.gin` decays from step 10,000 on; the rate is the count's.
    rows = run_helpers.json_lines(directory / "train" / "metrics.jsonl")
    assert [row["learning_rate"] for row in rows] == [pytest.approx(0.01)] * 4
