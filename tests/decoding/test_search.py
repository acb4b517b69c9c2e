"""The search algorithms over toy models, against plain-Python searches and enumeration."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.decoding import logits, search
from promot_t5x.decoding.search import BeamSearch, Greedy, Sampling
from promot_t5x.errors import UserError

pytestmark = pytest.mark.slow

EOS = 1
STATES = 97


def next_state(state, token):
    return (state * 31 + token * 7 + 3) % STATES


def toy_step(table, ids, cache):
    state = next_state(cache["state"], ids)
    rows = jnp.arange(len(table))[:, None]
    return table[rows, state], {"state": state, "index": cache["index"] + 1}


def toy_reorder(cache, beams):
    return {**cache, "state": jnp.take_along_axis(cache["state"], beams, axis=1)}


def toy_cache(table, method):
    shape = (len(table), method.num_decodes)
    return {"state": jnp.zeros(shape, jnp.int32), "index": jnp.int32(0)}


class Toy:
    """A model whose next logits depend on the row and on every token of the prefix.

    The prefix is summed up in a cache of one number a hypothesis, so a search that
    reorders its cache wrongly gives wrong results.
    """

    def __init__(self, vocab, batch=3, seed=0, eos_bias=0.0):
        self.table = np.random.default_rng(seed).normal(size=(batch, STATES, vocab))
        self.table[..., EOS] += eos_bias
        self.table = self.table.astype(np.float32) * 2
        self.log_probs = self.table - np.log(np.exp(self.table).sum(-1, keepdims=True))
        self.batch, self.vocab = batch, vocab

    def log_prob(self, row, tokens):
        """Sum of the log-probabilities of the tokens, from the start."""
        state, last, total = 0, 0, 0.0
        for token in tokens:
            state = next_state(state, last)
            total += self.log_probs[row, state, token]
            last = token
        return total

    def beams(self, method, length, is_padding=(False,)):
        padding = jnp.broadcast_to(jnp.asarray(is_padding), self.batch)
        return beams(self.table, padding, method, length)

    def sample(self, method, length, is_padding=(False,), seed=0):
        padding = jnp.broadcast_to(jnp.asarray(is_padding), self.batch)
        return sample(self.table, padding, jax.random.key(seed), method, length)


# The table is an argument, so that one program serves every toy of a shape.
@functools.partial(jax.jit, static_argnums=(2, 3))
def beams(table, is_padding, method, length):
    step, reorder, cache = functools.partial(toy_step, table), toy_reorder, toy_cache(table, method)
    return search.beam_search(
        step, reorder, cache, method, is_padding=is_padding, length=length, eos_id=EOS
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def sample(table, is_padding, key, method, length):
    step, cache = functools.partial(toy_step, table), toy_cache(table, method)
    keys = None if isinstance(method, Greedy) else jax.random.split(key, len(table))
    return search.sample(
        step, cache, method, is_padding=is_padding, length=length, eos_id=EOS, keys=keys
    )


def reference_beams(toy, row, method, length):
    """Beam search on Python lists that never stops early: [(score, tokens)], best last."""
    live, ended = [(0.0, (), 0)], []
    for _ in range(length):
        grown = []
        for score, tokens, state in live:
            state = next_state(state, tokens[-1] if tokens else 0)
            grown += [
                (score + log_prob, (*tokens, token), state)
                for token, log_prob in enumerate(toy.log_probs[row, state])
            ]
        grown = sorted(grown, reverse=True)[: 2 * method.num_decodes]
        for score, tokens, _ in grown:
            if tokens[-1] == EOS:
                ended.append((score / ((5 + len(tokens)) / 6) ** method.alpha, tokens))
        ended = sorted(ended, reverse=True)[: method.num_decodes]
        live = [entry for entry in grown if entry[1][-1] != EOS][: method.num_decodes]
    return sorted(ended or [entry[:2] for entry in live])


def unpad(ids):
    return tuple(int(i) for i in ids if i)


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_beam_search_equals_a_search_on_lists(width, alpha):
    method = BeamSearch(num_decodes=width, alpha=alpha)
    for seed, eos_bias in ((0, 0.0), (1, 1.0), (2, -1.0)):
        toy = Toy(vocab=7, seed=seed, eos_bias=eos_bias)
        decodes = toy.beams(method, 9)
        for row in range(toy.batch):
            want = reference_beams(toy, row, method, 9)
            got = list(zip(decodes.scores[row], decodes.ids[row], strict=True))[-len(want) :]
            assert [unpad(ids) for _, ids in got] == [unpad(tokens) for _, tokens in want]
            np.testing.assert_allclose([s for s, _ in got], [s for s, _ in want], atol=1e-4)


def test_a_beam_as_wide_as_the_tree_finds_every_sequence():
    toy, length = Toy(vocab=4), 3
    method = BeamSearch(num_decodes=30, alpha=0.6)
    decodes = toy.beams(method, length)
    others = [token for token in range(toy.vocab) if token != EOS]
    sequences = [
        (*prefix, EOS)
        for size in range(length)
        for prefix in itertools.product(others, repeat=size)
    ]
    for row in range(toy.batch):
        scores = sorted(
            toy.log_prob(row, s) / ((5 + len(s)) / 6) ** method.alpha for s in sequences
        )
        found = np.asarray(decodes.scores[row])
        np.testing.assert_allclose(found[-len(sequences) :], scores, atol=1e-4)
        # Fewer hypotheses than beams: the first slots hold none.
        assert (found[: -len(sequences)] < -1e6).all()


def test_beam_search_stops_once_no_live_beam_can_win():
    likely_end = Toy(vocab=7, eos_bias=4.0)
    method = BeamSearch(num_decodes=2)
    short, long = likely_end.beams(method, 10), likely_end.beams(method, 40)
    assert int(short.steps) < 10
    assert int(long.steps) < 40
    np.testing.assert_array_equal(short.ids, long.ids[..., :10])
    never = Toy(vocab=7, eos_bias=-50.0)
    assert int(never.beams(method, 10).steps) == 10


def test_without_an_ended_hypothesis_the_live_ones_come_out_unpenalised():
    toy, method = Toy(vocab=7, eos_bias=-50.0), BeamSearch(num_decodes=3, alpha=0.6)
    decodes = toy.beams(method, 4)
    for row in range(toy.batch):
        for ids, score in zip(decodes.ids[row], decodes.scores[row], strict=True):
            assert score == pytest.approx(toy.log_prob(row, tuple(ids.tolist())), abs=1e-4)


def test_greedy_takes_the_likeliest_token_and_stops_with_the_last_row():
    toy, length = Toy(vocab=7, eos_bias=0.6), 30
    decodes = toy.sample(Greedy(), length)
    lengths = []
    for row in range(toy.batch):
        tokens, state = [], 0
        while len(tokens) < length and EOS not in tokens:
            state = next_state(state, tokens[-1] if tokens else 0)
            tokens.append(int(toy.table[row, state].argmax()))
        assert decodes.ids[row, 0, : len(tokens)].tolist() == tokens
        assert not decodes.ids[row, 0, len(tokens) :].any()
        assert decodes.scores[row, 0] == pytest.approx(toy.log_prob(row, tokens), abs=1e-4)
        lengths.append(len(tokens))
    assert int(decodes.steps) == max(lengths) < length
    np.testing.assert_array_equal(
        toy.sample(Greedy(rescale_log_probs=True), length).scores, np.zeros((3, 1))
    )


@pytest.mark.parametrize("padding", [[True, True, True], [False, True, False]])
def test_padding_rows_have_ended_from_the_start(padding):
    toy, padding = Toy(vocab=7, eos_bias=1.0), np.array(padding)
    for run, method in ((toy.sample, Greedy()), (toy.beams, BeamSearch(num_decodes=2))):
        full, decodes = run(method, 12), run(method, 12, is_padding=padding)
        assert not np.asarray(decodes.ids)[padding].any()
        assert not np.asarray(decodes.scores)[padding].any()
        np.testing.assert_array_equal(
            np.asarray(decodes.ids)[~padding], np.asarray(full.ids)[~padding]
        )
        if padding.all():
            assert int(decodes.steps) == 0


def numpy_masked(row, topk=0, topp=0.0):
    """The distribution left by top-k or nucleus filtering, by its definition."""
    p = np.exp(row - row.max())
    p = p / p.sum()
    order = np.argsort(-p)
    keep = topk or len(p)
    if topp:
        keep = int(np.searchsorted(np.cumsum(p[order]), topp)) + 1
    masked = np.zeros_like(p)
    masked[order[:keep]] = p[order[:keep]]
    return masked / masked.sum()


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, 1.0),
        ({"topk": 3}, 0.5),
        ({"topp": 0.7}, 2.0),
        ({"topp": 0.05}, 1.0),
        ({"topk": 99}, 1.0),
    ],
)
def test_sampling_draws_from_the_filtered_distribution(settings, temperature):
    toy, draws = Toy(vocab=7, batch=1), 4000
    method = Sampling(temperature=temperature, num_decodes=draws, **settings)
    decodes = toy.sample(method, 1)
    row = toy.table[0, next_state(0, 0)] / temperature
    want = numpy_masked(row.astype(np.float64), **settings)
    got = np.bincount(np.asarray(decodes.ids[0, :, 0]), minlength=toy.vocab) / draws
    assert (got[want == 0] == 0).all()
    # Five standard deviations of a frequency.
    np.testing.assert_array_less(np.abs(got - want), 5 * np.sqrt(want / draws) + 1e-9)
    np.testing.assert_allclose(
        decodes.scores[0], np.log(want[np.asarray(decodes.ids[0, :, 0])]), atol=1e-4
    )
    assert (np.diff(decodes.scores[0]) >= 0).all()


def test_sampling_scores_can_be_those_of_the_model():
    toy = Toy(vocab=7, eos_bias=1.0)
    method = Sampling(temperature=0.7, topk=3, num_decodes=4, rescale_log_probs=False)
    decodes = toy.sample(method, 8)
    for row, n in itertools.product(range(toy.batch), range(4)):
        tokens = np.asarray(decodes.ids[row, n])
        ends = np.flatnonzero(tokens == EOS)
        tokens = tokens[: ends[0] + 1] if len(ends) else tokens
        want = toy.log_prob(row, tuple(tokens.tolist()))
        assert decodes.scores[row, n] == pytest.approx(want, abs=1e-4)


def test_sampling_is_a_function_of_the_seed_and_differs_between_hypotheses():
    toy, method = Toy(vocab=50), Sampling(num_decodes=4)
    first, again = toy.sample(method, 8), toy.sample(method, 8)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert len({tuple(ids.tolist()) for ids in first.ids[0]}) == 4
    assert (np.asarray(first.ids) != np.asarray(toy.sample(method, 8, seed=1).ids)).any()


def test_no_temperature_is_greedy():
    toy = Toy(vocab=7)
    cold = toy.sample(Sampling(temperature=0.0, topk=5), 8)
    np.testing.assert_array_equal(cold.ids, toy.sample(Greedy(), 8).ids)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_top_k_is_laxs_ties_included(k):
    values = np.random.default_rng(0).integers(-3, 3, size=(2, 3, 12)).astype(np.float32)
    for got, want in zip(
        logits.top_k(jnp.asarray(values), k), jax.lax.top_k(values, k), strict=True
    ):
        np.testing.assert_array_equal(got, want)


def test_masks_keep_ties_and_the_likeliest_token():
    row = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.1, 0.1]))
    kept = logits.topk_mask(row, 2) > logits.NEGATIVE_INFINITY
    assert kept.tolist() == [True, True, True, False, False]
    for p, want in ((0.1, 1), (0.41, 3), (0.79, 3), (0.85, 5), (1.0, 5)):
        assert int((logits.topp_mask(row, p) > logits.NEGATIVE_INFINITY).sum()) == want


def test_brevity_penalty():
    assert search.brevity_penalty(0.6, 1) == 1
    assert search.brevity_penalty(0.6, 7) == pytest.approx(math.exp(0.6 * math.log(2)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Sampling(topk=2, topp=0.5), "topk=2 and topp=0.5"),
        (lambda: Sampling(topp=1.5), "topp=1.5 must be between 0 and 1"),
        (lambda: Sampling(temperature=-1.0), "temperature=-1.0 must be at least 0"),
        (lambda: Sampling(topk=-1), "topk=-1 must be at least 0"),
        (lambda: Sampling(num_decodes=0), "num_decodes=0 must be at least 1"),
        (lambda: BeamSearch(num_decodes=0), "num_decodes=0 must be at least 1"),
        (lambda: BeamSearch(alpha=-0.1), "alpha=-0.1 must be at least 0"),
    ],
)
def test_settings_out_of_range_are_the_users_to_mend(build, message):
    with pytest.raises(UserError, match=message):
        build()
