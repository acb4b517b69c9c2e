"""`promot-t5x ckpt`: lists, shows, compares and verifies checkpoints of ours and of others."""

import shutil
from pathlib import Path

import checkpoint_helpers as saved
import numpy as np
import pytest
import run_helpers

import promot_t5x
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.saving import Checkpoints

TINY_WORLD = Path(promot_t5x.__file__).parent / "tasks" / "tiny" / "base"


@pytest.fixture
def stage(tmp_path):
    """A stage with two checkpoints: step 1 scored and pinned, step 2 saved on SIGTERM."""
    directory = tmp_path / "stage"
    metadata = {"origins": ["2 arrays from the base /b"], "metrics": {"score": 50.0}}
    with Checkpoints(directory, keep=None) as saver:
        for step, temporary in ((1, False), (2, True)):
            trainable, opt_state = saved.make_state(step)
            trainable["token_embedder"] = {"embedding": trainable["decoder"]["kernel"]}
            saver.save(
                step,
                trainable=trainable,
                opt_state=opt_state,
                metadata=metadata,
                temporary=temporary,
            )
    (directory / "checkpoint_1" / "PINNED").touch()
    return directory


def test_a_stage_is_listed(stage):
    (stage / "checkpoint_3").mkdir()
    (stage / "pending_3").mkdir()
    first, second, third = run_helpers.succeed(["ckpt", "show", str(stage)]).splitlines()[1:]
    assert first.split()[0] == "checkpoint_1"
    assert "score 50  pinned" in first
    assert "saved on SIGTERM" in second
    assert "pinned" not in second
    assert third.split() == ["checkpoint_3", "unfinished"]
    assert f"{stage}:" in run_helpers.succeed(["ckpt", "show", str(stage.parent)])


def test_a_checkpoint_is_shown(stage):
    words = ["ckpt", "show", str(stage / "checkpoint_1")]
    out = run_helpers.succeed(words)
    assert "step 1 of a stage" in out
    assert "began with 2 arrays from the base /b" in out
    assert "parameters: 3 arrays, 264 numbers, 1.0 kB" in out
    assert [line.split() for line in out.splitlines() if "kernel" in line] == [
        ["decoder/kernel", "float32", "[16,", "8]", "512", "B"]
    ]
    assert "state/opt_state/v/kernel" not in out
    assert "state/opt_state/v/kernel" in run_helpers.succeed([*words, "--all"])


def test_differences_are_named_and_measured(stage, tmp_path):
    words = ["ckpt", "diff", str(stage / "checkpoint_1")]
    same = run_helpers.here([*words, str(stage / "checkpoint_1"), "--all"])
    assert (same.status, same.out.splitlines()[-1]) == (
        0,
        "8 arrays equal, 0 differ, 0 only in the first, 0 only in the second",
    )
    found = run_helpers.here([*words, str(stage)])  # the newest
    assert found.status == 1
    a, b = (np.asarray(saved.make_state(s)[0]["decoder"]["kernel"]) for s in (1, 2))
    line = next(line for line in found.out.splitlines() if line.startswith("! decoder/kernel"))
    assert f"100.0% of 128 numbers, by at most {np.abs(a - b).max():.3e}" in line

    other = {
        "decoder": {"kernel": a[:4]},
        "token_embedder": {"embedding": a.astype(np.float16)},
        "more": np.ones(2, np.float32),
    }
    run_helpers.write_t5x_base(tmp_path / "checkpoint_7", other)
    out = run_helpers.here([*words, str(tmp_path / "checkpoint_7")]).out
    assert "! decoder/kernel: float32[16, 8] -> float32[4, 8]" in out
    assert f"! {EMBEDDING}: float32[16, 8] -> float16[16, 8], " in out
    assert "+ more: only there" in out
    assert "- encoder/scale: only there" in out


def test_verifying_says_which_arrays_are_damaged(stage):
    sound = run_helpers.here(["ckpt", "verify", str(stage)])
    assert sound.status == 0
    assert sound.out.count("sound, 8 arrays with their checksums") == 2
    saved.flip_arrays(stage / "checkpoint_2")
    found = run_helpers.here(["ckpt", "verify", str(stage)])
    assert found.status == 1
    assert f"{stage / 'checkpoint_1'}: sound" in found.out
    assert f"{stage / 'checkpoint_2'}: DAMAGED" in found.out
    assert f"{stage / 'checkpoint_2'}: target/decoder/kernel " in found.out
    saved.cut(stage / "checkpoint_1" / "manifest.json")
    assert "manifest.json is damaged" in run_helpers.here(["ckpt", "verify", str(stage)]).out


def test_a_base_is_verified_as_far_as_it_can_be(tmp_path):
    params = {"token_embedder": {"embedding": np.ones((4, 2), np.float32)}}
    directory = tmp_path / "checkpoint_7"
    run_helpers.write_t5x_base(directory, params)
    out = run_helpers.succeed(["ckpt", "verify", str(directory)])
    assert "sound, 1 arrays readable and finite, 32 B (no checksums there)" in out
    assert "of the format t5x-legacy" in run_helpers.succeed(["ckpt", "show", str(directory)])
    params["token_embedder"]["embedding"][0, 1] = np.nan
    run_helpers.write_t5x_base(directory, params)
    done = run_helpers.here(["ckpt", "verify", str(directory)])
    assert done.status == 1
    assert f"{EMBEDDING} has 1 numbers that are not finite" in done.out


