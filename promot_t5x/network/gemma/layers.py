"""What Gemma's layers have and T5's have not: norms of 1 + w, rotary positions, soft caps."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax import lax
from jaxtyping import Array, Float, Int


class RmsNorm(nn.Module):
    """Normalization by the root mean square, scaled by 1 + w in float32 (Gemma) or by w (Llama).

    **Attributes:**

    - `axis`: the logical axis of what is normalized.
    """

    dtype: Any
    epsilon: float
    plus_one: bool = True
    axis: str = "embed"

    @nn.compact
    def __call__(self, inputs: Float[Array, "*shape size"]) -> Float[Array, "*shape size"]:
        """Divide the last axis by its root mean square and scale it."""
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
        init = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale = param_with_axes("scale", init, (x.shape[-1],), jnp.float32, axes=(self.axis,))
        normed = x * lax.rsqrt(mean_square + self.epsilon)
        scaled: Array
        if self.plus_one:
            scaled = (normed * (1.0 + scale)).astype(self.dtype)
        else:
            # Rounded before it is scaled, as Llama was trained.
            scaled = normed.astype(self.dtype) * scale.astype(self.dtype)
        return scaled


def rope_frequencies(
    head_dim: int, theta: float, factor: float = 1.0
) -> Float[np.ndarray, " half"]:
    """Return the angle of each pair of a head, in radians a position, as float32.

    **Arguments:**

    - `theta`: wavelengths grow from 2 pi to nearly 2 pi theta.
    - `factor`: positions are divided by it.
    """
    half = head_dim // 2
    return (theta ** (-np.arange(half) / half) / factor).astype(np.float32)


def rotated(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int[Array, "rows length"],
    frequencies: Float[Array | np.ndarray, " half"],
) -> Float[Array, "batch length heads head_dim"]:
    """Rotate each head by its position (RoPE, arXiv 2104.09864), the halves of a head in pairs.

    **Arguments:**

    - `positions`: of one row or of each.
    - `frequencies`: the angle of each pair, in radians a position (`rope_frequencies`).

    **Returns:** an array of the dtype of `x`; angles are float32.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    parts = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def soft_capped(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Squeeze values into (-cap, cap) by a tanh; a cap of 0 leaves them."""
    return cap * jnp.tanh(x / cap) if cap else x
