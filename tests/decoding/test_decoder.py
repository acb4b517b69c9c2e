"""Decoding a Transformer against T5X's decodes, and every way of batching against the plain one."""

import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec
from scan_helpers import scan_params

from promot_t5x.decoding import decoder as decoding
from promot_t5x.decoding import likelihood
from promot_t5x.decoding.decoder import Decoder
from promot_t5x.decoding.length_buckets import batches_by_length, choose_input_lengths
from promot_t5x.decoding.search import BeamSearch, Greedy, Sampling
from promot_t5x.errors import UserError
from promot_t5x.network.transformer import T5Config, Transformer

pytestmark = pytest.mark.slow

LENGTH = 12
METHODS = {"greedy": Greedy(rescale_log_probs=True), "beam4": BeamSearch(num_decodes=4, alpha=0.6)}


class Golden:
    """Upstream's parameters, unpacked batch, decodes and scores."""

    def __init__(self, name):
        path = Path(__file__).parents[1] / "golden" / name
        config = T5Config(**json.loads(path.with_suffix(".json").read_text())["config"])
        with np.load(path.with_suffix(".npz")) as arrays:
            self.arrays = dict(arrays)
        self.module, self.params = Transformer(config), self.tree("params/")
        self.batch = self.tree("batch/unpacked/")
        self.inputs = self.batch["encoder_input_tokens"]
        self.sequences = [row[row > 0] for row in self.inputs]

    def tree(self, prefix):
        flat = {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}
        return unflatten_dict(flat, sep="/")

    def assert_upstreams(self, kind, decodes):
        np.testing.assert_array_equal(decodes.ids, self.arrays[f"decode/{kind}"])
        np.testing.assert_allclose(
            decodes.scores, self.arrays[f"decode/{kind}_scores"], rtol=1e-6, atol=1e-4
        )


@functools.cache
def load(name):
    return Golden(name)


@pytest.fixture(params=["t5x_t5_1_1", "t5x_t5_1_0"])
def golden(request):
    return load(request.param)


@pytest.fixture
def t5_1_1():
    return load("t5x_t5_1_1")


@functools.partial(jax.jit, static_argnames=("module", "method", "eos_id"))
def decode(module, params, tokens, method, eos_id=1):
    return decoding.decode(
        module, params, tokens, max_decode_length=LENGTH, method=method, eos_id=eos_id
    )


def many_inputs(golden, count):
    """Inputs of many lengths with some of the golden ones among them."""
    rng = np.random.default_rng(7)
    inputs = [
        rng.integers(3, 384, size=n).astype(np.int32) for n in rng.integers(2, 40, size=count)
    ]
    return golden.sequences + inputs


@pytest.mark.parametrize("kind", ["greedy", "beam4"])
def test_decodes_are_upstreams(golden, kind):
    decodes = decode(golden.module, golden.params, golden.inputs, METHODS[kind])
    golden.assert_upstreams(kind, decodes)


@pytest.mark.parametrize("kind", ["greedy", "beam4"])
def test_a_scanned_network_decodes_the_same(t5_1_1, kind):
    config = t5_1_1.module.config.replace(scan_layers=True)
    params = scan_params(t5_1_1.params)
    t5_1_1.assert_upstreams(kind, decode(Transformer(config), params, t5_1_1.inputs, METHODS[kind]))


def test_scores_of_targets_are_upstreams(golden):
    scores = jax.jit(functools.partial(likelihood.score, golden.module))(
        golden.params, golden.batch
    )
    np.testing.assert_allclose(scores, golden.arrays["score/unpacked"], atol=1e-4)


def test_a_hypothesis_scores_what_scoring_it_as_targets_gives(t5_1_1):
    method = Greedy()
    decodes = decode(t5_1_1.module, t5_1_1.params, t5_1_1.inputs, method)
    targets = np.asarray(decodes.ids[:, 0])
    batch = {
        "encoder_input_tokens": t5_1_1.inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }
    scores = likelihood.score(t5_1_1.module, t5_1_1.params, batch)
    np.testing.assert_allclose(decodes.scores[:, 0], scores, atol=1e-4)


