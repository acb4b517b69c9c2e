"""Decoding a decoder-only network with its cache against the same search without one."""

import functools

import causal_helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_helpers import scan_params

from promot_t5x.decoding import BeamSearch, Greedy
from promot_t5x.decoding.batched import begun
from promot_t5x.decoding.decoder import Decoder
from promot_t5x.decoding.likelihood import Scorer
from promot_t5x.decoding.search import beam_search, sample
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.network import DecoderOnly
from promot_t5x.network.parameters import param_axes
from promot_t5x.network.prompt import prompt_ids

pytestmark = pytest.mark.slow

LENGTH, EOS = 7, 1
ONE = jax.devices()[:1]
TEXTS = ([5, 9, 30, 7, 8, 11, 12, 0], [2], [3, 14, 15, 9, 2, 6, 5])


def inputs_of(config):
    """Questions behind prompts, the last one without: longer and shorter than the window of 4."""
    heads = [prompt_ids(config, 0), prompt_ids(config, 1), []]
    return [np.array([*head, *text], np.int32) for head, text in zip(heads, TEXTS, strict=True)]


def padded(sequences, length=12):
    return np.stack([np.pad(s, (0, length - len(s)), constant_values=-1) for s in sequences])


def searched(config, params, tokens, method):
    """Search on logits of whole sequences, which begin anew with each step."""
    before, first = begun(jnp.asarray(tokens), None)
    beams = method.num_decodes
    rows = jnp.repeat(before, beams, axis=0)

    def step(ids, cache):
        said, count = cache
        said = said.at[..., count].set(ids)
        flat = said.reshape(-1, LENGTH)
        logits = DecoderOnly(config).apply({"params": params}, rows, flat, flat)
        chosen = jax.lax.dynamic_index_in_dim(logits, count, axis=1)
        return chosen.reshape(*ids.shape, -1), (said, count + 1)

    def reorder(cache, kept):
        return jnp.take_along_axis(cache[0], kept[..., None], axis=1), cache[1]

    cache = jnp.zeros((len(tokens), beams, LENGTH), jnp.int32), 0
    settings = {
        "is_padding": jnp.zeros(len(tokens), bool),
        "length": LENGTH,
        "eos_id": EOS,
        "start_id": first,
        "fill_id": -1,
    }
    if isinstance(method, BeamSearch):
        return beam_search(step, reorder, cache, method, **settings)
    return sample(step, cache, method, **settings)


@pytest.mark.parametrize(
    ("kind", "scan", "prefix_mask"),
    [("gemma3_text", False, False), ("gemma2", True, True)],
)
@pytest.mark.parametrize("method", [Greedy(), BeamSearch(num_decodes=4)], ids=["greedy", "beam4"])
def test_decodes_are_those_without_a_cache(kind, scan, prefix_mask, method):
    """On one device and, scanned, on eight, which cannot split the heads of keys and values."""
    config, params = causal_helpers.prompted(kind, prefix_mask=prefix_mask)
    inputs = inputs_of(config)
    expected = jax.jit(functools.partial(searched, config, method=method))(params, padded(inputs))
    partitioner = Partitioner(num_partitions=4 if scan else 1, devices=None if scan else ONE)
    if scan:
        config, params = config.replace(scan_layers=True), scan_params(params)
        params = partitioner.place(params, partitioner.shard_tree(param_axes(config), params))
    decoder = Decoder(
        DecoderOnly(config),
        batch_size=4,
        input_lengths=(12,),
        method=method,
        eos_id=EOS,
        start_id=None,
        batch_sharding=partitioner.sharding(("batch",)),
    )
    with partitioner.activate():
        found = decoder(params, inputs, LENGTH)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert (found.ids != EOS).any()


def test_likelihoods_of_candidates_are_those_of_whole_sequences():
    """A candidate may end in the id 0, which fills other models' rows."""
    config, params = causal_helpers.prompted("gemma3_text")
    inputs = inputs_of(config)
    answers = [[np.array(ids, np.int32) for ids in ([4, 0], [9, 8, 7, 1], [0])]] * 3
    scorer = Scorer(DecoderOnly(config), batch_size=4, input_lengths=(12,), start_id=None)
    batches = scorer.plan([len(each) for each in inputs], 4)
    ((batch, found),) = scorer.run(params, inputs, answers, batches, given=[0, 1, 0])
    logits_of = jax.jit(functools.partial(causal_helpers.sequence_logits, config))
    wholes = [np.array([*inputs[row], *ids]) for row in range(3) for ids in answers[row]]
    whole = np.stack([np.pad(ids, (0, 16 - len(ids))) for ids in wholes])
    log_probs = np.asarray(jax.nn.log_softmax(logits_of(params, whole)))
    for row, found_row in zip(batch.rows, found.log_probs, strict=True):
        for number, found_one in enumerate(found_row):
            index = 3 * row + number
            first, end = len(inputs[row]) + (row == 1), len(wholes[index])
            wanted = sum(log_probs[index, at - 1, whole[index, at]] for at in range(first, end))
            np.testing.assert_allclose(found_one, wanted if first < end else -1e7, rtol=1e-5)


def test_a_hypothesis_ends_where_it_is_filled_up():
    own = Decoder(DecoderOnly(causal_helpers.golden("llama")[0]), batch_size=1, start_id=None)
    assert own.tokens(np.array([5, 0, 0, -1, -1])).tolist() == [5, 0, 0]
    assert Decoder(None, batch_size=1).tokens(np.array([5, 0, 6, 0])).tolist() == [5, 0, 6]
