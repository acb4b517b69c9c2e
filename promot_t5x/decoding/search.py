"""Search over next-token logits: greedy, sampling and beam search, with T5X's semantics.

The functions know nothing of the model. They drive a `Step`, which maps the last token of
every hypothesis and a cache to the logits of the next token and the new cache; a cache is
any tree that the step understands. Every loop has static shapes and stops as soon as no
row can change any more, so its cost is that of its slowest row.

Reference: T5X's `decoding.py` (`temperature_sample`, `beam_search`); the brevity penalty is
that of Wu et al. 2016 (https://arxiv.org/abs/1609.08144).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from promot_t5x.decoding.logits import (
    NEGATIVE_INFINITY,
    token_log_prob,
    top_k,
    topk_mask,
    topp_mask,
)
from promot_t5x.errors import UserError

MIN_TEMPERATURE = 1e-4  # below it sampling takes the likeliest token

Cache = Any
# (ids [batch, n], cache) -> (logits [batch, n, vocab], cache)
Step = Callable[[Int[Array, "batch n"], Cache], tuple[Float[Array, "batch n vocab"], Cache]]
# (cache, beams [batch, n]) -> the cache whose hypothesis i was hypothesis beams[:, i]
Reorder = Callable[[Cache, Int[Array, "batch n"]], Cache]


class Decodes(NamedTuple):
    """Hypotheses of every row, worst first: the best one is `ids[:, -1]`.

    ids: int32 [batch, n, length], EOS included, 0 (or what fills rows) after it.
    scores: float32 [batch, n], log-probability (divided by the brevity penalty for a
      finished beam); below -1e6 where beam search found fewer than n.
    steps: int32 scalar, the decoder steps that were run.
    """

    ids: Any
    scores: Any
    steps: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy:
    """Takes the likeliest token at every step: T5X's `temperature_sample` with topk=1.

    **Attributes:**

    - `rescale_log_probs`: False scores with the model's log-probability. True is T5X's, under
      which a greedy choice scores 0, because it is certain under the rescaled distribution.
    """

    rescale_log_probs: bool = False

    @property
    def num_decodes(self) -> int:
        """One hypothesis is kept and returned."""
        return 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Draws tokens from the model's distribution: T5X's `temperature_sample`.

    Each example has its own random stream, so a draw depends on the seed and the example
    but not on the batch that it was decoded in.

    **Attributes:**

    - `temperature`: divides the logits; at most 1e-4 means the likeliest token.
    - `topk`: if not zero, only the topk likeliest tokens can be drawn.
    - `topp`: if not zero, only the smallest set of tokens with at least this probability.
    - `num_decodes`: hypotheses per example.
    - `seed`: of the random stream, unless `decode` is given an rng.
    - `rescale_log_probs`: whether scores are under the distribution drawn from (True, as
      T5X) or under the model's own.

    **Raises** `UserError` for a value out of range, or both topk and topp.
    """

    temperature: float = 1.0
    topk: int = 0
    topp: float = 0.0
    num_decodes: int = 1
    seed: int = 0
    rescale_log_probs: bool = True

    def __post_init__(self) -> None:
        if self.topk and self.topp:
            raise UserError(
                f"Sampling: topk={self.topk} and topp={self.topp} exclude each other; "
                "set one of them to 0."
            )
        _check(self, "temperature", self.temperature >= 0, "at least 0")
        _check(self, "topk", self.topk >= 0, "at least 0")
        _check(self, "topp", 0 <= self.topp <= 1, "between 0 and 1")
        _check(self, "num_decodes", self.num_decodes >= 1, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Keeps the num_decodes likeliest hypotheses: T5X's `beam_search`.

    **Attributes:**

    - `num_decodes`: beams, and hypotheses returned, per example.
    - `alpha`: exponent of the brevity penalty ((5 + length) / 6) ** alpha.

    **Raises** `UserError` for a value out of range.
    """

    num_decodes: int = 4
    alpha: float = 0.6

    def __post_init__(self) -> None:
        _check(self, "num_decodes", self.num_decodes >= 1, "at least 1")
        _check(self, "alpha", self.alpha >= 0, "at least 0")


Method = Greedy | Sampling | BeamSearch


def _check(settings: Any, name: str, good: bool, want: str) -> None:
    if not good:
        value = getattr(settings, name)
        raise UserError(f"{type(settings).__name__}: {name}={value} must be {want}.")


def _choose(
    logits: Float[Array, "batch n vocab"],
    method: Greedy | Sampling,
    keys: Key[Array, "batch n"] | None,
) -> tuple[Int[Array, "batch n"], Float[Array, "batch n"]]:
    """Pick the next token of every hypothesis and its log-probability."""
    if isinstance(method, Greedy) or method.temperature <= MIN_TEMPERATURE:
        ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if method.rescale_log_probs:
            return ids, jnp.zeros(ids.shape, jnp.float32)
        return ids, token_log_prob(logits, ids)
    scaled = logits / method.temperature
    if method.topk:
        scaled = topk_mask(scaled, method.topk)
    if method.topp:
        scaled = topp_mask(scaled, method.topp)
    assert keys is not None, "Sampling needs random keys."
    ids = jax.vmap(jax.vmap(jax.random.categorical))(keys, scaled).astype(jnp.int32)
    return ids, token_log_prob(scaled if method.rescale_log_probs else logits, ids)


class _SampleState(NamedTuple):
    step: Int[Array, ""]
    token: Int[Array, "batch n"]
    ids: Int[Array, "batch n length"]
    ended: Bool[Array, "batch n"]
    log_prob: Float[Array, "batch n"]
    cache: Cache


def sample(
    step: Step,
    cache: Cache,
    method: Greedy | Sampling,
    *,
    is_padding: Bool[Array, " batch"],
    length: int,
    eos_id: int,
    start_id: Int[Array, "batch 1"] | int = 0,
    fill_id: int = 0,
    limit: Int[Array, ""] | int | None = None,
    keys: Key[Array, " batch"] | None = None,
) -> Decodes:
    """Greedy decoding or sampling, for at most `limit` steps.

    **Arguments:**

    - `step`: the model's decoding step.
    - `cache`: what the first step starts from.
    - `method`: how the next token is chosen.
    - `is_padding`: rows to leave alone; they come out filled up.
    - `length`: room for tokens, EOS included.
    - `eos_id`: the token that ends a hypothesis.
    - `start_id`: what the decoder begins with, in all rows or in each; T5's is the padding's.
    - `fill_id`: stands where a hypothesis has ended.
    - `limit`: most tokens to decode, at most and by default `length`.
    - `keys`: one random key a row, needed by `Sampling` alone.

    **Returns** hypotheses in ascending order of log-probability.
    """
    shape = (is_padding.shape[0], method.num_decodes)
    limit = length if limit is None else limit
    if keys is not None:
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        keys = fold(keys, jnp.arange(method.num_decodes))

    def going(state: _SampleState) -> Bool[Array, ""]:
        return (state.step < limit) & ~jnp.all(state.ended)

    def advance(state: _SampleState) -> _SampleState:
        logits, cache = step(state.token, state.cache)
        now = None
        if keys is not None:
            now = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, state.step)
        token, log_prob = _choose(logits.astype(jnp.float32), method, now)
        token = jnp.where(state.ended, fill_id, token)
        return _SampleState(
            step=state.step + 1,
            token=token,
            ids=_write(state.ids, token, state.step),
            ended=state.ended | (token == eos_id),
            log_prob=state.log_prob + jnp.where(state.ended, 0.0, log_prob),
            cache=cache,
        )

    start = _SampleState(
        step=jnp.zeros((), jnp.int32),
        token=jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), shape),
        ids=jnp.full((*shape, length), fill_id, jnp.int32),
        ended=jnp.broadcast_to(is_padding[:, None], shape),
        log_prob=jnp.zeros(shape, jnp.float32),
        cache=cache,
    )
    end = lax.while_loop(going, advance, start)
    order = jnp.argsort(end.log_prob, axis=-1)
    return Decodes(_pick(end.ids, order), _pick(end.log_prob, order), end.step)


def _write(
    ids: Int[Array, "batch n length"], token: Int[Array, "batch n"], position: Int[Array, ""]
) -> Int[Array, "batch n length"]:
    return lax.dynamic_update_slice_in_dim(ids, token[..., None], position, axis=2)


def _pick(values: Array, order: Int[Array, "batch m"]) -> Array:
    """Gathers hypotheses: [batch, n, ...] -> [batch, m, ...]."""
    index = order.reshape(order.shape + (1,) * (values.ndim - 2))
    return jnp.take_along_axis(values, index, axis=1)


def _top(values: Float[Array, "batch n"], k: int) -> Int[Array, "batch k"]:
    """Return the indices of the k highest values, in ascending order of value."""
    return jnp.flip(top_k(values, k)[1], axis=1)


def brevity_penalty(alpha: float, length: Any) -> Any:
    """((5 + length) / 6) ** alpha, by which a log-probability is divided."""
    return ((5.0 + length) / 6.0) ** alpha


class _BeamState(NamedTuple):
    step: Int[Array, ""]
    live_ids: Int[Array, "batch n length"]
    live_log_probs: Float[Array, "batch n"]  # ascending
    ended_ids: Int[Array, "batch n length"]
    ended_scores: Float[Array, "batch n"]  # ascending
    ended: Bool[Array, "batch n"]  # whether the slot holds a hypothesis
    token: Int[Array, "batch n"]
    cache: Cache


class _Candidates(NamedTuple):
    """The 2n likeliest continuations of the live hypotheses, likeliest first."""

    beam: Int[Array, "batch m"]
    token: Int[Array, "batch m"]
    log_prob: Float[Array, "batch m"]


def _candidates(
    logits: Float[Array, "batch n vocab"], live_log_probs: Float[Array, "batch n"]
) -> _Candidates:
    """Twice as many as beams, so that n stay alive should n of them end at once."""
    batch, beams, vocab = logits.shape
    log_probs = jax.nn.log_softmax(logits) + live_log_probs[..., None]
    # Two stages give the order of one over beams * vocab, ties included, and leave the
    # vocabulary's axis as it is, which may be split over devices.
    per_beam, tokens = top_k(log_probs, min(2 * beams, vocab))
    best, flat = top_k(per_beam.reshape(batch, -1), 2 * beams)
    token = jnp.take_along_axis(tokens.reshape(batch, -1), flat, axis=1)
    return _Candidates(flat // tokens.shape[-1], token, best)


def _start_beams(
    cache: Cache,
    batch: int,
    beams: int,
    length: int,
    start_id: Int[Array, "batch 1"] | int,
    fill_id: int,
) -> _BeamState:
    # All beams start equal, so only one of them may count.
    first = jnp.where(jnp.arange(beams) == 0, 0.0, NEGATIVE_INFINITY)
    ids = jnp.full((batch, beams, length), fill_id, jnp.int32)
    return _BeamState(
        step=jnp.zeros((), jnp.int32),
        live_ids=ids,
        live_log_probs=jnp.broadcast_to(first, (batch, beams)),
        ended_ids=ids,
        ended_scores=jnp.full((batch, beams), NEGATIVE_INFINITY),
        ended=jnp.zeros((batch, beams), bool),
        token=jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), (batch, beams)),
        cache=cache,
    )


def _settled(state: _BeamState, highest_penalty: Any) -> Bool[Array, " batch"]:
    """Whether no live hypothesis of a row can still beat the worst that has ended.

    Log-probabilities only fall, so a live one's final score is at most its present
    log-probability under the highest brevity penalty.
    """
    best_live = jnp.max(state.live_log_probs, axis=1) / highest_penalty
    settled: Array = jnp.all(state.ended, axis=1) & (
        jnp.min(state.ended_scores, axis=1) > best_live
    )
    return settled


def beam_search(
    step: Step,
    reorder: Reorder,
    cache: Cache,
    method: BeamSearch,
    *,
    is_padding: Bool[Array, " batch"],
    length: int,
    eos_id: int,
    start_id: Int[Array, "batch 1"] | int = 0,
    fill_id: int = 0,
    limit: Int[Array, ""] | int | None = None,
) -> Decodes:
    """Beam search for at most `limit` steps.

    A row's result is its hypotheses that ended, best last; where none has ended, its live
    ones with their plain log-probabilities. The search stops once every row is settled,
    which changes no row's result.

    **Arguments:**

    - `step`: the model's decoding step.
    - `reorder`: gathers the cache's hypotheses.
    - `cache`: what the first step starts from.
    - `method`: beams and brevity penalty.
    - `is_padding`: rows to leave alone; they come out filled up.
    - `length`: room for tokens, EOS included.
    - `eos_id`: the token that ends a hypothesis.
    - `start_id`: what the decoder begins with, in all rows or in each; T5's is the padding's.
    - `fill_id`: stands where a hypothesis has ended.
    - `limit`: most tokens to decode, at most and by default `length`.

    **Returns** hypotheses in ascending order of score.
    """
    beams = method.num_decodes
    limit = length if limit is None else limit
    # T5X bounds with one more than the longest length: it counts the decoder's start token.
    highest_penalty = brevity_penalty(method.alpha, limit + 1)

    def going(state: _BeamState) -> Bool[Array, ""]:
        settled = is_padding | _settled(state, highest_penalty)
        return (state.step < limit) & ~jnp.all(settled)

    def advance(state: _BeamState) -> _BeamState:
        logits, cache = step(state.token, state.cache)
        found = _candidates(logits.astype(jnp.float32), state.live_log_probs)
        ids = _write(_pick(state.live_ids, found.beam), found.token, state.step)
        ends = found.token == eos_id

        live_log_probs = found.log_prob + ends * NEGATIVE_INFINITY
        live = _top(live_log_probs, beams)

        scores = found.log_prob / brevity_penalty(method.alpha, state.step + 1)
        scores = jnp.concatenate([state.ended_scores, scores + ~ends * NEGATIVE_INFINITY], axis=1)
        kept = _top(scores, beams)
        return _BeamState(
            step=state.step + 1,
            live_ids=_pick(ids, live),
            live_log_probs=_pick(live_log_probs, live),
            ended_ids=_pick(jnp.concatenate([state.ended_ids, ids], axis=1), kept),
            ended_scores=_pick(scores, kept),
            ended=_pick(jnp.concatenate([state.ended, ends], axis=1), kept),
            token=_pick(found.token, live),
            cache=reorder(cache, _pick(found.beam, live)),
        )

    start = _start_beams(cache, is_padding.shape[0], beams, length, start_id, fill_id)
    end = lax.while_loop(going, advance, start)
    some_ended = jnp.any(end.ended, axis=1)[:, None]
    ids = jnp.where(some_ended[..., None], end.ended_ids, end.live_ids)
    scores = jnp.where(some_ended, end.ended_scores, end.live_log_probs)
    ids = jnp.where(is_padding[:, None, None], fill_id, ids)
    return Decodes(ids, jnp.where(is_padding[:, None], 0.0, scores), end.step)