def test_cross_attention_exists_once_per_example_and_the_loop_does_not_project(t5_1_1):
    """The while loop carries keys and values of [batch], caches of [batch * beams]."""
    jaxpr = jax.make_jaxpr(functools.partial(decode, t5_1_1.module, method=METHODS["beam4"]))(
        t5_1_1.params, t5_1_1.inputs
    )
    text = str(jaxpr)
    cross, cache = "f32[4,4,8,24]", "f32[16,4,8,12]"
    assert cross in text
    assert cache in text
    assert "f32[16,4,8,24]" not in text
    assert "f32[16,24,32]" not in text
    loop = text[text.index("while[") :]
    assert "f32[4,24,32]" not in loop  # the encoder's output


@pytest.mark.parametrize("kind", ["greedy", "beam4"])
def test_padding_rows_change_nothing(t5_1_1, kind):
    padded = np.concatenate([np.zeros((2, 24), np.int32), t5_1_1.inputs])
    decodes = decode(t5_1_1.module, t5_1_1.params, padded, METHODS[kind])
    assert not np.asarray(decodes.ids[:2]).any()
    assert not np.asarray(decodes.scores[:2]).any()
    t5_1_1.assert_upstreams(kind, decodes._replace(ids=decodes.ids[2:], scores=decodes.scores[2:]))


def test_the_loop_ends_with_the_last_row(t5_1_1):
    ids = t5_1_1.arrays["decode/greedy"][[0, 3], 0]
    assert [row.tolist().index(36) for row in ids] == [1, 2]
    decodes = decode(t5_1_1.module, t5_1_1.params, t5_1_1.inputs[[0, 3]], Greedy(), eos_id=36)
    assert int(decodes.steps) == 3
    np.testing.assert_array_equal(decodes.ids[:, 0, :3], [[*ids[0, :2], 0], ids[1, :3]])
    assert not np.asarray(decodes.ids[:, 0, 3:]).any()


def test_a_data_set_decodes_as_its_examples_do_one_at_a_time(t5_1_1):
    kind = "beam4"
    sequences = many_inputs(t5_1_1, 9)
    settings = {"method": METHODS[kind], "length_multiple": 8}
    seen = []
    decoder = Decoder(t5_1_1.module, batch_size=4, max_buckets=3, **settings)
    decodes = decoder(
        t5_1_1.params, sequences, LENGTH, progress=lambda done, total: seen.append((done, total))
    )
    assert 1 < len(decoder.compilations) <= 3
    assert all(output == LENGTH for _, output in decoder.compilations)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (13, 13)
    t5_1_1.assert_upstreams(kind, decodes._replace(ids=decodes.ids[:4], scores=decodes.scores[:4]))

    one = Decoder(t5_1_1.module, batch_size=1, input_lengths=(40,), **settings)
    for row, sequence in enumerate(sequences):
        alone = one(t5_1_1.params, [sequence], LENGTH)
        np.testing.assert_array_equal(alone.ids[0], decodes.ids[row])
        np.testing.assert_allclose(alone.scores[0], decodes.scores[row], rtol=1e-6, atol=1e-4)
    assert one.compilations == [(40, LENGTH)]

    order = np.random.default_rng(1).permutation(len(sequences))
    shuffled = decoder(t5_1_1.params, [sequences[i] for i in order], LENGTH)
    np.testing.assert_array_equal(shuffled.ids, decodes.ids[order])
    assert len(decoder.compilations) <= 3  # the programs are kept


