"""Multi-head attention of T5: its masks, its cache, and keys and values shared by beams.

Logits are not divided by sqrt(head_dim): the query's initializer is. Keys and values have the
layout [batch, heads, head_dim, length] throughout, which is T5X's cache layout: the length lies
along the lanes of a TPU, where a head_dim of 64 would leave half of them empty.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.config import T5Config
from promot_t5x.network.layers import Dense, attention_init

MASKED = -1e10
NO_TOKEN = -1  # fills rows in which 0 is a token's id like any other
CACHE_AXES = ("batch", "heads", "kv", "length")


class KeyValues(NamedTuple):
    """Projected keys and values; a scanned stack's have a leading axis of layers."""

    key: Float[Array, "*layers batch heads head_dim length"]
    value: Float[Array, "*layers batch heads head_dim length"]


def real_tokens(ids: Int[Array, "batch length"], fill_id: int = 0) -> Bool[Array, "batch length"]:
    """Return True up to each row's last id above `fill_id`; what follows fills the row.

    A 0 before that is a token: some vocabularies have one there (Pile-T5's <unk>).
    """
    places = jnp.arange(1, ids.shape[1] + 1)
    there = jnp.where(ids > fill_id, places, 0)
    return places <= jnp.max(there, axis=1, keepdims=True, initial=0)


def both_real(
    queries: Bool[Array, "batch query"], keys: Bool[Array, "batch key"]
) -> Bool[Array, "batch 1 query key"]:
    """Return True where a token stands at the query's and at the key's place."""
    return (queries[:, :, None] & keys[:, None, :])[:, None]


def segment_mask(
    queries: Int[Array, "batch query"], keys: Int[Array, "batch key"]
) -> Bool[Array, "batch 1 query key"]:
    """Return True where both belong to the same packed example."""
    return (queries[:, :, None] == keys[:, None, :])[:, None]


def causal_mask(length: int) -> Bool[np.ndarray, "1 1 length length"]:
    """Return True where the key is not after the query."""
    return np.tril(np.ones((length, length), bool))[None, None]


def append_to_cache(
    module: nn.Module, fresh: KeyValues, axes: tuple[str | None, ...]
) -> tuple[KeyValues, Int[Array, ""] | None]:
    """Add the keys and values of one position to those of a module's `cache` collection.

    **Arguments:**

    - `module`: whose `__call__` is under way.
    - `fresh`: one position; or, where there is no cache yet, as many as it is to hold.
    - `axes`: logical axes of the cache.

    **Returns:** what is cached and the position of what was added; `fresh` itself and None where
    the cache was only made.
    """
    started = module.has_variable("cache", "cached_key")
    key = module.variable("cache", "cached_key", jnp.zeros_like, fresh.key)
    value = module.variable("cache", "cached_value", jnp.zeros_like, fresh.value)
    index = module.variable("cache", "cache_index", jnp.zeros, (), jnp.int32)
    if not started:
        return fresh, None
    if fresh.key.shape != (*key.value.shape[:-1], 1):
        raise ValueError(
            f"A decoding step's keys have shape {fresh.key.shape}; the cache of shape "
            f"{key.value.shape} takes one position of the same batch and heads."
        )
    now = index.value
    for cached, new in ((key, fresh.key), (value, fresh.value)):
        extended = lax.dynamic_update_slice_in_dim(cached.value, new, now, axis=-1)
        cached.value = with_logical_constraint(extended, axes)
    index.value = now + 1
    return KeyValues(key.value, value.value), now


def _query_init(rng: jax.Array, shape: tuple[int, int], dtype: Any, head_dim: int) -> Array:
    drawn: Array = attention_init(rng, shape, dtype) / np.sqrt(head_dim)
    return drawn


