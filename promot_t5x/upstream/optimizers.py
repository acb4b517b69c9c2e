"""T5X's optimisers for a part of the parameters, and the factoring of a prompt table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from promot_t5x.prompt import PROMPT_AXES


def train_only(patterns: Sequence[str], optimizer: Any) -> Any:
    """A T5X `MultiOptimizer` that updates what matches and leaves the rest as it is.

    Args:
        patterns: as `stages.Stage.trainable` of this project has them: a parameter trains if one
            of these regular expressions matches the whole of its path, `encoder/prompt/prompt`.
        optimizer: a T5X optimiser definition.

    Its checkpoints have slots for what trains, and None elsewhere.
    """
    from t5x import optimizers

    def trains(path: str, _: Any) -> bool:
        return any(re.fullmatch(pattern, path.removeprefix("/")) for pattern in patterns)

    return optimizers.MultiOptimizer(((traverse_util.ModelParamTraversal(trains), optimizer),))


def logical_factor_rules() -> Mapping[str, Any]:
    """T5X's factoring rules and those of a prompt table: never factored, each prompt by itself."""
    from t5x import adafactor

    tasks, *vectors = PROMPT_AXES
    return {
        **adafactor.standard_logical_factor_rules(),
        tasks: adafactor.FactorDim.BATCH,
        **dict.fromkeys(vectors, adafactor.FactorDim.NONE),
    }


def prompt_axis_rules() -> tuple[tuple[str, None], ...]:
    """`additional_rules` of T5X's `standard_logical_axis_rules`: every device holds all prompts."""
    return tuple((axis, None) for axis in PROMPT_AXES)