@pytest.mark.parametrize("kind", ["greedy", "beam4"])
def test_eight_devices_decode_as_one_does(t5_1_1, kind):
    sequences = many_inputs(t5_1_1, 9)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = NamedSharding(mesh, PartitionSpec())
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    settings = {"method": METHODS[kind], "input_lengths": (40,)}
    params = jax.device_put(t5_1_1.params, replicated)
    spread = Decoder(t5_1_1.module, batch_size=8, batch_sharding=sharding, **settings)
    decodes = spread(params, sequences, LENGTH)
    plain = Decoder(t5_1_1.module, batch_size=8, **settings)(t5_1_1.params, sequences, LENGTH)
    np.testing.assert_array_equal(decodes.ids, plain.ids)
    np.testing.assert_allclose(decodes.scores, plain.scores, rtol=1e-6, atol=1e-4)
    with pytest.raises(UserError, match="batch_size = 12 is not divisible by the 8 devices"):
        Decoder(t5_1_1.module, batch_size=12, batch_sharding=sharding, **settings)


def test_answers_of_other_lengths_share_a_program_and_come_out_the_same(t5_1_1):
    sequences = many_inputs(t5_1_1, 6)
    limits = [12, 5, 12, 5, 5, 5, 12, 5, 12, 12]
    settings = {"method": METHODS["beam4"], "batch_size": 4, "input_lengths": (40,)}
    together = Decoder(t5_1_1.module, **settings)
    decodes = together(t5_1_1.params, sequences, limits)
    assert together.compilations == [(40, 12)]
    for limit in set(limits):
        rows = [row for row, each in enumerate(limits) if each == limit]
        own = Decoder(t5_1_1.module, **settings)
        wanted = own(t5_1_1.params, [sequences[row] for row in rows], limit)
        assert own.compilations == [(40, limit)]
        np.testing.assert_array_equal(decodes.ids[rows, :, :limit], wanted.ids)
        assert not decodes.ids[rows, :, limit:].any()
        np.testing.assert_allclose(decodes.scores[rows], wanted.scores, rtol=1e-6, atol=1e-4)


