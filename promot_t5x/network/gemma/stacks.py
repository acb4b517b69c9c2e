"""T5Gemma's encoder and decoder: norms before and after each part, windows in every other layer.

Parameters and their paths are laid out as T5's are (`network.stacks`). All layers have the same
shapes, so a scanned stack is one loop whatever its layers see: each gets its view as values.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.attention import KeyValues
from promot_t5x.network.gemma.attention import GroupedAttention, Prefix, View
from promot_t5x.network.gemma.config import GroupedQueryConfig, T5GemmaConfig
from promot_t5x.network.gemma.layers import RmsNorm, rope_frequencies, soft_capped
from promot_t5x.network.layers import ACTIVATION_AXES, Embed, Mlp
from promot_t5x.network.prompt import SoftPrompt
from promot_t5x.network.repeated import LayerStep, recomputed, scanned
from promot_t5x.network.stacks import CrossKeyValues, Hidden

_UNBOUNDED = np.int32(2**30)  # a window as a value of a scanned layer that sees everything


def views(config: GroupedQueryConfig, depth: int) -> tuple[View, ...]:
    """Return what each layer of a stack sees, and how it rotates."""
    theta = config.rope_theta
    full = View(rope_frequencies(config.head_dim, theta, config.rope_factor), None)
    near = rope_frequencies(config.head_dim, config.sliding_rope_theta or theta)
    slides = View(near, config.sliding_window) if config.sliding_window else full
    period = config.full_attention_period
    return tuple(slides if (layer + 1) % period else full for layer in range(depth))


def stacked(found: tuple[View, ...]) -> View:
    """Return the layers' views as arrays to scan over."""
    windows = [view.window or _UNBOUNDED for view in found]
    return View(
        np.stack([view.frequencies for view in found]),
        np.array(windows, np.int32) if any(view.window for view in found) else None,
    )


def norm(config: GroupedQueryConfig) -> RmsNorm:
    """Return a norm of hidden states."""
    return RmsNorm(config.dtype, config.norm_epsilon, config.norm_plus_one)


def embedder(config: GroupedQueryConfig) -> Embed:
    """Return a vocabulary's table, whose rows have the size 1 once they are scaled."""
    return Embed(config, nn.initializers.normal(config.emb_dim**-0.5))


def scaled(embedded: Hidden, config: GroupedQueryConfig) -> Hidden:
    """Return embeddings times sqrt(emb_dim), which is rounded first, as Gemma was trained."""
    return embedded * jnp.asarray(np.sqrt(config.emb_dim), config.dtype)


class SelfAttentionLayer(nn.Module):
    """Self-attention and MLP, each normed before and, if it is asked for, after, and added."""

    config: GroupedQueryConfig
    post_norms: bool = True

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        self.pre_attention_layer_norm = norm(cfg)
        self.attention = GroupedAttention(cfg)
        self.pre_mlp_layer_norm = norm(cfg)
        self.mlp = Mlp(cfg)
        if self.post_norms:
            self.post_attention_layer_norm = norm(cfg)
            self.post_mlp_layer_norm = norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        inputs: Hidden,
        mask: Bool[Array, "_ 1 length length"] | None,
        positions: Int[Array, "_ length"],
        view: View,
        *,
        deterministic: bool,
        prefix: Prefix | None = None,
        decode: bool = False,
    ) -> Hidden:
        """Run the layer."""
        drop = functools.partial(self.dropout, deterministic=deterministic)
        inputs = with_logical_constraint(inputs, ACTIVATION_AXES)
        x = self.pre_attention_layer_norm(inputs)
        x = self.attention(x, None, mask, positions, view, prefix=prefix, use_cache=decode)
        x = inputs + drop(self.post_attention_layer_norm(x) if self.post_norms else x)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        output: Array = x + drop(self.post_mlp_layer_norm(y) if self.post_norms else y)
        return output

    def key_values(
        self, inputs: Hidden, positions: Int[Array, "_ length"], view: View
    ) -> KeyValues:
        """Keys and values that the layer attends to, for what comes after its inputs."""
        return self.attention.key_values(self.pre_attention_layer_norm(inputs), positions, view)