def test_a_run_with_seeds(tmp_path, stage):
    """MODEL_DIR/seed_<n>/<stage>/checkpoint_<step>, beside what else a run leaves."""
    run = tmp_path / "run"
    for seed in (0, 1):
        shutil.copytree(stage, run / f"seed_{seed}" / "stage_one")
        (run / f"seed_{seed}" / "stage_one" / "train").mkdir()
    (run / "inference_eval").mkdir()
    (run / "config.gin").write_text("")
    out = run_helpers.succeed(["ckpt", "show", str(run)])
    assert [line for line in out.splitlines() if line.endswith(":")] == [
        f"{run}/seed_{seed}/stage_one:" for seed in (0, 1)
    ]
    assert out.count("score 50  pinned") == 2
    out = run_helpers.succeed(["ckpt", "verify", str(run)])
    assert out.count("sound, 8 arrays with their checksums") == 4
    assert "DAMAGED" not in out
    done = run_helpers.here(["ckpt", "diff", str(run), str(run)])
    assert done.status == 2
    assert f"holds the checkpoints of several stages: {run}/seed_0/stage_one, " in done.err
    # One stage in a run with one seed is meant by the run's directory.
    words = ["ckpt", "diff", str(run / "seed_0"), str(run / "seed_1" / "stage_one")]
    assert "3 arrays equal, 0 differ" in run_helpers.succeed(words)


def test_a_name_is_shown_where_it_lies():
    for action in ("show", "verify"):
        out = run_helpers.succeed(["ckpt", action, "tiny_world"])
        assert out.startswith(f"{TINY_WORLD}: ")
    assert "arrays readable and finite" in out
    assert run_helpers.here(["ckpt", "diff", "tiny_world", str(TINY_WORLD)]).status == 0


def test_unfinished_steps_do_not_count_and_are_not_damaged(stage):
    (stage / "checkpoint_3").mkdir()
    (stage / "pending_3").mkdir()
    out = run_helpers.succeed(["ckpt", "verify", str(stage)])
    assert f"{stage}/checkpoint_3: unfinished, does not count" in out
    assert out.count("sound") == 2
    (stage / "pending_3").rmdir()
    done = run_helpers.here(["ckpt", "verify", str(stage)])
    assert done.status == 1
    assert "checkpoint_3: not a checkpoint." in done.out
    assert done.out.count("sound") == 2
    assert "checkpoint_3  not a checkpoint" in run_helpers.succeed(["ckpt", "show", str(stage)])
    (stage / "checkpoint_3").rmdir()
    (stage / "checkpoint_2" / "manifest.json").unlink()
    done = run_helpers.here(["ckpt", "verify", str(stage)])
    assert done.status == 1
    assert "checkpoint_2: DAMAGED" in done.out
    assert "its manifest.json is missing" in done.out
    assert "its manifest.json is missing" in run_helpers.succeed(["ckpt", "show", str(stage)])


def test_numbers_that_are_not_finite_are_no_sound_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("promot_t5x.checkpoints.saving.non_finite_state", lambda leaves: [])
    trainable, opt_state = saved.make_state(1)
    opt_state.v["kernel"] = np.full((16, 8), np.nan, np.float32)
    with Checkpoints(tmp_path) as saver:
        saver.save(1, trainable=trainable, opt_state=opt_state, metadata={})
    done = run_helpers.here(["ckpt", "verify", str(tmp_path)])
    assert done.status == 1
    wrong = "state/opt_state/v/kernel holds numbers that are not finite"
    assert f"checkpoint_1: {wrong}" in done.out
    assert "DAMAGED (1 problems)" in done.out


@pytest.mark.parametrize("action", ["show", "verify"])
@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nothing", "nothing does not exist"),
        ("empty", "empty is an empty directory"),
        ("run", "run is not a checkpoint: it holds config.gin, inference_eval"),
        ("run/config.gin", "config.gin is a file, not a checkpoint directory"),
        ("", "is empty: give"),
    ],
)
def test_what_is_no_checkpoint_is_not_called_damaged(tmp_path, stage, action, place, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "run" / "inference_eval").mkdir(parents=True)
    (tmp_path / "run" / "config.gin").write_text("")
    words = ["ckpt", action, str(tmp_path / place) if place else ""]
    done = run_helpers.here(words)
    assert (done.status, done.out) == (2, "")
    assert said in done.err
    if action == "verify":  # and before anything else is read
        done = run_helpers.here(["ckpt", "verify", str(stage), words[-1]])
        assert (done.status, done.out) == (2, "")


def test_what_is_no_checkpoint_is_said(tmp_path):
    done = run_helpers.here(["ckpt", "show", str(tmp_path / "nothing")])
    assert done.status == 2
    assert "does not exist" in done.err
    assert run_helpers.here(["ckpt", "frobnicate"]).status == 2