def test_a_loop_over_eight_devices_keeps_its_rows_apart(t5_1_1):
    """Each device caches its own rows; only the loop's condition is exchanged."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    tokens = jax.device_put(
        np.tile(t5_1_1.inputs, (2, 1)), NamedSharding(mesh, PartitionSpec("data"))
    )
    params = jax.device_put(t5_1_1.params, NamedSharding(mesh, PartitionSpec()))
    compiled = decode.lower(t5_1_1.module, params, tokens, METHODS["beam4"]).compile().as_text()
    assert "f32[4,4,8,12]" in compiled  # 1 row of 4 beams
    for global_cache in ("f32[32,4,8,12]", "f32[8,4,4,8,12]", "f32[8,4,8,24]"):
        assert global_cache not in compiled
    assert "all-gather" not in compiled
    assert "all-to-all" not in compiled


def test_prompt_ids_in_the_inputs(t5_1_1):
    """A prompt made of embedding rows decodes as the text of those rows."""
    config = t5_1_1.module.config.replace(num_prompts=2, prompt_length=3)
    params = jax.tree.map(lambda leaf: leaf, t5_1_1.params)
    words = np.array([[5, 6, 7], [250, 251, 252]])
    params["encoder"]["prompt"] = {"prompt": params["token_embedder"]["embedding"][words]}
    for prompt in (0, 1):
        ids = config.vocab_size + 3 * prompt + np.arange(3, dtype=np.int32)
        prompted = Decoder(Transformer(config), batch_size=4)(
            params, [np.concatenate([ids, s]) for s in t5_1_1.sequences], LENGTH
        )
        spelled = Decoder(t5_1_1.module, batch_size=4)(
            t5_1_1.params, [np.concatenate([words[prompt], s]) for s in t5_1_1.sequences], LENGTH
        )
        np.testing.assert_array_equal(prompted.ids, spelled.ids)


def test_samples_depend_on_the_example_and_not_on_its_batch(t5_1_1):
    sequences = many_inputs(t5_1_1, 4)
    settings = {"method": Sampling(topk=20, num_decodes=2, seed=3)}
    wide = Decoder(t5_1_1.module, batch_size=8, input_lengths=(40,), **settings)
    narrow = Decoder(t5_1_1.module, batch_size=3, max_buckets=1, **settings)
    decodes = wide(t5_1_1.params, sequences, 6)
    np.testing.assert_array_equal(decodes.ids, narrow(t5_1_1.params, sequences, 6).ids)
    other = wide(t5_1_1.params, sequences, 6, rng=jax.random.key(4))
    assert (decodes.ids != other.ids).any()


def test_bfloat16_activations(t5_1_1):
    module = Transformer(t5_1_1.module.config.replace(dtype=jnp.bfloat16))
    decodes = decode(module, t5_1_1.params, t5_1_1.inputs, METHODS["beam4"])
    assert decodes.ids.dtype == jnp.int32
    assert decodes.scores.dtype == jnp.float32
    want = t5_1_1.arrays["decode/beam4_scores"][:, -1]
    np.testing.assert_allclose(decodes.scores[:, -1], want, rtol=0.05)


def test_bad_data_are_the_users_to_mend(t5_1_1):
    decoder = Decoder(t5_1_1.module, batch_size=2, input_lengths=(8, 4))
    five, none = np.full(5, 3, np.int32), np.zeros(0, np.int32)
    with pytest.raises(UserError, match="Example 1 .* no tokens"):
        decoder(t5_1_1.params, [five, none], 4)
    with pytest.raises(UserError, match="Example 1 .* 9 tokens, .* 8; raise"):
        decoder(t5_1_1.params, [five, np.full(9, 3, np.int32)], 4)
    assert decoder(t5_1_1.params, [], 4).ids.shape == (0, 1, 4)
    assert decoder.compilations == []


def padded_tokens(lengths, buckets, batch_size, outputs):
    batches = batches_by_length(lengths, outputs, buckets, batch_size)
    return sum(batch_size * (batch.input_length + batch.limit) for batch in batches)


def test_chosen_input_lengths_bound_the_waste():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4, 1, size=5000), 1, 1024).astype(int)
    choose = functools.partial(choose_input_lengths, lengths, 16, batch_size=32)
    costs = []
    for buckets in (1, 2, 4, 8):
        chosen = choose(max_buckets=buckets, tolerance=0.0)
        assert len(chosen) <= buckets
        assert max(chosen) >= lengths.max()
        assert all(length % 16 == 0 for length in chosen)
        costs.append(padded_tokens(lengths, chosen, 32, 16))
    assert costs == sorted(costs, reverse=True)
    assert costs[2] < 0.45 * costs[0]
    # A length that saves little is not worth its compilation.
    assert len(choose(max_buckets=8)) < 8
    assert choose_input_lengths([5, 7, 16], 8, batch_size=2) == (16,)


@pytest.mark.parametrize("seed", range(3))
def test_chosen_input_lengths_are_the_best_ones(seed):
    rng = np.random.default_rng(seed)
    lengths, limits = rng.integers(1, 60, size=40), rng.choice([2, 9], size=40)
    sizes = sorted({-(-n // 8) * 8 for n in lengths.tolist()})
    chosen = choose_input_lengths(
        lengths, limits, batch_size=4, max_buckets=3, multiple=8, tolerance=0.0
    )
    best = min(
        padded_tokens(lengths, (*some, sizes[-1]), 4, limits)
        for k in range(3)
        for some in itertools.combinations(sizes[:-1], k)
    )
    assert padded_tokens(lengths, chosen, 4, limits) == best


def test_batches_hold_every_example_once_longest_first():
    rng = np.random.default_rng(0)
    lengths, limits = rng.integers(1, 33, size=50), rng.choice([2, 9], size=50)
    batches = batches_by_length(lengths, limits, (32, 8, 16), batch_size=8)
    assert sorted(np.concatenate([batch.rows for batch in batches]).tolist()) == list(range(50))
    padded = [batch.input_length for batch in batches]
    assert padded == sorted(padded, reverse=True)
    assert {(batch.input_length, batch.output_length) for batch in batches} == {
        (length, 9) for length in (8, 16, 32)
    }
    for batch in batches:
        assert len(batch.rows) <= 8
        assert lengths[batch.rows].max() <= batch.input_length
        assert batch.input_length == min(n for n in (8, 16, 32) if n >= lengths[batch.rows].max())
        assert (limits[batch.rows] == batch.limit).all()
