"""The parameters of a configuration's network: drawn, as shapes, or as names of axes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.gemma.config import DecoderOnlyConfig
from promot_t5x.network.gemma.decoder_only import DecoderOnly
from promot_t5x.network.transformer import Transformer

Module = Transformer | DecoderOnly


def module_of(config: NetworkConfig) -> Module:
    """Return the network of a configuration."""
    return DecoderOnly(config) if isinstance(config, DecoderOnlyConfig) else Transformer(config)


def _initialize(config: NetworkConfig, rng: jax.Array) -> dict[str, Any]:
    tokens = jnp.ones((1, 2), jnp.int32)
    return dict(module_of(config).init(rng, tokens, tokens, tokens, enable_dropout=False))


@functools.partial(jax.jit, static_argnums=0)
def _random_params(config: NetworkConfig, rng: jax.Array) -> dict[str, Any]:
    params: dict[str, Any] = _initialize(config, rng)["params"]
    return params


def initial_params(config: NetworkConfig, rng: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw float32 parameters, a nested dict; return them and the logical axes of each leaf."""
    return _random_params(config, rng), param_axes(config)


@functools.cache
def _shapes(config: NetworkConfig) -> dict[str, Any]:
    """Return the shapes of all variables; tracing a network for them takes a second.

    Configurations are checked before several processes join, when JAX must not have looked for
    devices yet: even the random key is made within the tracing.
    """
    shapes: dict[str, Any] = jax.eval_shape(lambda: _initialize(config, jax.random.key(0)))
    return shapes


def param_shapes(config: NetworkConfig) -> dict[str, Any]:
    """Return the tree of parameters as `jax.ShapeDtypeStruct`s; compute nothing."""
    copied: dict[str, Any] = jax.tree.map(lambda leaf: leaf, _shapes(config)["params"])
    return copied


def param_axes(config: NetworkConfig) -> dict[str, Any]:
    """Return the logical axis names of each parameter, a tuple per leaf; compute nothing."""
    flat = flatten_dict(_shapes(config)["params_axes"])
    axes: dict[str, Any] = unflatten_dict(
        {(*path[:-1], path[-1].removesuffix("_axes")): leaf.names for path, leaf in flat.items()}
    )
    return axes
