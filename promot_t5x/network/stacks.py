"""The encoder's and the decoder's stacks of layers: unrolled or scanned, kept or recomputed.

An unrolled stack has the parameters `layers_0/...`, `layers_1/...`; a scanned one compiles its
layer once and has each parameter once, with the layers on axis 1 (see `scan`), and each cache
with the layers on axis 0. The relative position bias is the stack's, outside of the layers, or, in
umT5, each layer's own.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.attention import Attention, KeyValues
from promot_t5x.network.config import T5Config
from promot_t5x.network.layers import (
    ACTIVATION_AXES,
    Dense,
    Embed,
    LayerNorm,
    Mlp,
    RelativePositionBias,
)
from promot_t5x.network.prompt import SoftPrompt
from promot_t5x.network.repeated import LayerStep, recomputed, scanned

Hidden = Float[Array, "batch length embed"]
# A tuple with an entry a layer, or one entry with a leading axis of layers if they are scanned.
CrossKeyValues = tuple[KeyValues, ...] | KeyValues


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each normed before and added to its input."""

    config: T5Config

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if cfg.relative_bias_per_layer:
            self.relpos_bias = RelativePositionBias(cfg, bidirectional=True)
        self.pre_attention_layer_norm = LayerNorm(cfg.dtype)
        self.attention = Attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def __call__(
        self,
        inputs: Hidden,
        mask: Bool[Array, "batch 1 length length"],
        bias: Float[Array, "1 heads length length"] | None,
        *,
        deterministic: bool,
    ) -> Hidden:
        """`bias`: the stack's; None where the layer has its own."""
        if bias is None:
            bias = self.relpos_bias(inputs.shape[1])
        inputs = with_logical_constraint(inputs, ACTIVATION_AXES)
        x = self.pre_attention_layer_norm(inputs)
        x = self.attention(x, self.attention.key_values(x), mask, bias, deterministic=deterministic)
        x = inputs + self.dropout(x, deterministic=deterministic)
        y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
        output: Array = x + self.dropout(y, deterministic=deterministic)
        return output


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoded inputs, and MLP."""

    config: T5Config

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if cfg.relative_bias_per_layer:
            self.relpos_bias = RelativePositionBias(cfg, bidirectional=False)
        self.pre_self_attention_layer_norm = LayerNorm(cfg.dtype)
        self.self_attention = Attention(cfg)
        self.pre_cross_attention_layer_norm = LayerNorm(cfg.dtype)
        self.encoder_decoder_attention = Attention(cfg)
        self.pre_mlp_layer_norm = LayerNorm(cfg.dtype)
        self.mlp = Mlp(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))

    def cross_key_values(self, encoded: Float[Array, "rows source embed"]) -> KeyValues:
        """Keys and values of the encoded inputs for this layer."""
        return self.encoder_decoder_attention.key_values(encoded)

    def __call__(
        self,
        inputs: Hidden,
        cross: KeyValues,
        mask: Bool[Array, "batch 1 length length"] | None,
        cross_mask: Bool[Array, "rows 1 _ source"],
        bias: Float[Array, "1 heads _ _"] | None,
        *,
        deterministic: bool,
        decode: bool,
        max_decode_length: int | None,
    ) -> Hidden:
        """`bias`: the stack's; None where the layer has its own."""
        if bias is None:
            bias = self.relpos_bias.of(inputs.shape[1], decode, max_decode_length)
        inputs = with_logical_constraint(inputs, ACTIVATION_AXES)
        x = self.pre_self_attention_layer_norm(inputs)
        x = self.self_attention(
            x,
            self.self_attention.key_values(x),
            mask,
            bias,
            deterministic=deterministic,
            use_cache=decode,
        )
        x = inputs + self.dropout(x, deterministic=deterministic)
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, cross, cross_mask, deterministic=deterministic)
        y = x + self.dropout(y, deterministic=deterministic)
        z = self.mlp(self.pre_mlp_layer_norm(y), deterministic=deterministic)
        output: Array = y + self.dropout(z, deterministic=deterministic)
        return output


