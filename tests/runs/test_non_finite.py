"""A run that diverges: it ends at once, says where, and keeps the checkpoint that is finite."""

import jax
import numpy as np
import pytest
import run_helpers

from promot_t5x import errors
from promot_t5x.checkpoints.steps import complete_steps

pytestmark = pytest.mark.slow

# A learning rate that is infinite for the update of step 3 and one of step 4.
SPIKE = """\
from __gin__ import dynamic_registration
import optax
import spike
from promot_t5x.runs import stages
OPTIMIZER = @optax.sgd
stages.Stage.learning_rate = @spike.{}
"""
SCHEDULES = """\
import jax.numpy as jnp

def infinite(step):
    return jnp.where(step == 2, jnp.inf, 0.01)

def zero(step):
    return jnp.where(step == 2, 0.0, 0.01)
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    lab = run_helpers.Lab(tmp_path)
    lab.write("spike.py", SCHEDULES)
    for name in ("infinite", "zero"):
        lab.write(f"{name}.gin", SPIKE.format(name))
    monkeypatch.chdir(tmp_path)
    return lab


def training(lab, name, *files, **macros):
    given = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
    return lab.words("train", "finetune", "train", *files, **given)


def test_a_diverging_run_ends_with_its_own_status_and_its_finite_checkpoint(lab):
    """Every step has a checkpoint due; none of one that is not finite is written."""
    words = training(lab, "run", LEARNING_RATE=1e38, EVAL_PERIOD=1, TRAIN_STEPS=6)
    done = run_helpers.here(words)
    assert done.status == errors.EXIT_NON_FINITE == 76, done.err
    assert "Traceback" not in done.err
    rows = run_helpers.json_lines(lab.directory / "run" / "train" / "metrics.jsonl")
    last = rows[-1]["step"]
    assert f"step {last} is not finite" in done.err
    assert "arrays (" in done.err
    assert "Its batch held run_signs/train " in done.err
    saved = complete_steps(lab.directory / "run")
    assert saved == ([last - 1] if last > 1 else [])
    for step in saved:
        arrays = run_helpers.checkpoint_arrays(lab.directory / "run" / f"checkpoint_{step}")
        assert all(np.isfinite(array).all() for array in arrays.values())
    # The same command ends in the same way.
    again = run_helpers.here(words)
    assert again.status == errors.EXIT_NON_FINITE
    assert f"step {last} is not finite" in again.err
    assert complete_steps(lab.directory / "run") == saved


def test_a_skipped_step_leaves_the_parameters_as_they_were(lab):
    """With plain gradient descent it is the step of a run with a learning rate of 0 there."""
    skipping = training(lab, "skipping", "infinite.gin", SKIP_NON_FINITE_STEPS=1)
    out = run_helpers.succeed(skipping)
    assert out.count("skipped: step 3 is not finite: parameters of 28 of 28 arrays") == 1
    run_helpers.succeed(training(lab, "zero", "zero.gin"))
    found, wanted = (
        run_helpers.trained(lab.directory / name / "checkpoint_4") for name in ("skipping", "zero")
    )
    run_helpers.assert_same_arrays(found, wanted)
    metrics = lab.directory / "skipping" / "train" / "metrics.jsonl"
    rows = run_helpers.json_lines(metrics)
    assert [row["skipped"] for row in rows] == [0.0, 0.0, 1.0, 0.0]
    done = run_helpers.here(training(lab, "ends", "infinite.gin"))
    assert done.status == errors.EXIT_NON_FINITE
    # The update of step 3 is what is infinite; the loss of the next one shows it.
    assert "step 4 is not finite: loss nan" in done.err
    assert "The newest checkpoint is that of step 2" in done.err


def test_a_limit_below_zero_is_refused(lab):
    done = run_helpers.here(training(lab, "run", SKIP_NON_FINITE_STEPS=-1))
    assert done.status == 2
    assert "skip_non_finite_steps must not be negative" in done.err
    assert jax.device_count()
    assert not (lab.directory / "run").exists()