def through(
    step: LayerStep,
    layers: nn.Module | Sequence[nn.Module],
    depth: int,
    config: GroupedQueryConfig,
    x: Hidden,
    own: Any = None,
) -> tuple[Hidden, Any]:
    """Run hidden states through the layers of a stack.

    **Arguments:**

    - `step`: what one layer does: (layer, hidden states, (view, its own values)) to hidden states
      and an output.
    - `layers`: one after the other or, where `config` scans them, the one that stands for all.
    - `depth`: how many layers there are.
    - `own`: values of each layer, a tuple, or stacked on a leading axis where they are scanned.

    **Returns:** the hidden states and the layers' outputs, as `own` is laid out.
    """
    found = views(config, depth)
    if isinstance(layers, nn.Module):
        run: tuple[Hidden, Any] = scanned(step, depth)(layers, x, (stacked(found), own))
        return run
    outputs = []
    for i, layer in enumerate(layers):
        x, output = step(layer, x, (found[i], None if own is None else own[i]))
        outputs.append(output)
    return x, tuple(outputs)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoded inputs, and MLP."""

    config: T5GemmaConfig

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        self.pre_self_attention_layer_norm = norm(cfg)
        self.self_attention = GroupedAttention(cfg)
        self.post_self_attention_layer_norm = norm(cfg)
        self.pre_cross_attention_layer_norm = norm(cfg)
        self.encoder_decoder_attention = GroupedAttention(cfg)
        self.post_cross_attention_layer_norm = norm(cfg)
        self.pre_mlp_layer_norm = norm(cfg)
        self.mlp = Mlp(cfg)
        self.post_mlp_layer_norm = norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def cross_key_values(self, encoded: Float[Array, "rows source embed"]) -> KeyValues:
        """Keys and values of the encoded inputs for this layer; they have no positions."""
        return self.encoder_decoder_attention.key_values(encoded)

    def __call__(
        self,
        inputs: Hidden,
        cross: KeyValues,
        mask: Bool[Array, "batch 1 length length"] | None,
        cross_mask: Bool[Array, "rows 1 _ source"],
        positions: Int[Array, "_ length"],
        view: View,
        *,
        deterministic: bool,
        decode: bool,
    ) -> Hidden:
        """Run the layer."""
        drop = functools.partial(self.dropout, deterministic=deterministic)
        inputs = with_logical_constraint(inputs, ACTIVATION_AXES)
        x = self.pre_self_attention_layer_norm(inputs)
        x = self.self_attention(x, None, mask, positions, view, use_cache=decode)
        x = inputs + drop(self.post_self_attention_layer_norm(x))
        y = self.encoder_decoder_attention(
            self.pre_cross_attention_layer_norm(x), cross, cross_mask
        )
        y = x + drop(self.post_cross_attention_layer_norm(y))
        z = self.mlp(self.pre_mlp_layer_norm(y), deterministic=deterministic)
        output: Array = y + drop(self.post_mlp_layer_norm(z))
        return output


class Encoder(nn.Module):
    """The encoder's stack, from ids to its last hidden states."""

    config: T5GemmaConfig
    token_embedder: Embed

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if cfg.num_virtual_ids:
            self.prompt = SoftPrompt(cfg)
        if cfg.scan_layers:
            self.encoder = SelfAttentionLayer(cfg)
        else:
            self.layers = [SelfAttentionLayer(cfg) for _ in range(cfg.num_encoder_layers)]
        self.encoder_norm = norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch 1 length length"],
        positions: Int[Array, "_ length"],
        *,
        deterministic: bool,
    ) -> Hidden:
        """Encode ids, virtual ones among them, under a mask of who attends to whom."""
        cfg = self.config
        embedder = self.token_embedder
        x = self.prompt(ids, embedder) if cfg.num_virtual_ids else embedder(ids)
        x = self.dropout(scaled(x, cfg), deterministic=deterministic)

        def step(layer: nn.Module, x: Hidden, own: tuple[View, None]) -> tuple[Hidden, None]:
            return layer(x, mask, positions, own[0], deterministic=deterministic), None

        layers = self.encoder if cfg.scan_layers else self.layers
        x, _ = through(recomputed(step, cfg), layers, cfg.num_encoder_layers, cfg, x)
        encoded: Array = self.dropout(self.encoder_norm(x), deterministic=deterministic)
        return encoded


class Decoder(nn.Module):
    """The decoder's stack with an embedding of its own, which also projects to logits.

    **Attributes:**

    - `config`: whose widths are the decoder's (`T5GemmaConfig.of_decoder`).
    """

    config: T5GemmaConfig

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        self.token_embedder = embedder(cfg)
        if cfg.scan_layers:
            self.decoder = DecoderLayer(cfg)
        else:
            self.layers = [DecoderLayer(cfg) for _ in range(cfg.num_decoder_layers)]
        self.decoder_norm = norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def cross_key_values(self, encoded: Float[Array, "rows source embed"]) -> CrossKeyValues:
        """Keys and values of every layer: a tuple, or stacked on a leading axis if scanned."""
        cfg = self.config

        def step(layer: nn.Module, _: None, __: None) -> tuple[None, KeyValues]:
            return None, layer.cross_key_values(encoded)

        if cfg.scan_layers:
            loop = scanned(step, cfg.num_decoder_layers)
            stacked: KeyValues = loop(self.decoder, None, None)[1]
            return stacked
        return tuple(layer.cross_key_values(encoded) for layer in self.layers)

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        encoded: Float[Array, "rows source _"] | None,
        cross: CrossKeyValues | None,
        mask: Bool[Array, "batch 1 length length"] | None,
        cross_mask: Bool[Array, "rows 1 _ source"],
        positions: Int[Array, "_ length"],
        *,
        deterministic: bool,
        decode: bool,
        max_decode_length: int | None,
    ) -> Hidden:
        """Run the stack on decoder ids; `cross` replaces `encoded` where it is given."""
        del max_decode_length  # the cache knows its length
        cfg = self.config
        y = self.dropout(scaled(self.token_embedder(ids), cfg), deterministic=deterministic)

        def step(
            layer: nn.Module, y: Hidden, own: tuple[View, KeyValues | None]
        ) -> tuple[Hidden, None]:
            view, kv = own
            # Projected here, inside the step, so that a recomputed layer need not keep them.
            kv = layer.cross_key_values(encoded) if kv is None else kv
            y = layer(
                y,
                kv,
                mask,
                cross_mask,
                positions,
                view,
                deterministic=deterministic,
                decode=decode,
            )
            return y, None

        run = step if decode else recomputed(step, cfg)
        layers = self.decoder if cfg.scan_layers else self.layers
        y, _ = through(run, layers, cfg.num_decoder_layers, cfg, y, cross)
        hidden: Array = self.dropout(self.decoder_norm(y), deterministic=deterministic)
        return hidden

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project hidden states to float32 logits by the decoder's embedding."""
        products = self.token_embedder.products(hidden)
        logits = soft_capped(products, self.config.logits_soft_cap)
        placed: Array = with_logical_constraint(logits, ("batch", "length", "vocab"))
        return placed
