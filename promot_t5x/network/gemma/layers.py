"""What Gemma's layers have and T5's have not: norms of 1 + w, rotary positions, soft caps."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax import lax
from jaxtyping import Array, Float, Int


class RmsNorm(nn.Module):
    """Normalization by the root mean square, scaled by 1 + w, all of it in float32."""

    dtype: Any
    epsilon: float

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length embed"]:
        """Divide each position by its root mean square and scale it."""
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
        scale = param_with_axes(
            "scale", nn.initializers.zeros, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        normed = x * lax.rsqrt(mean_square + self.epsilon) * (1.0 + scale)
        scaled: Array = normed.astype(self.dtype)
        return scaled


def rotated(
    x: Float[Array, "batch length heads head_dim"],
    positions: Int[Array, "rows length"],
    theta: float,
) -> Float[Array, "batch length heads head_dim"]:
    """Rotate each head by its position (RoPE, arXiv 2104.09864), the halves of a head in pairs.

    **Arguments:**

    - `positions`: of one row or of each.
    - `theta`: wavelengths grow from 2 pi to nearly 2 pi theta.

    **Returns:** an array of the dtype of `x`; angles are float32.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    sine, cosine = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    parts = (first * cosine - second * sine, second * cosine + first * sine)
    return jnp.concatenate(parts, axis=-1).astype(x.dtype)


def soft_capped(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """Squeeze values into (-cap, cap) by a tanh; a cap of 0 leaves them."""
    return cap * jnp.tanh(x / cap) if cap else x
