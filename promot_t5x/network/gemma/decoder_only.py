"""Decoder-only networks: one stack over a sequence that is both question and answer.

Gemma 1, 2 and 3, Llama 3, Qwen 2.5 and 3 differ in their configuration alone. Parameter paths:
`token_embedder/embedding`, `decoder/layers_0/attention/query/kernel`, ..., or, scanned,
`decoder/decoder/attention/query/kernel`; `decoder/decoder_norm/scale`.
"""

import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from promot_t5x.network.attention import causal_mask, segment_mask
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
from promot_t5x.network.stacks import Hidden

Ids = Int[Array, "batch length"]


class DecoderOnly(nn.Module):
    """A causal network of tokens to the logits of the tokens that follow them."""

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
        tokens: Ids,
        segment_ids: Ids | None = None,
        positions: Int[Array, "_ length"] | None = None,
        *,
        enable_dropout: bool = True,
    ) -> Hidden:
        """Return the final activations, [batch, length, embed], which `logits` projects.

        **Arguments:**

        - `tokens`: ids, virtual ones among them. Nothing sees what follows it, so padding at the
          end of a row needs no mask.
        - `segment_ids`: of packed rows: a token sees those of its own segment.
        - `positions`: of packed rows: of the tokens within their example; None numbers them from
          the start of the row.
        """
        mask = jnp.asarray(causal_mask(tokens.shape[1]))
        if segment_ids is not None:
            mask = mask & segment_mask(segment_ids, segment_ids)
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        embed = self.encoder if self.config.num_virtual_ids else self.token_embedder
        hidden: Array = self.decoder(
            embed(tokens), mask, positions, deterministic=not enable_dropout
        )
        return hidden

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project final activations to float32 logits."""
        return self.decoder.logits(hidden)

    def __call__(
        self,
        tokens: Ids,
        segment_ids: Ids | None = None,
        positions: Int[Array, "_ length"] | None = None,
        *,
        enable_dropout: bool = True,
    ) -> Float[Array, "batch length vocab"]:
        """Compute the logits of the token after each; arguments are those of `hidden`."""
        return self.logits(
            self.hidden(tokens, segment_ids, positions, enable_dropout=enable_dropout)
        )


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
        mask: Bool[Array, "_ 1 length length"],
        positions: Int[Array, "_ length"],
        *,
        deterministic: bool,
    ) -> Hidden:
        """Run the stack on embeddings, under a mask of who attends to whom."""
        cfg = self.config
        x = scaled(embedded, cfg) if cfg.scaled_embeddings else embedded
        x = self.dropout(x, deterministic=deterministic)

        layers, depth = self.decoder if cfg.scan_layers else self.layers, cfg.num_decoder_layers
        x = through(layers, depth, cfg, x, mask, positions, deterministic=deterministic)
        hidden: Array = self.dropout(self.decoder_norm(x), deterministic=deterministic)
        return hidden

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
