"""Schedules against formulas written out by hand, step by step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.errors import UserError
from promot_t5x.training.schedules import create_learning_rate_scheduler

STEPS = (0, 1, 5, 9, 10, 11, 25, 40, 99, 100, 1000)

FORMULAS = {
    "constant": lambda s: 0.3,
    "linear_warmup": lambda s: s / 10 if s < 10 else 1.0,
    "linear_decay": lambda s: 0.3 * (s / 10 if s <= 10 else 1 - 0.002 * (s - 10)),
    "rsqrt_decay": lambda s: 1 / math.sqrt(s if s > 10 else 10),
    "rsqrt_normalized_decay": lambda s: math.sqrt(10 / s) if s > 10 else 1.0,
    "decay_every": lambda s: 0.002 ** (s // 40),
    "cosine_decay": lambda s: (
        1.0 if s <= 10 else math.cos(math.pi / 2 * math.fmod((s - 10) / 60, 1.0)) ** 2
    ),
}


def schedule_of(factors, **settings):
    defaults = {
        "base_learning_rate": 0.3, "warmup_steps": 10, "decay_factor": 0.002, "steps_per_decay": 40,
        "steps_per_cycle": 60,
    }  # fmt: skip
    return create_learning_rate_scheduler(factors, **(defaults | settings))


@pytest.mark.parametrize("factors", [*FORMULAS, "constant * linear_warmup*rsqrt_decay"])
def test_each_factor_and_a_product_follow_their_formula(factors):
    schedule = schedule_of(factors)
    expected = [
        max(math.prod(FORMULAS[name.strip()](s) for name in factors.split("*")), 1e-8)
        for s in STEPS
    ]
    np.testing.assert_allclose([schedule(s) for s in STEPS], expected, rtol=2e-6, atol=1e-7)


def test_jitted_equals_eager_and_is_a_float32_scalar():
    schedule = schedule_of("constant * linear_warmup * decay_every * cosine_decay")
    for step in STEPS:
        value = jax.jit(schedule)(jnp.int32(step))
        assert value.dtype == jnp.float32
        assert value.shape == ()
        np.testing.assert_allclose(value, schedule(step), rtol=1e-6, atol=1e-7)


def test_defaults_are_those_of_t5x():
    schedule = create_learning_rate_scheduler()
    assert schedule(0) == np.float32(1e-8)
    np.testing.assert_allclose(schedule(500), 0.5 * 0.5 / math.sqrt(1000), rtol=1e-6)
    np.testing.assert_allclose(schedule(40_000), 0.5 / 200, rtol=1e-6)


def test_offset_shifts_the_steps_and_the_minimum_holds():
    late = schedule_of("constant * linear_warmup", step_offset=1_100_000)
    assert late(1_099_000) == np.float32(1e-8)
    np.testing.assert_allclose(late(1_100_005), 0.15, rtol=1e-6)
    # linear_decay crosses zero at step 510.
    assert schedule_of("linear_decay", min_learning_rate=1e-4)(600) == np.float32(1e-4)


def test_drives_an_optax_optimizer_inside_jit():
    schedule = schedule_of("constant * linear_warmup")
    for optimizer in (optax.sgd(learning_rate=schedule), optax.adamw(learning_rate=schedule)):
        params = {"w": jnp.ones(3)}
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        first, state = update({"w": jnp.ones(3)}, state, params)
        second, _ = update({"w": jnp.ones(3)}, state, params)
        assert np.all(np.abs(second["w"]) > np.abs(first["w"]))


@pytest.mark.parametrize(
    ("factors", "named"),
    [("constant * linear_warmpu", "'linear_warmup'"), ("", "constant"), ("constant *", "constant")],
)
def test_unknown_factor_is_a_user_error_with_a_hint(factors, named):
    with pytest.raises(UserError, match="Unknown factor") as error:
        create_learning_rate_scheduler(factors)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("factors", "setting"),
    [
        ("constant * linear_warmup", "warmup_steps"),
        ("rsqrt_decay", "warmup_steps"),
        ("decay_every", "steps_per_decay"),
        ("cosine_decay", "steps_per_cycle"),
    ],
)
def test_dividing_by_no_steps_is_a_user_error(factors, setting):
    with pytest.raises(UserError, match=f"{setting} is 0"):
        create_learning_rate_scheduler(factors, **{setting: 0})
    create_learning_rate_scheduler("constant", **{setting: 0})
