"""T5X's optimizers for a part of the parameters, and the factoring of a prompt table."""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct, traverse_util

from promot_t5x.network.prompt import PROMPT_AXES


@struct.dataclass
class _Rate:
    """The hyper-parameters of `Frozen`: T5X sets the learning rate of every optimizer."""

    learning_rate: Any = None


class Frozen:
    """A T5X optimizer definition that changes nothing, for what a `MultiOptimizer` is to leave be.

    Its slot is one zero a parameter. T5X would put None where no optimizer is in charge, and does
    not resume an orbax checkpoint with None in it.
    """

    hyper_params = _Rate()

    def init_state(self, params: Any) -> Any:
        """Return the slots, as the attribute `param_states`."""
        slots = jax.tree.map(lambda _: jnp.zeros(1, jnp.float32), params)
        return types.SimpleNamespace(param_states=slots)

    def apply_gradient(self, hyper_params: Any, params: Any, state: Any, grads: Any) -> Any:
        """Return (params, state) as they were."""
        del hyper_params, grads
        return params, state


def train_only(patterns: Sequence[str], optimizer: Any) -> Any:
    """Return a T5X `MultiOptimizer` that updates what matches and leaves the rest as it is.

    **Arguments:**

    - `patterns`: as `stages.Stage.trainable` of this project has them: a parameter trains if one of
      these regular expressions matches the whole of its path, `encoder/prompt/prompt`.
    - `optimizer`: a T5X optimizer definition.
    """
    from t5x import optimizers

    def trains(path: str, _: Any) -> bool:
        # T5X's paths have a leading slash.
        return any(re.fullmatch(pattern, path.removeprefix("/")) for pattern in patterns)

    def rests(path: str, leaf: Any) -> bool:
        return not trains(path, leaf)

    chosen = [(trains, optimizer), (rests, Frozen())]
    return optimizers.MultiOptimizer(
        tuple((traverse_util.ModelParamTraversal(choice), each) for choice, each in chosen)
    )


def logical_factor_rules() -> Mapping[str, Any]:
    """Return T5X's factoring rules and those of a prompt table: not factored, one prompt by one."""
    from t5x import adafactor

    tasks, *vectors = PROMPT_AXES
    return {
        **adafactor.standard_logical_factor_rules(),
        tasks: adafactor.FactorDim.BATCH,
        **dict.fromkeys(vectors, adafactor.FactorDim.NONE),
    }


def prompt_axis_rules() -> tuple[tuple[str, None], ...]:
    """Return `additional_rules` of T5X's `standard_logical_axis_rules`: prompts are everywhere."""
    return tuple((axis, None) for axis in PROMPT_AXES)
