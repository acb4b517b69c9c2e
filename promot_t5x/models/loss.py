"""The training loss: cross-entropy with z-loss and label smoothing, a chunk of tokens at a time.

Values are those of `t5x.losses`: the sum (not the mean) over target tokens of
cross-entropy + z_loss * log(Z)^2, the entropy of the smoothed targets subtracted, optionally
divided by a `loss_normalizing_factor`.

What it costs: mT5 has 250,112 logits a token, 1 MB in float32, so the logits of a whole batch
would outgrow the model. `token_loss` projects to the vocabulary inside a scan over pieces of the
length axis and recomputes each piece in the backward pass: at most `chunk_tokens` tokens have
logits at any time, for one more projection a step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int, Num

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.models.objectives import BatchObjective, Objective, Terms

Projection = Callable[[Num[Array, "batch t embed"]], Float[Array, "batch t vocab"]]

SPECIAL_NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")


class LossSums(NamedTuple):
    """Sums over the tokens of a batch, each weighted; float32 scalars, additive over batches.

    total: cross_entropy + z_loss, or what an objective makes of them: the value to differentiate.
    cross_entropy: less the entropy of the smoothed targets, so that a perfect model gets 0.
    z_loss: z_loss * log(Z)^2.
    weight_sum: the sum of the weights, i.e. the number of target tokens when they are 0 or 1.
    correct: tokens whose target has the highest logit.
    """

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    z_loss: Float[Array, ""]
    weight_sum: Float[Array, ""]
    correct: Float[Array, ""]


def cross_entropy_with_logits(
    logits: Float[Array, "*tokens vocab"],
    targets: Int[Array, "*tokens"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "*tokens"], Float[Array, "*tokens"]]:
    """Return each token's cross-entropy and z-loss (float32), which T5X adds up.

    **Arguments:**

    - `logits`: unnormalized; computed with in float32 whatever their dtype.
    - `targets`: ids in [0, vocab).
    - `z_loss`: the coefficient of log(Z)^2 (T5 uses 1e-4), Z the softmax's normalizer.
    - `label_smoothing`: the probability that the target distribution spreads evenly over the other
      ids; the distribution's entropy is subtracted from the cross-entropy.
    """
    logits = logits.astype(jnp.float32)
    vocab = logits.shape[-1]
    # log Z does not depend on the shift, so holding it constant leaves the gradient exact.
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    shifted = logits - highest[..., None]
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    # A comparison and a sum stay local where the vocabulary is sharded; a gather would not.
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    is_target = is_target == targets[..., None]
    target_log_prob = jnp.sum(jnp.where(is_target, shifted, 0.0), axis=-1) - log_sum
    if label_smoothing:
        off = label_smoothing / (vocab - 1)
        all_log_probs = jnp.sum(shifted - log_sum[..., None], axis=-1)
        cross_entropy = -(1.0 - label_smoothing - off) * target_log_prob - off * all_log_probs
        cross_entropy -= _entropy(label_smoothing, vocab)
    else:
        cross_entropy = -target_log_prob
    return cross_entropy, z_loss * jnp.square(log_sum + highest)


class Base(NamedTuple):
    """The model that an objective compares with: its projection and its final activations."""

    project: Projection
    hidden: Float[Array, "batch length embed"]


def token_loss(
    project: Projection,
    hidden: Float[Array, "batch length embed"],
    targets: Int[Array, "batch length"],
    weights: Num[Array, "batch length"],
    *,
    z_loss: float,
    label_smoothing: float,
    chunk_tokens: int,
    objective: Objective | None = None,
    base: Base | None = None,
    segment_ids: Int[Array, "batch length"] | None = None,
) -> LossSums:
    """Project hidden states to logits and sum the loss, never holding all logits at once.

    The length axis is cut into equal pieces of at most max(1, chunk_tokens // batch) positions
    (the last one padded with weight 0), scanned over and recomputed in the backward pass. The
    batch axis stays whole, so its sharding over the data axis survives. When everything fits
    into one piece there is neither scan nor recomputation.

    **Arguments:**

    - `project`: hidden -> logits for any number of positions; gradients flow to what it closes
      over.
    - `hidden`: the decoder's final activations.
    - `targets`: ids in [0, vocab).
    - `weights`: 0 or 1, or what `normalizer` returned; a token of weight 0 contributes nothing.
    - `z_loss`, `label_smoothing`: as in `cross_entropy_with_logits`.
    - `chunk_tokens`: tokens, of the global batch, whose logits may exist at the same time.
    - `objective`: makes each token's loss of its cross-entropy and z-loss; none adds them up.
    - `base`: of an objective that needs it; no gradient flows to it.
    - `segment_ids`: decoder_segment_ids of a packed batch, for an objective of whole sequences.

    **Raises:**

    - `UserError`: `label_smoothing` outside [0, 1) or `chunk_tokens` below 1.
    """
    check_settings(label_smoothing, chunk_tokens)
    batch, length = targets.shape

    chunks = -(-length // max(1, chunk_tokens // batch))
    beside: tuple[Array, ...] = ()
    if isinstance(objective, BatchObjective):
        losses = _token_losses(project, hidden, targets, chunks)
        sequences = jnp.zeros_like(targets) if segment_ids is None else segment_ids
        beside = (objective.factors(losses, weights > 0, sequences),)
    elif base is not None:
        beside = (base.hidden,)

    def chunk_sums(
        hidden: Float[Array, "batch t embed"],
        targets: Int[Array, "batch t"],
        weights: Num[Array, "batch t"],
        *beside: Float[Array, "batch t ..."],
    ) -> LossSums:
        logits = _logits(project, hidden)
        terms = None
        if isinstance(objective, BatchObjective):
            terms = Terms(beside[0], jnp.zeros_like(beside[0]))
        elif objective is not None:
            base_logits = None
            if base is not None:
                base_logits = jax.lax.stop_gradient(_logits(base.project, *beside))
            terms = objective(logits, targets, base_logits)
        return _weighted_sums(logits, targets, weights, z_loss, label_smoothing, terms)

    whole = (hidden, targets, weights, *beside)
    if chunks <= 1:
        return chunk_sums(*whole)

    # The loop of `scan` already keeps forward and backward apart: no barrier against CSE needed.
    recomputed = jax.checkpoint(chunk_sums, prevent_cse=False)

    def body(sums: LossSums, chunk: tuple[Array, ...]) -> tuple[LossSums, None]:
        return jax.tree.map(jnp.add, sums, recomputed(*chunk)), None

    pieces = tuple(_split_length(x, chunks) for x in whole)
    zeros = LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))
    return jax.lax.scan(body, zeros, pieces)[0]


def normalizer(
    kind: float | int | str | None,
    weights: Num[Array, "batch length"],
    segment_ids: Int[Array, "batch length"] | None = None,
    total: int | None = None,
) -> tuple[Float[Array, ""], Num[Array, "batch length"]]:
    """Return (factor, weights): use these weights in `token_loss` and divide its sums by factor.

    T5X's `loss_normalizing_factor`:
      None                      factor 1: the sum over target tokens.
      a number                  that number, e.g. 233472 = 2048 * 114 for T5's pretraining.
      'NUM_REAL_TARGET_TOKENS'  the sum of the weights: the mean over target tokens.
      'NUM_TOTAL_TARGET_TOKENS' batch * length, padding included.
      'AVERAGE_PER_SEQUENCE'    the mean over sequences of each sequence's mean; this one changes
                                the weights (a sequence's sum to 1) and divides by the number of
                                sequences. A packed row holds one sequence a segment.

    A batch without any target token has factor 1 (and loss 0) where T5X divides 0 by 0.

    **Arguments:**

    - `kind`: see above; names in either case.
    - `weights`: the loss weight of every target token, 0 for padding.
    - `segment_ids`: decoder_segment_ids of a packed batch (0 for padding), else None.
    - `total`: what takes the place of batch * length, where other rows than these are meant.

    **Raises:**

    - `UserError`: an unknown name, or a number that is not above 0.
    """
    check_normalizer(kind)
    if kind is None:
        return jnp.float32(1.0), weights
    if not isinstance(kind, str):
        return jnp.float32(kind), weights
    name = kind.upper()
    if name == "NUM_TOTAL_TARGET_TOKENS":
        return jnp.float32(weights.size if total is None else total), weights
    if name == "NUM_REAL_TARGET_TOKENS":
        return _one_if_zero(jnp.sum(weights, dtype=jnp.float32)), weights
    weights = weights / _one_if_zero(_sequence_weights(weights, segment_ids))
    return _one_if_zero(jnp.sum(weights)), weights


def check_normalizer(kind: float | int | str | None) -> None:
    """Raise `UserError` for what `normalizer` does not take."""
    if isinstance(kind, str):
        if kind.upper() not in SPECIAL_NORMALIZERS:
            raise UserError(
                f"Unknown loss_normalizing_factor {kind!r}."
                f"{did_you_mean(kind.upper(), SPECIAL_NORMALIZERS)} "
                f"Use None, a number, or one of {', '.join(SPECIAL_NORMALIZERS)}."
            )
    elif kind is not None and not kind > 0:
        raise UserError(
            f"loss_normalizing_factor is {kind!r}, but it divides the loss: give a number "
            f"above 0, None for the sum, or one of {', '.join(SPECIAL_NORMALIZERS)}."
        )


def _logits(
    project: Projection, hidden: Float[Array, "batch t embed"]
) -> Float[Array, "batch t vocab"]:
    logits = project(hidden).astype(jnp.float32)
    placed: Array = with_logical_constraint(logits, ("batch", "length", "vocab"))
    return placed


def _token_losses(
    project: Projection,
    hidden: Float[Array, "batch length embed"],
    targets: Int[Array, "batch length"],
    chunks: int,
) -> Float[Array, "batch length"]:
    """Return each target's cross-entropy, without a gradient, from a piece of logits at a time."""

    def body(_: None, piece: tuple[Array, Array]) -> tuple[None, Array]:
        return None, cross_entropy_with_logits(_logits(project, piece[0]), piece[1])[0]

    constant = jax.lax.stop_gradient(hidden)
    pieces = (_split_length(constant, chunks), _split_length(targets, chunks))
    losses = jnp.moveaxis(jax.lax.scan(body, None, pieces)[1], 0, 1)
    return jax.lax.stop_gradient(losses.reshape(len(targets), -1)[:, : targets.shape[1]])


def _weighted_sums(
    logits: Float[Array, "batch t vocab"],
    targets: Int[Array, "batch t"],
    weights: Num[Array, "batch t"],
    z_loss: float,
    label_smoothing: float,
    terms: Terms | None,
) -> LossSums:
    cross_entropy, z = cross_entropy_with_logits(
        logits, targets, z_loss=z_loss, label_smoothing=label_smoothing
    )
    weights = weights.astype(jnp.float32)
    hits = (jnp.argmax(logits, axis=-1) == targets).astype(jnp.float32)
    cross_entropy_sum, z_sum = jnp.sum(cross_entropy * weights), jnp.sum(z * weights)
    total = cross_entropy_sum + z_sum
    if terms is not None:
        # Summed in the order of the plain loss, which factors of 1 and no addition leave as it is.
        scaled = terms.factor * weights
        total = jnp.sum(cross_entropy * scaled) + jnp.sum(z * scaled)
        total += jnp.sum(terms.addition * weights)
    return LossSums(
        total=total,
        cross_entropy=cross_entropy_sum,
        z_loss=z_sum,
        weight_sum=jnp.sum(weights),
        correct=jnp.sum(hits * weights),
    )


def _split_length(x: Num[Array, "batch length ..."], chunks: int) -> Num[Array, "chunks batch ..."]:
    """Pad the length axis with zeros to a multiple of `chunks` and move the pieces to the front."""
    batch, length, *rest = x.shape
    positions = -(-length // chunks)
    padding = [(0, 0), (0, chunks * positions - length)] + [(0, 0)] * len(rest)
    pieces = jnp.pad(x, padding).reshape(batch, chunks, positions, *rest)
    return jnp.moveaxis(pieces, 1, 0)


def _sequence_weights(
    weights: Num[Array, "batch length"], segment_ids: Int[Array, "batch length"] | None
) -> Float[Array, "batch _"]:
    """For every token the sum of the weights of the sequence it belongs to."""
    weights = weights.astype(jnp.float32)
    if segment_ids is None:
        return jnp.sum(weights, axis=-1, keepdims=True)
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    return jnp.sum(jnp.where(same, weights[:, None, :], 0.0), axis=-1)


def _one_if_zero(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(x == 0, 1.0, x)


def _entropy(label_smoothing: float, vocab: int) -> float:
    """Return the entropy of a smoothed one-hot distribution: the least cross-entropy there is."""
    confidence, off = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
    return -(confidence * math.log(confidence) + (vocab - 1) * off * math.log(off + 1e-20))


def check_settings(label_smoothing: float, chunk_tokens: int) -> None:
    """Raise `UserError` for values that `token_loss` does not take."""
    if not 0.0 <= label_smoothing < 1.0:
        raise UserError(
            f"label_smoothing is {label_smoothing}, but it is a probability: give 0 (none) up to, "
            "not including, 1; 0.1 is usual."
        )
    if chunk_tokens < 1:
        raise UserError(
            f"chunk_tokens is {chunk_tokens}: give the number of tokens whose logits may be in "
            "memory at the same time, 1 or more."
        )
