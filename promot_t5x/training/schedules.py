"""Learning rate schedules: a product of named factors, as T5X writes them.

A schedule is a function of the step that optax optimizers accept as `learning_rate`.
Names, defaults and formulas are those of `t5x.utils.create_learning_rate_scheduler`, so a
T5X configuration that binds them keeps its meaning.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from promot_t5x.config import validation
from promot_t5x.errors import UserError, did_you_mean

Schedule = Callable[[Real[ArrayLike, ""]], Float[Array, ""]]

FACTORS = (
    "constant",
    "linear_warmup",
    "linear_decay",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)
_NEED_WARMUP = ("linear_warmup", "linear_decay", "rsqrt_decay", "rsqrt_normalized_decay")


def create_learning_rate_scheduler(
    factors: str = "constant * linear_warmup * rsqrt_decay",
    base_learning_rate: float = 0.5,
    warmup_steps: int = 1000,
    decay_factor: float = 0.5,
    steps_per_decay: int = 20000,
    steps_per_cycle: int = 100000,
    step_offset: int = 0,
    min_learning_rate: float = 1e-8,
) -> Schedule:
    """Return the schedule `step -> learning rate` (a float32 scalar; works inside jit).

    With s = max(0, step - step_offset), the factors, separated by `*`, are
      constant                base_learning_rate
      linear_warmup           min(1, s / warmup_steps)
      linear_decay            base_learning_rate * min(s / warmup_steps,
                              1 + decay_factor * (warmup_steps - s)); it holds both the
                              constant and the warm-up, so do not multiply it by them
      rsqrt_decay             1 / sqrt(max(s, warmup_steps))
      rsqrt_normalized_decay  sqrt(warmup_steps / max(s, warmup_steps))
      decay_every             decay_factor ** floor(s / steps_per_decay)
      cosine_decay            (1 + cos(pi * (c mod 1))) / 2, where
                              c = max(0, s - warmup_steps) / steps_per_cycle

    **Arguments:**

    - `factors`: which factors to multiply; `"constant"` is what prompt tuning uses.
    - `base_learning_rate`: the value of `constant`.
    - `warmup_steps`: in steps, at least 1 for the factors that divide by it.
    - `decay_factor`: slope a step of `linear_decay`, ratio of `decay_every`.
    - `steps_per_decay`: steps between two drops of `decay_every`.
    - `steps_per_cycle`: steps in which `cosine_decay` falls from 1 to 0 (then it restarts).
    - `step_offset`: the step at which the schedule starts, for a run that continues a
      pretraining's step count.
    - `min_learning_rate`: the result is never below it.

    **Raises:** `UserError` for an unknown factor, or a step count below 1 that a factor divides by.
    """
    validation.check_rate("LEARNING_RATE (base_learning_rate)", base_learning_rate)
    names = [name.strip() for name in factors.split("*")]
    _check_names(names, factors)
    _check_divisors(
        names,
        {"warmup_steps": warmup_steps, "steps_per_decay": steps_per_decay,
         "steps_per_cycle": steps_per_cycle},
    )  # fmt: skip

    def linear_decay(s: Real[Array, ""]) -> Real[Array, ""]:
        return base_learning_rate * jnp.minimum(
            s / warmup_steps, 1.0 + decay_factor * (warmup_steps - s)
        )

    def cosine_decay(s: Real[Array, ""]) -> Real[Array, ""]:
        cycles = jnp.maximum(0.0, (s - warmup_steps) / steps_per_cycle)
        return 0.5 * (1.0 + jnp.cos(jnp.pi * (cycles % 1.0)))

    formulas: dict[str, Callable[[Real[Array, ""]], Any]] = {
        "constant": lambda s: base_learning_rate,
        "linear_warmup": lambda s: jnp.minimum(1.0, s / warmup_steps),
        "linear_decay": linear_decay,
        "rsqrt_decay": lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, warmup_steps)),
        "rsqrt_normalized_decay": lambda s: jnp.sqrt(warmup_steps / jnp.maximum(s, warmup_steps)),
        "decay_every": lambda s: decay_factor ** (s // steps_per_decay),
        "cosine_decay": cosine_decay,
    }

    def schedule(step: Real[ArrayLike, ""]) -> Float[Array, ""]:
        s = jnp.maximum(0, jnp.asarray(step) - step_offset)
        rate: Any = 1.0
        for name in names:
            rate = rate * formulas[name](s)
        return jnp.asarray(jnp.maximum(rate, min_learning_rate), jnp.float32)

    return schedule


def _check_names(names: list[str], factors: str) -> None:
    for name in names:
        if name not in FACTORS:
            raise UserError(
                f"Unknown factor {name!r} in the learning rate factors {factors!r} "
                f"(create_learning_rate_scheduler.factors).{did_you_mean(name, FACTORS)} "
                f"Known factors, to be joined by ' * ': {', '.join(FACTORS)}."
            )


def _check_divisors(names: list[str], steps: dict[str, int]) -> None:
    needs = {
        "warmup_steps": _NEED_WARMUP,
        "steps_per_decay": ("decay_every",),
        "steps_per_cycle": ("cosine_decay",),
    }
    for argument, users in needs.items():
        used_by = [name for name in names if name in users]
        if used_by and steps[argument] < 1:
            raise UserError(
                f"create_learning_rate_scheduler.{argument} is {steps[argument]}, but the factor "
                f"{used_by[0]!r} divides by it: set it to 1 or more, or drop the factor."
            )