class Attention(nn.Module):
    """Attention of queries projected from a sequence to keys and values given to it.

    Self-attention is `attention(x, attention.key_values(x), ...)`; cross-attention gets the
    `key_values` of the encoded inputs, projected once however many steps decoding takes.
    """

    config: T5Config

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        heads, axes = (cfg.num_heads, cfg.head_dim), ("embed", "joined_kv")
        dense = functools.partial(Dense, lora=cfg.lora)

        def query_init(rng: jax.Array, shape: tuple[int, int], dtype: Any) -> Array:
            return _query_init(rng, shape, dtype, cfg.head_dim)

        self.query = dense(heads, axes, cfg.dtype, query_init)
        self.key = dense(heads, axes, cfg.dtype, attention_init)
        self.value = dense(heads, axes, cfg.dtype, attention_init)
        self.out = dense(
            (cfg.emb_dim,), ("joined_kv", "embed"), cfg.dtype, attention_init, contracted=2
        )
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def key_values(self, inputs: Float[Array, "batch length embed"]) -> KeyValues:
        """Project a sequence to keys and values, [batch, heads, head_dim, length] each."""

        def project(dense: Dense) -> Array:
            projected = with_logical_constraint(dense(inputs), ("batch", "length", "heads", "kv"))
            moved: Array = projected.transpose(0, 2, 3, 1)
            return moved

        return KeyValues(project(self.key), project(self.value))

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "rows length embed"],
        key_values: KeyValues,
        mask: Bool[Array, "..."] | None,
        bias: Float[Array, "1 heads _ _"] | None = None,
        *,
        deterministic: bool,
        use_cache: bool = False,
    ) -> Float[Array, "rows length embed"]:
        """Attend.

        `rows` may be a multiple K of the batch of `key_values`: K beams of an example in a row,
        which then share its keys and values as if they were K times as many queries.

        - `mask`: broadcastable to [batch, 1, queries, keys], queries = K * length; None: all.
        - `bias`: of every query and key; of offsets (`RelativePositionBias.by_offset`) in a
          decoding step.
        - `use_cache`: the first call makes the cache, as long as `key_values`; the next calls
          bring one position each, add it, and attend to what is there so far.
        """
        cfg = self.config
        query = with_logical_constraint(self.query(inputs), ("batch", "length", "heads", "kv"))
        if use_cache:
            key_values, mask, bias = self._extend_cache(key_values, mask, bias)
        batch = key_values.key.shape[0]
        if query.shape[0] % batch:
            raise ValueError(
                f"{query.shape[0]} query rows are no multiple of the {batch} rows of the keys."
            )
        query = query.reshape(batch, -1, cfg.num_heads, cfg.head_dim)
        weights = self._weights(query, key_values.key, mask, bias)
        weights = self.dropout(weights, deterministic=deterministic)
        attended = jnp.einsum("bhqk,bhdk->bqhd", weights, key_values.value)
        return self.out(attended.reshape(*inputs.shape[:2], cfg.num_heads, cfg.head_dim))

    def _weights(
        self,
        query: Float[Array, "batch query heads head_dim"],
        key: Float[Array, "batch heads head_dim key"],
        mask: Bool[Array, "..."] | None,
        bias: Float[Array, "1 heads _ _"] | None,
    ) -> Float[Array, "batch heads query key"]:
        cfg = self.config
        precise = jnp.float32 if cfg.float32_attention_logits else None
        logits = jnp.einsum("bqhd,bhdk->bhqk", query, key, preferred_element_type=precise)
        if bias is not None:
            logits = logits + bias.astype(logits.dtype)
        if mask is not None:
            # Added, as T5 does, so that a row that sees nothing has finite, even weights.
            logits = logits + jnp.where(mask, 0.0, MASKED).astype(logits.dtype)
        return jax.nn.softmax(logits).astype(cfg.dtype)

    def _extend_cache(
        self,
        fresh: KeyValues,
        mask: Bool[Array, "..."] | None,
        bias: Float[Array, "1 heads _ _"] | None,
    ) -> tuple[KeyValues, Bool[Array, "..."] | None, Float[Array, "1 heads _ _"] | None]:
        """Add one position to the cache; return what is cached, and that position's mask, bias."""
        cached, now = append_to_cache(self, fresh, CACHE_AXES)
        if now is None:
            return cached, mask, bias
        length = cached.key.shape[-1]
        if bias is not None and bias.shape[-1] != 2 * length - 1:
            raise ValueError(
                f"The cache has {length} positions but max_decode_length is "
                f"{(bias.shape[-1] + 1) // 2}: give decode() the length the cache was made with."
            )
        past = (jnp.arange(length) <= now)[None, None, None]
        mask = past if mask is None else mask & past
        if bias is not None:
            bias = lax.dynamic_slice_in_dim(bias, length - 1 - now, length, axis=-1)
        return cached, mask, bias
