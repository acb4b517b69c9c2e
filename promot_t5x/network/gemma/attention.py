"""Attention whose heads of keys and values serve several queries, with windows and soft caps."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import logical_to_mesh_axes, with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.attention import MASKED, KeyValues, append_to_cache
from promot_t5x.network.gemma.config import GroupedQueryConfig
from promot_t5x.network.gemma.layers import RmsNorm, rotated, soft_capped
from promot_t5x.network.layers import Dense


class View(NamedTuple):
    """What sets a layer apart from the others of its stack.

    **Attributes:**

    - `frequencies`: of the rotary positions, see `rope_frequencies`.
    - `window`: keys at a distance of so many positions, or more, are not seen; None: all are.
    """

    frequencies: Float[Array | np.ndarray, "..."]
    window: Int[Array | np.ndarray, "..."] | int | None


class Prefix(NamedTuple):
    """The keys and values of what stands before a sequence, which its rows may share.

    **Attributes:**

    - `key_values`: of one layer, rotated.
    - `real`: where tokens stand, at the positions 0, 1, 2, ...
    """

    key_values: KeyValues
    real: Bool[Array, "batch length"]


class GroupedAttention(nn.Module):
    """Self-attention with rotary positions, or attention to keys and values given to it.

    Head h of the queries reads head h // (num_heads / num_kv_heads) of the keys and values.
    """

    config: GroupedQueryConfig

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        axes, dense = ("embed", "joined_kv"), functools.partial(Dense, lora=cfg.lora)
        biased = functools.partial(dense, use_bias=cfg.qkv_bias)
        self.query = biased((cfg.num_heads, cfg.head_dim), axes, cfg.dtype)
        self.key = biased((cfg.num_kv_heads, cfg.head_dim), axes, cfg.dtype)
        self.value = biased((cfg.num_kv_heads, cfg.head_dim), axes, cfg.dtype)
        self.out = dense((cfg.emb_dim,), ("joined_kv", "embed"), cfg.dtype, contracted=2)
        if cfg.qk_norm:
            norm = functools.partial(
                RmsNorm, cfg.dtype, cfg.norm_epsilon, cfg.norm_plus_one, axis="kv"
            )
            self.query_norm, self.key_norm = norm(), norm()

    def key_values(
        self,
        inputs: Float[Array, "batch length embed"],
        positions: Int[Array, "_ length"] | None = None,
        view: View | None = None,
    ) -> KeyValues:
        """Project a sequence to keys and values; keys are rotated where there are positions."""
        cfg = self.config
        key, value = self.key(inputs), self.value(inputs)
        if cfg.qk_norm:
            key = self.key_norm(key)
        if positions is not None and view is not None:
            key = rotated(key, positions, view.frequencies)
        axes = ("batch", "length", _axis_of(cfg.num_kv_heads), "kv")
        key, value = (with_logical_constraint(x, axes) for x in (key, value))
        return KeyValues(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 3, 1))

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "rows length embed"],
        cross: KeyValues | None,
        mask: Bool[Array, "..."] | None,
        positions: Int[Array, "_ length"] | None = None,
        view: View | None = None,
        *,
        prefix: Prefix | None = None,
        use_cache: bool = False,
    ) -> Float[Array, "rows length embed"]:
        """Attend.

        `rows` may be a multiple K of the batch of `cross` or `prefix`: K beams of an example in a
        row share its keys and values.

        **Arguments:**

        - `cross`: keys and values; None projects them from `inputs`, which then need `positions`
          and a `view`.
        - `mask`: broadcastable to [batch, 1, queries, keys]; None: all.
        - `positions`: of the tokens within their example.
        - `view`: the layer's.
        - `prefix`: what stands before the inputs, to which they attend too.
        - `use_cache`: the first call makes the cache, as long as `inputs`; the next calls bring
          one token each, and the position of the first.
        """
        cfg = self.config
        query = self.query(inputs)
        if cfg.qk_norm:
            query = self.query_norm(query)
        if cross is not None:
            parts = [(cross, mask)]
        else:
            assert positions is not None
            assert view is not None
            first, now = positions, None
            if use_cache and self.has_variable("cache", "cache_index"):
                positions = first + self.get_variable("cache", "cache_index")
            query = rotated(query, positions, view.frequencies)
            key_values = self.key_values(inputs, positions, view)
            keyed = positions
            if use_cache:
                axes = ("batch", _axis_of(cfg.num_kv_heads), "kv", "length")
                key_values, now = append_to_cache(self, key_values, axes)
            if now is not None:
                places = jnp.arange(key_values.key.shape[-1])[None]
                keyed = first + places
                mask = places[:, None, None, :] <= now
            parts = [(key_values, _windowed(mask, positions, keyed, view.window))]
            if prefix is not None:
                rows, length = inputs.shape[:2]
                shared = jnp.repeat(prefix.real, rows // len(prefix.real), axis=0)
                real = jnp.broadcast_to(shared[:, None, None], (rows, 1, length, shared.shape[1]))
                places = jnp.arange(shared.shape[1])[None]
                before = _windowed(real, positions, places, view.window)
                parts.insert(0, (prefix.key_values, before))
        query = with_logical_constraint(query, ("batch", "length", "heads", "kv"))
        attended = self._attend(query, parts)
        return self.out(attended.reshape(*inputs.shape[:2], cfg.num_heads, cfg.head_dim))

    def _attend(
        self,
        query: Float[Array, "rows length heads head_dim"],
        parts: Sequence[tuple[KeyValues, Bool[Array, "..."] | None]],
    ) -> Float[Array, "batch queries kv_heads group head_dim"]:
        """Attend to all parts under one softmax; the first has the fewest rows."""
        cfg = self.config
        query = query * jnp.asarray(cfg.query_scale**-0.5, query.dtype)
        found = [self._logits(query, key_values, mask) for key_values, mask in parts]
        batch = found[0].shape[0]
        logits = jnp.concatenate([_merged(part, batch) for part in found], axis=-1)
        weights = jax.nn.softmax(logits).astype(cfg.dtype)
        ends = np.cumsum([part.shape[-1] for part in found])[:-1]
        attended = [
            jnp.einsum("bhgqk,bhdk->bqhgd", _divided(own, len(value)), value)
            for own, ((_, value), _) in zip(jnp.split(weights, ends, axis=-1), parts, strict=True)
        ]
        shape = (batch, -1, *attended[0].shape[2:])
        whole: Array = sum((part.reshape(shape) for part in attended[1:]), start=attended[0])
        return whole

    def _logits(
        self,
        query: Float[Array, "rows length heads head_dim"],
        key_values: KeyValues,
        mask: Bool[Array, "..."] | None,
    ) -> Float[Array, "batch kv_heads group queries keys"]:
        cfg = self.config
        batch = key_values.key.shape[0]
        if query.shape[0] % batch:
            raise ValueError(
                f"{query.shape[0]} query rows are no multiple of the {batch} rows of the keys."
            )
        query = query.reshape(batch, -1, cfg.num_kv_heads, self._group, cfg.head_dim)
        logits = jnp.einsum(
            "bqhgd,bhdk->bhgqk", query, key_values.key, preferred_element_type=jnp.float32
        )
        logits = soft_capped(logits, cfg.attention_soft_cap)
        if mask is not None:
            # Rows that share keys are queries of one row. Added, so that a row that sees nothing
            # has finite, even weights.
            if mask.shape[0] > batch:
                mask = mask.reshape(batch, 1, -1, mask.shape[-1])
            logits = logits + jnp.where(mask[:, :, None], 0.0, MASKED)
        return logits

    @property
    def _group(self) -> int:
        return self.config.num_heads // self.config.num_kv_heads


def _windowed(
    mask: Bool[Array, "..."] | None,
    queries: Int[Array, "_ query"],
    keys: Int[Array, "_ key"],
    window: Int[Array | np.ndarray, ""] | int | None,
) -> Bool[Array, "..."] | None:
    """Return a mask that also ends at the window; `queries` and `keys` are positions."""
    if window is None:
        return mask
    near = jnp.abs(queries[:, None, :, None] - keys[:, None, None, :]) < window
    return near if mask is None else mask & near


def _merged(
    x: Float[Array, "rows kv_heads group length keys"], batch: int
) -> Float[Array, "batch kv_heads group queries keys"]:
    """Make the rows of an example the queries of one row."""
    rows, heads, group, length, keys = x.shape
    if rows == batch:
        return x
    split = x.reshape(batch, rows // batch, heads, group, length, keys)
    return split.transpose(0, 2, 3, 1, 4, 5).reshape(batch, heads, group, -1, keys)


def _divided(
    x: Float[Array, "batch kv_heads group queries keys"], rows: int
) -> Float[Array, "rows kv_heads group length keys"]:
    """Undo `_merged`."""
    batch, heads, group, _, keys = x.shape
    if rows == batch:
        return x
    split = x.reshape(batch, heads, group, rows // batch, -1, keys)
    return split.transpose(0, 3, 1, 2, 4, 5).reshape(rows, heads, group, -1, keys)


def _axis_of(heads: int) -> str | None:
    """Logical axis of heads, or None, for whole on each device, where the mesh cannot split them.

    A single head of keys and values serves queries that may well be split.
    """
    spec = logical_to_mesh_axes(("heads",))
    split = (spec[0] or ()) if spec else ()
    sizes = jax.sharding.get_abstract_mesh().shape
    ways = 1
    for name in (split,) if isinstance(split, str) else split:
        ways *= sizes.get(name, 1)
    return None if heads % ways else "heads"
