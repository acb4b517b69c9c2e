"""Parameters of a checkpoint, read straight into the shards of this run.

Each process reads what its own devices hold, in the dtype that they keep, a portion at a time:
its memory is bounded by `read_arrays.PORTION_BYTES` or, if that is more, by its part of the largest
array. A scanned network's stacks are made on the devices, of single layers read as shards.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.source import ParamSource, Shapes
from promot_t5x.network.scan import LAYER_AXIS, layer_axis, layer_paths


def read_sharded(source: ParamSource, wanted: Shapes) -> dict[str, Any]:
    """Read parameters by path, stacking single layers where the network scans them.

    **Arguments:**

    - `source`: holds each parameter as it is wanted, or its layers one by one.
    - `wanted`: {path: shape, dtype and sharding}. With a sharding the result is a JAX array,
      without one a numpy array.
    """
    stored = {path: leaf for path, leaf in wanted.items() if path in source.shapes}
    result = _in_portions(source, stored)
    for path, leaf in wanted.items():
        if path not in stored:
            assert layer_axis(path) is not None, path  # the caller has compared the trees
            depth = leaf.shape[LAYER_AXIS]
            layers = dict.fromkeys(layer_paths(path, depth), _single_layer(leaf))
            result[path] = _stacker(leaf.format)(list(_in_portions(source, layers).values()))
    return result


def _in_portions(source: ParamSource, wanted: Shapes) -> dict[str, Any]:
    as_stored = {
        path: jax.ShapeDtypeStruct(leaf.shape, source.shapes[path].dtype, sharding=leaf.format)
        for path, leaf in wanted.items()
    }
    result: dict[str, Any] = {}
    for part in read_arrays.portions(as_stored):
        # What was read leaves the host before the next portion comes.
        result |= jax.block_until_ready(source.read({path: wanted[path] for path in part}))
    return result


def _single_layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape, sharding = list(stack.shape), stack.sharding
    del shape[LAYER_AXIS]
    if isinstance(sharding, NamedSharding):
        spec = [*sharding.spec, *[None] * len(stack.shape)][: len(stack.shape)]
        del spec[LAYER_AXIS]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(tuple(shape), stack.dtype, sharding=sharding)


@functools.cache
def _stacker(format_: Format) -> Callable[[Sequence[Any]], Any]:
    if format_.sharding is None:
        return functools.partial(np.stack, axis=LAYER_AXIS)
    return jax.jit(functools.partial(jnp.stack, axis=LAYER_AXIS), out_shardings=format_)
