"""Frozen kernels and embeddings in int8, each with the scales of its output channels.

    encoder/layers_0/mlp/wo/kernel [in, out]  ->  …/wo/kernel, int8, and …/wo/kernel_scale [out]
    token_embedder/embedding [vocab, embed]   ->  …/embedding, int8, and …/embedding_scale [vocab]

A weight is scale x int8, and a scale is a 127th of the largest magnitude in its channel (of an
embedding, its row), so a weight moves by half a scale at most. In a scanned stack the layers are on
axis 1 of a scale too. Norms, biases, prompts and adapters stay as they are.

Layers know such an array by its dtype. It is made on the devices as weights are read, and no
checkpoint holds it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Shaped

STORAGE = ("float32", "bfloat16", "int8")  # what frozen parameters may be held in
LARGEST = 127
_SUFFIX = "_scale"
_INPUT_AXES = {"kernel": 0, "embedding": 1}  # of what a product with the array sums over


def is_quantized(path: str) -> bool:
    """Whether int8 storage holds the parameter at a '/'-joined path in int8."""
    return path.rpartition("/")[2] in _INPUT_AXES


def scale_of(path: str) -> str:
    """Return the path of the scales of a kernel or an embedding."""
    return path + _SUFFIX


def owner(path: str) -> str:
    """Return the path of the parameter that scales belong to; that of any other one is its own."""
    scaled = path.removesuffix(_SUFFIX)
    return scaled if scaled != path and is_quantized(scaled) else path


def is_scale(path: str) -> bool:
    """Whether a path is that of scales."""
    return owner(path) != path


def stored_shapes(shapes: Mapping[str, Any], dtype: str | None) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shapes and dtypes of parameters by path as they are held; of int8, scales too.

    **Arguments:**

    - `shapes`: {path: anything with a shape and a dtype}, with scales or without.
    - `dtype`: of `STORAGE`; int8 is that of kernels and embeddings alone. None leaves each its own.
    """
    own = dtype is None or dtype == "int8"
    result = {
        path: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(leaf.dtype if own else dtype))
        for path, leaf in shapes.items()
    }
    if dtype == "int8":
        for path in filter(is_quantized, shapes):
            shape = shapes[path].shape
            result[path] = jax.ShapeDtypeStruct(shape, jnp.int8)
            scales = _output_axes(path, shape)
            result[scale_of(path)] = jax.ShapeDtypeStruct(scales, jnp.float32)
    return result


def stored_axes(axes: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return logical axis names by path, those of scales too: their arrays' that are kept."""
    scales = {scale_of(p): _output_axes(p, names) for p, names in axes.items() if is_quantized(p)}
    return {**axes, **scales}


def _output_axes(path: str, axes: Sequence[Any]) -> tuple[Any, ...]:
    """Return what a sequence has for each axis of the scales: [out], or [out, layers]."""
    summed = _INPUT_AXES[path.rpartition("/")[2]]
    return tuple(each for axis, each in enumerate(axes) if axis != summed)[::-1]


def quantized(
    path: str, array: Float[Array | np.ndarray, "..."]
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Return a kernel or an embedding in int8, and its scales, float32.

    The result is the same, bit for bit, on every device and however the array is split. The scale
    of a channel with a number that is not finite is NaN.
    """
    found: tuple[Array, Array] = _quantized(array, _INPUT_AXES[path.rpartition("/")[2]])
    return found


@functools.partial(jax.jit, static_argnames="axis")
def _quantized(
    array: Float[Array | np.ndarray, "..."], axis: int
) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    magnitudes = jnp.abs(array.astype(jnp.float32))
    scales = jnp.max(magnitudes, axis=axis, keepdims=True) * jnp.float32(1 / LARGEST)
    # Not every reduction over devices passes a NaN on.
    finite = jnp.all(jnp.isfinite(magnitudes), axis=axis, keepdims=True)
    scales = jnp.where(finite, scales, jnp.nan)
    # Devices differ in a quotient's last digit, and so in how they round it. Products they have
    # alike, and whether a magnitude reaches one is exact.
    near = jnp.floor(magnitudes / jnp.where(scales > 0, scales, 1) + 0.5)
    above, below = magnitudes >= (near + 0.5) * scales, magnitudes < (near - 0.5) * scales
    steps = jnp.clip(near + above - below, 0, LARGEST)
    return (jnp.sign(array) * steps).astype(jnp.int8), jnp.squeeze(scales, axis).T


def dequantized(
    path: str, array: Int8[Array, "..."], scales: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Return the float32 numbers that an int8 kernel or embedding stands for."""
    axis = _INPUT_AXES[path.rpartition("/")[2]]
    return array.astype(jnp.float32) * jnp.expand_dims(scales.T, axis)


def cast(arrays: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Shaped[Any, "..."]]:
    """Return parameters in the dtypes that are wanted, those in int8 with their scales.

    **Arguments:**

    - `arrays`: by path; what is int8 already comes with its scales.
    - `wanted`: {path: anything with a dtype}.
    """
    result: dict[str, Any] = {}
    for path, leaf in wanted.items():
        if path not in arrays:
            assert is_scale(path), path  # which comes with its array
        elif arrays[path].dtype == leaf.dtype:
            result[path] = arrays[path]
        elif leaf.dtype == jnp.int8:
            result[path], result[scale_of(path)] = quantized(path, arrays[path])
        else:
            result[path] = arrays[path].astype(leaf.dtype)
    return result
