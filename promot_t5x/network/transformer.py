"""An encoder-decoder of any family as a flax module with T5X's signatures and parameter tree.

The module trains under upstream T5X as it is. What it adds: soft prompts (`prompt`), stacks of
layers scanned or recomputed (`stacks`), logits computed apart from the hidden states, and
cross-attention keys and values that are projected once and shared by the beams of an example.

Parameter paths: `token_embedder/embedding`, `encoder/layers_0/attention/query/kernel`, ...,
`decoder/logits_dense/kernel`; scanned, `encoder/encoder/attention/query/kernel`.
"""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Shaped

from promot_t5x.network.attention import both_real, causal_mask, real_tokens, segment_mask
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.config import T5Config as T5Config
from promot_t5x.network.families import family_of
from promot_t5x.network.stacks import CrossKeyValues, Hidden

# Of any type: T5X initializes a module with float32 ones, which stand for ids all the same.
Tokens = Shaped[Array | np.ndarray, "_ _"]


class Transformer(nn.Module):
    """An encoder-decoder with T5X's `__call__`, `encode` and `decode`.

    Tokens are [batch, length], padded with 0 at their end. Positions are those of a packed row's
    tokens within their example; without them tokens are numbered from the start of the row.
    """

    config: NetworkConfig

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        family = family_of(self.config)
        self.token_embedder = family.embedder(self.config)
        self.encoder = family.encoder(self.config, self.token_embedder)
        self.decoder = family.decoder(self.config, self.token_embedder)

    @property
    def scan_layers(self) -> bool:
        """Whether caches have a leading axis of layers; upstream's decoding asks for it."""
        return self.config.scan_layers

    def encode(
        self,
        encoder_input_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        enable_dropout: bool = True,
        encoder_positions: Tokens | None = None,
    ) -> Hidden:
        """Encode [batch, length] ids, virtual ones among them, to [batch, length, embed]."""
        ids = _as_ids(encoder_input_tokens)
        real = _real(ids, encoder_segment_ids)
        mask = both_real(real, real)
        if encoder_segment_ids is not None:
            segments = _as_ids(encoder_segment_ids)
            mask = mask & segment_mask(segments, segments)
        positions = _positions(ids, encoder_positions)
        return self.encoder(ids, mask, positions, deterministic=not enable_dropout)

    def cross_key_values(self, encoded: Hidden) -> CrossKeyValues:
        """Project encoded inputs to every decoder layer's keys and values, for `decode`.

        Returns a `KeyValues` a layer in a tuple, or one with a leading axis of layers if the
        layers are scanned; each array is [batch, heads, head_dim, length].
        """
        return self.decoder.cross_key_values(encoded)

    def decode(
        self,
        encoded: Float[Array, "_ _ encoded"] | None,
        encoder_input_tokens: Tokens,
        decoder_input_tokens: Tokens,
        decoder_target_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        decoder_segment_ids: Tokens | None = None,
        decoder_positions: Tokens | None = None,
        enable_dropout: bool = True,
        decode: bool = False,
        max_decode_length: int | None = None,
        cross_key_values: CrossKeyValues | None = None,
    ) -> Float[Array, "_ _ vocab"]:
        """Compute the logits of decoder tokens, or of one position of them.

        - `encoder_input_tokens`: for the mask; of the batch of `encoded`.
        - decoder tokens: their batch may be K times the encoder's, K rows for each example in
          turn, which share what is encoded of it.
        - `decode`: use the cache collection. The first call makes it, as long as
          `decoder_input_tokens`; the next ones take one position, [batch, 1], each, and
          `max_decode_length`, the cache's length.
        - `cross_key_values`: of the method of this name; `encoded` is then not read and may be
          None.
        """
        hidden = self._decoder_hidden(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout=enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
            cross_key_values=cross_key_values,
        )
        return self.decoder.logits(hidden)

    def hidden(
        self,
        encoder_input_tokens: Tokens,
        decoder_input_tokens: Tokens,
        decoder_target_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        decoder_segment_ids: Tokens | None = None,
        encoder_positions: Tokens | None = None,
        decoder_positions: Tokens | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> Float[Array, "_ _ embed"]:
        """Return the decoder's final activations, [batch, length, embed], which `logits` projects.

        A loss that projects them a few tokens at a time never holds [batch, length, vocab].
        """
        encoded = self.encode(
            encoder_input_tokens, encoder_segment_ids, enable_dropout, encoder_positions
        )
        return self._decoder_hidden(
            encoded,
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            decoder_positions,
            enable_dropout=enable_dropout,
            decode=decode,
        )

    def logits(self, hidden: Hidden) -> Float[Array, "batch length vocab"]:
        """Project final activations to float32 logits."""
        return self.decoder.logits(hidden)

    def __call__(
        self,
        encoder_input_tokens: Tokens,
        decoder_input_tokens: Tokens,
        decoder_target_tokens: Tokens,
        encoder_segment_ids: Tokens | None = None,
        decoder_segment_ids: Tokens | None = None,
        encoder_positions: Tokens | None = None,
        decoder_positions: Tokens | None = None,
        *,
        enable_dropout: bool = True,
        decode: bool = False,
    ) -> Float[Array, "_ _ vocab"]:
        """Compute the logits, [batch, target length, vocab], of a batch with teacher forcing.

        Packed batches come with the segment ids of both sides. `decode=True` makes the caches
        for decoding `decoder_input_tokens`' length.
        """
        hidden = self.hidden(
            encoder_input_tokens,
            decoder_input_tokens,
            decoder_target_tokens,
            encoder_segment_ids,
            decoder_segment_ids,
            encoder_positions,
            decoder_positions,
            enable_dropout=enable_dropout,
            decode=decode,
        )
        return self.decoder.logits(hidden)

    def _decoder_hidden(
        self,
        encoded: Float[Array, "_ _ encoded"] | None,
        encoder_input_tokens: Tokens,
        decoder_input_tokens: Tokens,
        decoder_target_tokens: Tokens,
        encoder_segment_ids: Tokens | None,
        decoder_segment_ids: Tokens | None,
        decoder_positions: Tokens | None,
        *,
        enable_dropout: bool,
        decode: bool,
        max_decode_length: int | None = None,
        cross_key_values: CrossKeyValues | None = None,
    ) -> Float[Array, "_ _ embed"]:
        sources, targets = _as_ids(encoder_input_tokens), _as_ids(decoder_target_tokens)
        if decode:
            if encoder_segment_ids is not None or decoder_segment_ids is not None:
                raise ValueError("Packed examples cannot be decoded: segment ids were given.")
            # What was generated is never padding, whatever its id.
            mask, cross_mask = None, real_tokens(sources)[:, None, None, :]
        else:
            mask, cross_mask = _decoder_masks(
                sources, targets, encoder_segment_ids, decoder_segment_ids
            )
        inputs = _as_ids(decoder_input_tokens)
        return self.decoder(
            inputs,
            encoded,
            cross_key_values,
            mask,
            cross_mask,
            _positions(inputs, decoder_positions),
            deterministic=not enable_dropout,
            decode=decode,
            max_decode_length=max_decode_length,
        )


def _as_ids(tokens: Tokens) -> Int[Array, "_ _"]:
    return jnp.asarray(tokens).astype(jnp.int32)


def _positions(ids: Int[Array, "batch length"], given: Tokens | None) -> Int[Array, "_ length"]:
    return jnp.arange(ids.shape[1])[None] if given is None else _as_ids(given)


def _real(ids: Int[Array, "batch length"], segment_ids: Tokens | None) -> Bool[Array, "_ _"]:
    """Where tokens stand. Only without segments must ids say it, of which 0 may be a token's."""
    return real_tokens(ids) if segment_ids is None else _as_ids(segment_ids) > 0


def _decoder_masks(
    sources: Int[Array, "rows source"],
    targets: Int[Array, "batch target"],
    encoder_segment_ids: Tokens | None,
    decoder_segment_ids: Tokens | None,
) -> tuple[Bool[Array, "batch 1 target target"], Bool[Array, "rows 1 queries source"]]:
    """Masks of self- and cross-attention; rows that share a source are queries of one row."""
    rows = sources.shape[0]
    real = _real(targets, decoder_segment_ids)
    mask = both_real(real, real) & causal_mask(targets.shape[1])
    cross_mask = both_real(real.reshape(rows, -1), _real(sources, encoder_segment_ids))
    if (encoder_segment_ids is None) != (decoder_segment_ids is None):
        raise ValueError("Segment ids must be given for both the encoder and the decoder.")
    if encoder_segment_ids is not None and decoder_segment_ids is not None:
        segments = _as_ids(decoder_segment_ids)
        mask = mask & segment_mask(segments, segments)
        cross_mask = cross_mask & segment_mask(
            segments.reshape(rows, -1), _as_ids(encoder_segment_ids)
        )
    return mask, cross_mask
