"""How the one step of a layer becomes a stack's: recomputed backwards or not, scanned or not."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from flax.linen.partitioning import scan_with_axes

from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.scan import LAYER_AXIS

# (layer, carry, the layer's own values) -> (carry, output)
LayerStep = Callable[[nn.Module, Any, Any], tuple[Any, Any]]


def recomputed(step: LayerStep, config: NetworkConfig) -> LayerStep:
    """Return the step, of which the backward pass recomputes what the configuration says."""
    if config.remat_policy == "none":
        return step
    policy = None
    if config.remat_policy == "minimal":
        policy = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
    # A scan's loop already keeps the compiler from merging the recomputation with the original.
    return nn.remat(step, policy=policy, prevent_cse=not config.scan_layers)


def scanned(step: LayerStep, length: int) -> LayerStep:
    """Return the step over `length` layers, whose parameters have their layers on axis 1."""
    return scan_with_axes(
        step,
        variable_axes={"params": LAYER_AXIS, "cache": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        axis_name="layers",
    )
