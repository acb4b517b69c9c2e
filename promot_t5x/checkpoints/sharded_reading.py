"""Parameters of a checkpoint, read straight into the shards of this run.

Each process reads what its own devices hold, in the dtype that they keep, a portion at a time:
its memory is bounded by `read_arrays.PORTION_BYTES` or, if that is more, by its part of the largest
array. A scanned network's stacks are made on the devices, of single layers read as shards. What is
wanted in int8 is read as float32 and quantized there, a portion or a layer at a time.
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
from promot_t5x.network import quantization
from promot_t5x.network.scan import LAYER_AXIS, layer_axis, layer_paths


def read_sharded(source: ParamSource, wanted: Shapes) -> dict[str, Any]:
    """Read parameters by path, stacking single layers where the network scans them.

    **Arguments:**

    - `source`: holds each parameter as it is wanted, or its layers one by one.
    - `wanted`: {path: shape, dtype and sharding}, of an int8 array its scales too. With a sharding
      the result is a JAX array, without one a numpy array.
    """
    stored = {p: leaf for p, leaf in wanted.items() if quantization.owner(p) in source.shapes}
    result = _in_portions(source, stored)
    for path, leaf in wanted.items():
        if path in stored or quantization.is_scale(path):
            continue
        assert layer_axis(path) is not None, path  # the caller has compared the trees
        depth, stacks = leaf.shape[LAYER_AXIS], [path]
        if leaf.dtype == jnp.int8:
            stacks.append(quantization.scale_of(path))
        layers = {
            name: _single_layer(wanted[stack])
            for stack in stacks
            for name in layer_paths(stack, depth)
        }
        found = _in_portions(source, layers)
        for stack in stacks:
            parts = [found[name] for name in layer_paths(stack, depth)]
            result[stack] = _stacker(wanted[stack].format)(parts)
    return result


def _in_portions(source: ParamSource, wanted: Shapes) -> dict[str, Any]:
    floating = {
        path: _of_type(leaf, jnp.float32) if leaf.dtype == jnp.int8 else leaf
        for path, leaf in wanted.items()
        if path in source.shapes
    }
    as_stored = {path: _of_type(leaf, source.shapes[path].dtype) for path, leaf in floating.items()}
    # The largest ones come while the devices are still empty: they hold such a one in float32 too.
    ordered = dict(sorted(as_stored.items(), key=lambda each: -read_arrays.local_bytes(each[1])))
    result: dict[str, Any] = {}
    for part in read_arrays.portions(ordered):
        # What was read leaves the host, and float32 the devices, before the next portion comes.
        found = source.read({path: floating[path] for path in part})
        result |= jax.block_until_ready(_quantized(found, wanted))
        del found
    return result


def _quantized(found: dict[str, Any], wanted: Shapes) -> dict[str, Any]:
    """Replace those of the arrays that are wanted in int8."""
    for path in list(found):
        if wanted[path].dtype == jnp.int8:
            scales, name = quantization.scale_of(path), path.rpartition("/")[2]
            quantize = _quantizer(name, wanted[path].format, wanted[scales].format)
            found[path], found[scales] = quantize(found[path])
    return found


def _of_type(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.format)


def _single_layer(stack: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    shape, sharding = list(stack.shape), stack.sharding
    del shape[LAYER_AXIS]
    if isinstance(sharding, NamedSharding):
        spec = [*sharding.spec, *[None] * len(stack.shape)][: len(stack.shape)]
        del spec[LAYER_AXIS]
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(tuple(shape), stack.dtype, sharding=sharding)


@functools.cache
def _quantizer(name: str, array: Format, scales: Format) -> Callable[[Any], Any]:
    """Return `quantization.quantized` of kernels, or of embeddings, that are to lie so."""
    return jax.jit(functools.partial(quantization.quantized, name), out_shardings=(array, scales))


@functools.cache
def _stacker(format_: Format) -> Callable[[Sequence[Any]], Any]:
    if format_.sharding is None:
        return functools.partial(np.stack, axis=LAYER_AXIS)
    return jax.jit(functools.partial(jnp.stack, axis=LAYER_AXIS), out_shardings=format_)