class Encoder(nn.Module):
    """The encoder's stack, from ids to its last hidden states."""

    config: T5Config
    token_embedder: Embed

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if cfg.num_virtual_ids:
            self.prompt = SoftPrompt(cfg)
        if not cfg.relative_bias_per_layer:
            self.relpos_bias = RelativePositionBias(cfg, bidirectional=True)
        if cfg.scan_layers:
            self.encoder = EncoderLayer(cfg)
        else:
            self.layers = [EncoderLayer(cfg) for _ in range(cfg.num_encoder_layers)]
        self.encoder_norm = LayerNorm(cfg.dtype)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        # T5's last encoder dropout alone draws for every position.
        self.last_dropout = nn.Dropout(cfg.dropout_rate)

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        mask: Bool[Array, "batch 1 length length"],
        positions: Int[Array, "_ length"],
        *,
        deterministic: bool,
    ) -> Hidden:
        """Encode ids, virtual ones among them, under a mask of who attends to whom.

        `positions` are for other families: T5 knows relative positions only, and inside a packed
        example those need no help.
        """
        del positions
        cfg = self.config
        if cfg.num_virtual_ids:
            x = self.prompt(ids, self.token_embedder)
        else:
            x = self.token_embedder(ids)
        x = self.dropout(x, deterministic=deterministic)
        bias = None if cfg.relative_bias_per_layer else self.relpos_bias(ids.shape[1])

        def step(layer: nn.Module, x: Hidden, _: None) -> tuple[Hidden, None]:
            return layer(x, mask, bias, deterministic=deterministic), None

        run = recomputed(step, cfg)
        if cfg.scan_layers:
            x, _ = scanned(run, cfg.num_encoder_layers)(self.encoder, x, None)
        else:
            for layer in self.layers:
                x, _ = run(layer, x, None)
        encoded: Array = self.last_dropout(self.encoder_norm(x), deterministic=deterministic)
        return encoded


class Decoder(nn.Module):
    """The decoder's stack, from ids and encoded inputs to hidden states, and those to logits."""

    config: T5Config
    token_embedder: Embed

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if not cfg.relative_bias_per_layer:
            self.relpos_bias = RelativePositionBias(cfg, bidirectional=False)
        if cfg.scan_layers:
            self.decoder = DecoderLayer(cfg)
        else:
            self.layers = [DecoderLayer(cfg) for _ in range(cfg.num_decoder_layers)]
        self.decoder_norm = LayerNorm(cfg.dtype)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        if not cfg.logits_via_embedding:
            self.logits_dense = Dense(
                (cfg.vocab_size,), ("embed", "vocab"), jnp.float32, lora=cfg.lora
            )

    def cross_key_values(self, encoded: Float[Array, "rows source embed"]) -> CrossKeyValues:
        """Keys and values of every layer: a tuple, or stacked on a leading axis if scanned."""
        cfg = self.config

        def step(layer: nn.Module, _: None, __: None) -> tuple[None, KeyValues]:
            return None, layer.cross_key_values(encoded)

        if cfg.scan_layers:
            stacked: KeyValues = scanned(step, cfg.num_decoder_layers)(self.decoder, None, None)[1]
            return stacked
        return tuple(layer.cross_key_values(encoded) for layer in self.layers)

    def __call__(
        self,
        ids: Int[Array, "batch length"],
        encoded: Float[Array, "rows source embed"] | None,
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
        del positions
        cfg = self.config
        y = self.dropout(self.token_embedder(ids), deterministic=deterministic)
        bias = None
        if not cfg.relative_bias_per_layer:
            bias = self.relpos_bias.of(ids.shape[1], decode, max_decode_length)

        def step(layer: nn.Module, y: Hidden, kv: KeyValues | None) -> tuple[Hidden, None]:
            # Projected here, inside the step, so that a recomputed layer need not keep them.
            kv = layer.cross_key_values(encoded) if kv is None else kv
            y = layer(
                y,
                kv,
                mask,
                cross_mask,
                bias,
                deterministic=deterministic,
                decode=decode,
                max_decode_length=max_decode_length,
            )
            return y, None

        run: LayerStep = step if decode else recomputed(step, cfg)
        if cfg.scan_layers:
            y, _ = scanned(run, cfg.num_decoder_layers)(self.decoder, y, cross)
        else:
            for i, layer in enumerate(self.layers):
                y, _ = run(layer, y, None if cross is None else cross[i])
        hidden: Array = self.dropout(self.decoder_norm(y), deterministic=deterministic)
        return hidden

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project hidden states to float32 logits."""
        if self.config.logits_via_embedding:
            logits = self.token_embedder.attend(hidden)
        else:
            logits = self.logits_dense(hidden)
        placed: Array = with_logical_constraint(logits, ("batch", "length", "vocab"))
        return placed
