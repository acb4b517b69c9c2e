"""What decoding does to rows of logits: pick the highest, filter them, read one token's.

Nucleus sampling is that of Holtzman et al. 2020 (https://arxiv.org/abs/1904.09751).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEGATIVE_INFINITY = -1.0e7  # finite, as T5X's: the score of what is not there


def top_k(
    values: Float[Array, "*b size"], k: int
) -> tuple[Float[Array, "*b k"], Int[Array, "*b k"]]:
    """Return the k highest values and their indices, highest first; of equal ones the first first.

    `lax.top_k` for few of many: the compiler gathers all rows of its operand on every device
    of a mesh, whereas these reductions stay where the rows, and the vocabulary, are.
    """
    size = values.shape[-1]
    positions = jnp.arange(size, dtype=jnp.int32)
    best, indices = [], []
    for _ in range(k):
        highest = jnp.max(values, axis=-1, keepdims=True)
        # The last position rather than none where nothing equals the highest: it is a NaN.
        index = jnp.min(jnp.where(values == highest, positions, size - 1), axis=-1, keepdims=True)
        best.append(highest)
        indices.append(index)
        values = jnp.where(positions == index, -jnp.inf, values)
    return jnp.concatenate(best, axis=-1), jnp.concatenate(indices, axis=-1)


def topk_mask(logits: Float[Array, "*b vocab"], k: int) -> Float[Array, "*b vocab"]:
    """Drop all but the k highest logits (and those equal to the k-th) to -1e7."""
    vocab = logits.shape[-1]
    rank = vocab - min(k, vocab)
    kth = jnp.sort(logits)[..., rank : rank + 1]
    return jnp.where(logits >= kth, logits, NEGATIVE_INFINITY)


def topp_mask(logits: Float[Array, "*b vocab"], p: float) -> Float[Array, "*b vocab"]:
    """Drop to -1e7 all but the smallest set of logits whose probabilities sum to p or more.

    Logits equal to the lowest one kept are kept too.
    """
    probabilities = jax.nn.softmax(logits)
    descending = -jnp.sort(-probabilities)
    # A token belongs to the set while the likelier ones do not reach p by themselves.
    before = jnp.cumsum(descending, axis=-1) - descending
    threshold = jnp.min(jnp.where(before < p, descending, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(probabilities >= threshold, logits, NEGATIVE_INFINITY)


def token_log_prob(logits: Float[Array, "*b vocab"], ids: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Return the log-probability of one token per row."""
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
