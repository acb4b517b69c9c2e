"""Functions and classes for the gin configurations of test_config and test_cli."""

import gin

from promot_t5x.errors import UserError

NOT_CALLABLE = 3
calls = []


class Model:
    def __init__(self, width, depth=2, vocabulary=None):
        self.width, self.depth, self.vocabulary = width, depth, vocabulary


class Stage:
    def __init__(self, rate=0.1, optimizer=None):
        self.rate = rate
        self.optimizer = optimizer() if optimizer else None


class Scaler:
    def apply(self, factor=1):
        return factor


def words(path):
    return path


def letters():
    return "letters"


def adam(beta=0.9):
    return beta


def drill(*, model, batch_size, steps=3, stages=(), scaler=None, label=""):
    if steps < 0:
        raise UserError(f"steps is {steps}; it must not be negative.")
    result = {
        "width": model.width,
        "depth": model.depth,
        "vocabulary": model.vocabulary,
        "batch_size": batch_size,
        "steps": steps,
        "stages": [(stage.rate, stage.optimizer) for stage in stages],
        "factor": scaler and scaler.apply(),
        "label": label,
    }
    calls.append(result)
    return result


def interrupted():
    raise KeyboardInterrupt


def greedy():
    import jax.numpy as jnp

    jnp.zeros(1 << 50, jnp.uint8).block_until_ready()  # a pebibyte


def throttled():
    raise ValueError("RESOURCE_EXHAUSTED: Error reading gs://b/x: HTTP response code: 429")


def broken():
    raise RuntimeError("a fault")


@gin.configurable
def decorated(level=1):
    return level
