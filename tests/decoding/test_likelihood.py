"""The likelihood of given answers, alone and as a choice among labels."""

import functools

import jax
import numpy as np
import pytest
from engine_helpers import QUICKLY, random_params, tiny_model
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.decoding import Greedy, decoder, likelihood
from promot_t5x.decoding.likelihood import Scorer
from promot_t5x.tasks.perplexity import Perplexity

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model():
    return tiny_model(num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def asked():
    """(inputs, candidates): eleven examples with one candidate to three of two tokens to five."""
    rng = np.random.default_rng(0)

    def ids(length):
        return np.append(rng.integers(3, 1000, length), 1).astype(np.int32)

    inputs = [ids(n) for n in rng.integers(1, 30, 11)]
    candidates = [tuple(ids(k) for k in rng.integers(1, 5, 1 + i % 3)) for i in range(11)]
    return inputs, candidates


@pytest.fixture(scope="module")
def scored_alone(model, params):
    """A candidate's score as T5X's `score_batch` has it, one row at a time."""
    score = jax.jit(functools.partial(likelihood.score, model.module), compiler_options=QUICKLY)

    def of(inputs, candidate, given=0):
        row = np.zeros((1, 40), np.int32)
        row[0, : len(inputs)] = inputs
        targets = np.zeros((1, 8), np.int32)
        targets[0, : len(candidate)] = candidate
        batch = {
            "encoder_input_tokens": row,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": ((targets > 0) & (np.arange(8) >= given)).astype(np.int32),
        }
        return float(score(params, batch)[0])

    return of


@pytest.fixture(scope="module")
def alone(scored_alone, asked):
    return [[scored_alone(i, c) for c in several] for i, several in zip(*asked, strict=True)]


def scores_of(scorer, params, inputs, candidates, given=None):
    longest = max(len(ids) for several in candidates for ids in several)
    batches = scorer.plan([len(ids) for ids in inputs], longest)
    found = [None] * len(inputs)
    for batch, scores in scorer.run(params, inputs, candidates, batches, given):
        for row, *of in zip(batch.rows, scores.log_probs, scores.greedy, strict=True):
            assert found[row] is None
            found[row] = of
    return found


@pytest.mark.parametrize("devices", [1, 8])
def test_candidates_score_in_company_what_they_score_alone(devices, model, params, asked, alone):
    sharding = None
    placed = params
    if devices > 1:
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        sharding = NamedSharding(mesh, PartitionSpec("data"))
        placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    scorer = Scorer(model.module, batch_size=8, max_buckets=2, batch_sharding=sharding)
    found = scores_of(scorer, placed, *asked)
    assert len(scorer.compilations) <= 2
    for (scores, _), wanted in zip(found, alone, strict=True):
        assert scores.shape == (3,)
        np.testing.assert_allclose(scores[: len(wanted)], wanted, atol=TOLERANCE)
        assert (scores[len(wanted) :] == -1e7).all()


def test_ids_that_are_given_do_not_count_and_what_greedy_decoding_says_is_known(
    model, params, asked, scored_alone
):
    inputs, candidates = asked[0][:3], list(asked[1][:3])
    decode = jax.jit(
        functools.partial(decoder.decode, model.module, max_decode_length=4, method=Greedy()),
        compiler_options=QUICKLY,
    )
    row = np.zeros((1, 40), np.int32)
    row[0, : len(inputs[0])] = inputs[0]
    said = np.trim_zeros(np.asarray(decode(params, row).ids[0, -1]), "b")
    other = said.copy()
    other[0] = said[0] % 1000 + 3
    candidates[0] = (said, other)
    scorer = Scorer(model.module, batch_size=4, max_buckets=1)
    given = [1, 0, 2]
    for (scores, greedy), ids, several, skipped in zip(
        scores_of(scorer, params, inputs, candidates, given), inputs, candidates, given, strict=True
    ):
        for score, is_greedy, one in zip(scores, greedy, several, strict=False):
            if len(one) <= skipped:
                # Nothing of it counts.
                assert (score, is_greedy) == (-1e7, False)
            else:
                assert score == pytest.approx(scored_alone(ids, one, skipped), abs=TOLERANCE)
    (_, whole), *_ = scores_of(scorer, params, inputs, candidates)
    assert whole[:2].tolist() == [True, False]
    (_, without_first), *_ = scores_of(scorer, params, inputs, candidates, given)
    assert bool(without_first[0])


def test_perplexity_is_that_of_all_tokens_together(asked, alone):
    _, candidates = asked
    firsts = [
        {"log_prob": scores[0], "tokens": len(several[0])}
        for scores, several in zip(alone, candidates, strict=True)
    ]
    said = Perplexity()([""] * len(firsts), firsts)
    per_token = np.concatenate([np.full(p["tokens"], p["log_prob"] / p["tokens"]) for p in firsts])
    assert said["perplexity"] == pytest.approx(np.exp(-per_token.mean()))
    assert said["token_probability"] == pytest.approx(100 * np.exp(per_token.mean()))
