"""Decoder-only networks: one stack over a sequence that is both question and answer.

Gemma 1, 2 and 3, Llama 3, Qwen 2.5 and 3 differ in their configuration alone. Parameter paths:
`token_embedder/embedding`, `decoder/layers_0/attention/query/kernel`, ..., or, scanned,
`decoder/decoder/attention/query/kernel`; `decoder/decoder_norm/scale`.

Calls are those of an encoder-decoder, so that what trains, decodes and scores one does the other:
the encoder's tokens are the inputs without their last one, the decoder's input tokens are that one
and the targets but for the last. A row of the network is the former and then the latter, in which
segments say what belongs together; only the latter's hidden states are projected to logits.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.attention import (
    NO_TOKEN,
    KeyValues,
    causal_mask,
    real_tokens,
    segment_mask,
)
from promot_t5x.network.gemma.attention import Prefix, View
from promot_t5x.network.gemma.config import DecoderOnlyConfig
from promot_t5x.network.gemma.layers import soft_capped
from promot_t5x.network.gemma.stacks import (
    SelfAttentionLayer,
    embedder,
    norm,
    scaled,
    through,
)
from promot_t5x.network.layers import Dense, Embed
from promot_t5x.network.prompt import SoftPrompt
from promot_t5x.network.repeated import recomputed
from promot_t5x.network.stacks import CrossKeyValues, Hidden

Ids = Int[Array, "_ _"]


class DecoderOnly(nn.Module):
    """A causal network with the calls of a `Transformer`.

    Without segments, rows are filled up with `NO_TOKEN`.
    """

    config: DecoderOnlyConfig

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        self.token_embedder = embedder(cfg)
        if cfg.num_virtual_ids:
            # The prompt has the path that it has in an encoder: stages and files know one.
            self.encoder = _PromptedInputs(cfg, self.token_embedder)
        self.decoder = Stack(cfg, self.token_embedder)

    def hidden(
        self,
        encoder_input_tokens: Ids,
        decoder_input_tokens: Ids,
        decoder_target_tokens: Ids,
        encoder_segment_ids: Ids | None = None,
        decoder_segment_ids: Ids | None = None,
        encoder_positions: Ids | None = None,
        decoder_positions: Ids | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> Float[Array, "_ _ embed"]:
        """Return the final activations that predict targets, [batch, target length, embed].

        **Arguments:**

        - `encoder_input_tokens`: the inputs, virtual ids among them, without their last token.
        - `decoder_input_tokens`: that token and the targets without their last one.
        - `decoder_target_tokens`: not read.
        - `encoder_segment_ids`, `decoder_segment_ids`: which example each token is of, 0 for none;
          a token sees those of its own.
        - `encoder_positions`, `decoder_positions`: of the tokens within each side of their example;
          None numbers them from the start of the row.
        - `decode`: make the caches for decoding the length of `decoder_input_tokens`.
        """
        if decode:
            cross = self.encode(encoder_input_tokens, enable_dropout=enable_dropout)
            return self._following(
                cross,
                encoder_input_tokens,
                decoder_input_tokens,
                enable_dropout=enable_dropout,
                decode=True,
            )
        inputs = encoder_input_tokens.shape[1]
        if encoder_segment_ids is None or decoder_segment_ids is None:
            encoder_segment_ids = real_tokens(encoder_input_tokens, NO_TOKEN).astype(jnp.int32)
            decoder_segment_ids = jnp.ones_like(decoder_input_tokens)
        before, after = (
            jnp.broadcast_to(_numbered(tokens, given), tokens.shape)
            for tokens, given in (
                (encoder_input_tokens, encoder_positions),
                (decoder_input_tokens, decoder_positions),
            )
        )
        own = segment_mask(decoder_segment_ids, encoder_segment_ids)
        positions = jnp.concatenate([before, after + jnp.sum(own[:, 0], axis=-1)], axis=1)
        segments = jnp.concatenate([encoder_segment_ids, decoder_segment_ids], axis=1)
        seen = jnp.asarray(causal_mask(segments.shape[1]))
        if self.config.prefix_mask:
            of_inputs = jnp.concatenate([jnp.ones_like(before), after == 0], axis=1) > 0
            seen = seen | of_inputs[:, None, None, :]
        tokens = jnp.concatenate([encoder_input_tokens, decoder_input_tokens], axis=1)
        hidden, _ = self.decoder(
            self._embedded(tokens),
            seen & segment_mask(segments, segments),
            positions,
            deterministic=not enable_dropout,
        )
        return hidden[:, inputs:]

    def encode(
        self,
        encoder_input_tokens: Ids,
        enable_dropout: bool = True,
    ) -> CrossKeyValues:
        """Return every layer's keys and values of whole inputs, their last token included."""
        real = real_tokens(encoder_input_tokens, NO_TOKEN)
        mask = jnp.asarray(causal_mask(real.shape[1]))
        if self.config.prefix_mask:
            mask = jnp.broadcast_to(real[:, None, None, :], (len(real), 1, *mask.shape[2:]))
        _, key_values = self.decoder(
            self._embedded(encoder_input_tokens),
            mask,
            _numbered(encoder_input_tokens),
            deterministic=not enable_dropout,
            keep=True,
        )
        assert key_values is not None
        return key_values

    def cross_key_values(self, encoded: CrossKeyValues) -> CrossKeyValues:
        """Return what `encode` found: there is nothing more to project."""
        return encoded

    def decode(
        self,
        encoded: CrossKeyValues | None,
        encoder_input_tokens: Ids,
        decoder_input_tokens: Ids,
        decoder_target_tokens: Ids,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        cross_key_values: CrossKeyValues | None = None,
    ) -> Float[Array, "_ _ vocab"]:
        """Compute the logits of tokens that follow inputs, or of one position of them.

        **Arguments:** those of `Transformer.decode`; `encoder_input_tokens` are without their last
        token, which begins the decoder's, and `encoded` is of whole inputs.
        """
        del decoder_target_tokens, max_decode_length  # as no token is masked; the cache knows
        cross = encoded if cross_key_values is None else cross_key_values
        assert cross is not None
        return self.logits(
            self._following(
                cross,
                encoder_input_tokens,
                decoder_input_tokens,
                enable_dropout=enable_dropout,
                decode=decode,
            )
        )

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project final activations to float32 logits."""
        return self.decoder.logits(hidden)

    def __call__(self, *tokens: Any, **how: Any) -> Float[Array, "_ _ vocab"]:
        """Compute the logits of the targets; arguments are those of `hidden`."""
        return self.logits(self.hidden(*tokens, **how))

    def _following(
        self,
        cross: CrossKeyValues,
        before: Int[Array, "batch inputs"],
        tokens: Int[Array, "rows length"],
        *,
        enable_dropout: bool,
        decode: bool,
    ) -> Float[Array, "rows length embed"]:
        """Run rows of tokens behind inputs whose keys and values are known."""
        real = real_tokens(before, NO_TOKEN)
        first = jnp.repeat(jnp.sum(real, axis=1), len(tokens) // len(real))[:, None]
        hidden, _ = self.decoder(
            self._embedded(tokens),
            None if decode and tokens.shape[1] == 1 else jnp.asarray(causal_mask(tokens.shape[1])),
            first + _numbered(tokens),
            deterministic=not enable_dropout,
            cross=cross,
            real=real,
            decode=decode,
        )
        return hidden

    def _embedded(self, ids: Ids) -> Hidden:
        embed = self.encoder if self.config.num_virtual_ids else self.token_embedder
        embedded: Array = embed(ids)
        return embedded


def _numbered(tokens: Ids, given: Ids | None = None) -> Int[Array, "_ length"]:
    return jnp.arange(tokens.shape[1])[None] if given is None else given


class _PromptedInputs(nn.Module):
    """The embedding of ids some of which are virtual."""

    config: DecoderOnlyConfig
    token_embedder: Embed

    def setup(self) -> None:
        self.prompt = SoftPrompt(self.config)

    def __call__(self, ids: Ids) -> Hidden:
        embedded: Array = self.prompt(ids, self.token_embedder)
        return embedded


class Stack(nn.Module):
    """The layers, from embeddings to hidden states, and those to logits."""

    config: DecoderOnlyConfig
    token_embedder: Embed

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        cfg = self.config
        if cfg.scan_layers:
            self.decoder = SelfAttentionLayer(cfg, cfg.post_norms)
        else:
            self.layers = [
                SelfAttentionLayer(cfg, cfg.post_norms) for _ in range(cfg.num_decoder_layers)
            ]
        self.decoder_norm = norm(cfg)
        self.dropout = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))
        if not cfg.logits_via_embedding:
            self.logits_dense = Dense(
                (cfg.vocab_size,), ("embed", "vocab"), jnp.float32, lora=cfg.lora
            )

    def __call__(
        self,
        embedded: Hidden,
        mask: Bool[Array, "_ 1 length length"] | None,
        positions: Int[Array, "_ length"],
        *,
        deterministic: bool,
        cross: CrossKeyValues | None = None,
        real: Bool[Array, "rows inputs"] | None = None,
        decode: bool = False,
        keep: bool = False,
    ) -> tuple[Hidden, CrossKeyValues | None]:
        """Run the stack on embeddings, under a mask of who attends to whom.

        **Arguments:**

        - `cross`: every layer's keys and values of what stands before, of which rows share some.
        - `real`: where tokens stand there.
        - `decode`: use the cache, see `GroupedAttention`.
        - `keep`: return every layer's keys and values.
        """
        cfg = self.config
        x = scaled(embedded, cfg) if cfg.scaled_embeddings else embedded
        x = self.dropout(x, deterministic=deterministic)

        def step(
            layer: nn.Module, x: Hidden, own: tuple[View, KeyValues | None]
        ) -> tuple[Hidden, KeyValues | None]:
            view, before = own
            # The layer computes them again, and the compiler once.
            kept = layer.key_values(x, positions, view) if keep else None
            x = layer(
                x,
                mask,
                positions,
                view,
                deterministic=deterministic,
                prefix=None if before is None or real is None else Prefix(before, real),
                decode=decode,
            )
            return x, kept

        run = step if decode else recomputed(step, cfg)
        layers = self.decoder if cfg.scan_layers else self.layers
        x, kept = through(run, layers, cfg.num_decoder_layers, cfg, x, cross)
        hidden: Array = self.dropout(self.decoder_norm(x), deterministic=deterministic)
        return hidden, kept if keep else None

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project hidden states to float32 logits."""
        cfg = self.config
        if cfg.logits_via_embedding:
            logits = self.token_embedder.products(hidden)
        else:
            logits = self.logits_dense(hidden)
        placed: Array = with_logical_constraint(
            soft_capped(logits, cfg.logits_soft_cap), ("batch", "length", "vocab")
        )
        return placed
