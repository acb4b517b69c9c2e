"""T5Gemma against what `transformers` computes, and every way of running it against the plain one.

The golden model has two widths, grouped heads, windows, caps; `tests/golden/make_hf_t5gemma.py`.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scan_helpers import scan_params

from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import hf_t5gemma
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.decoding import BeamSearch, Greedy, decoder, likelihood
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.network import T5GemmaConfig, Transformer
from promot_t5x.network.gemma.stacks import views
from promot_t5x.network.parameters import initial_params, param_axes, param_shapes
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids

pytestmark = pytest.mark.slow

DIRECTORY = Path(__file__).parents[2] / "golden" / "hf_t5gemma"


@pytest.fixture(scope="module")
def golden():
    """(configuration, parameters, what transformers computes)."""
    config = open_stored(DIRECTORY).shape.config().replace(dropout_rate=0.0)
    with np.load(DIRECTORY / "expected.npz") as arrays:
        return config, open_checkpoint(DIRECTORY, config).read_tree(), dict(arrays)


def error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def batch_of(expected):
    return {
        "encoder_input_tokens": expected["inputs"],
        "decoder_input_tokens": expected["decoder_inputs"],
        "decoder_target_tokens": expected["labels"],
    }


def loss_and_logits(config, params, batch, weights):
    logits = Transformer(config).apply({"params": params}, **batch, enable_dropout=False)
    log_probs = jax.nn.log_softmax(logits)
    targets = batch["decoder_target_tokens"]
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights), logits


value_and_grads = jax.jit(
    jax.value_and_grad(loss_and_logits, argnums=1, has_aux=True), static_argnums=0
)


@pytest.fixture(scope="module")
def plain(golden):
    """((loss, logits), gradients) of the golden batch: longer and shorter rows than the window."""
    config, params, expected = golden
    return value_and_grads(config, params, batch_of(expected), expected["weights"])


def test_logits_and_gradients(golden, plain):
    _, _, expected = golden
    (_, logits), gradients = plain
    real = expected["weights"][..., None]
    assert error(logits * real, expected["logits"] * real) <= 1e-5
    flat = flatten_dict(gradients, sep="/")
    found = {hf_t5gemma.tensor_name(path): leaf for path, leaf in flat.items()}
    known = {name.removeprefix("grad/") for name in expected if name.startswith("grad/")}
    assert {name for name, _ in found} == known - set(hf_t5gemma.HEADS)
    for (name, transposed), leaf in found.items():
        theirs = expected[f"grad/{name}"]
        assert error(leaf, theirs.T if transposed else theirs) <= 1e-4, name


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_equals_unscanned(golden, plain, remat):
    config, params, expected = golden
    scanned = config.replace(scan_layers=True, remat_policy=remat)
    (loss, _), gradients = value_and_grads(
        scanned, scan_params(params), batch_of(expected), expected["weights"]
    )
    np.testing.assert_allclose(loss, plain[0][0], rtol=1e-5)
    wanted = flatten_dict(scan_params(jax.tree.map(np.asarray, plain[1])), sep="/")
    for path, leaf in flatten_dict(gradients, sep="/").items():
        assert error(leaf, wanted[path]) <= 1e-4, path


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    ("method", "theirs"),
    [(Greedy(), "greedy"), (BeamSearch(num_decodes=4, alpha=0.0), "beams")],
    ids=["greedy", "beam"],
)
def test_decoded_ids(golden, method, theirs, scan):
    config, params, expected = golden
    if scan:
        config = config.replace(scan_layers=True)
        params = scan_params(params)

    @jax.jit
    def decode(params):
        found = decoder.decode(
            Transformer(config),
            params,
            expected["inputs"],
            max_decode_length=12,
            method=method,
            eos_id=1,
            start_id=2,
        )
        return found.ids

    found = np.asarray(decode(params))[:, -1]
    assert (expected[theirs][:, 0] == 2).all()
    np.testing.assert_array_equal(
        found[:, : expected[theirs].shape[1] - 1], expected[theirs][:, 1:]
    )


def test_likelihood_of_candidates_begins_with_bos(golden):
    config, params, expected = golden
    found = likelihood.score_candidates(
        Transformer(config),
        params,
        expected["inputs"],
        jnp.asarray(expected["labels"])[:, None],
        start_id=2,
    )
    log_probs = jax.nn.log_softmax(expected["logits"])
    chosen = np.take_along_axis(np.asarray(log_probs), expected["labels"][..., None], -1)[..., 0]
    np.testing.assert_allclose(
        found.log_probs[:, 0], (chosen * expected["weights"]).sum(1), rtol=1e-5
    )


def packed(examples, inputs_length, targets_length):
    """One row of examples (inputs, decoder inputs, targets), with segments and positions."""
    row = {}
    for side, length, number in (("encoder", inputs_length, 0), ("decoder", targets_length, 2)):
        sizes = [len(example[number]) for example in examples]
        left = length - sum(sizes)
        row[f"{side}_segment_ids"] = np.repeat([*range(1, len(sizes) + 1), 0], [*sizes, left])
        row[f"{side}_positions"] = np.concatenate([*map(np.arange, sizes), np.zeros(left, int)])
    for number, name in enumerate(batch_of({"inputs": 0, "decoder_inputs": 0, "labels": 0})):
        length = inputs_length if number == 0 else targets_length
        tokens = np.concatenate([example[number] for example in examples])
        row[name] = np.pad(tokens, (0, length - len(tokens)))
    return {name: tokens[None] for name, tokens in row.items()}


def test_packed_equals_unpacked_with_prompts(golden):
    """Windows and rotations go by positions within an example, wherever it stands in its row."""
    config, params, expected = golden
    config = config.replace(num_prompts=2, prompt_length=3)
    table = np.random.default_rng(0).normal(size=(2, 3, config.emb_dim)).astype(np.float32)
    params = unflatten_dict({**flatten_dict(params, sep="/"), PROMPT_PATH: table * 0.3}, sep="/")
    examples = []
    for row in range(3):
        real = expected["inputs"][row][expected["inputs"][row] > 0]
        length = expected["weights"][row].sum()
        examples.append(
            (
                np.concatenate([prompt_ids(config, row % 2), real]),
                expected["decoder_inputs"][row][:length].copy(),
                expected["labels"][row][:length].copy(),
            )
        )
    # A token of id 0 inside an example is one: neither masked nor without weight.
    examples[0][0][7] = examples[0][2][4] = examples[0][1][5] = 0
    alone = [packed([example], 16, 11) for example in examples]
    for row in alone:
        for side in ("encoder", "decoder"):
            del row[f"{side}_segment_ids"], row[f"{side}_positions"]
    unpacked = {name: np.concatenate([row[name] for row in alone]) for name in alone[0]}
    weights = np.concatenate([expected["weights"][:3, :11]])
    together = packed(examples, 40, 24)
    weight = (together["decoder_segment_ids"] > 0).astype(np.float32)
    (loss, _), gradients = value_and_grads(config, params, unpacked, weights)
    (same, _), again = value_and_grads(config, params, together, weight)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    wanted = flatten_dict(gradients, sep="/")
    assert np.abs(wanted[PROMPT_PATH]).max() > 0
    for path, leaf in flatten_dict(again, sep="/").items():
        assert error(leaf, wanted[path]) <= 1e-4, path


def test_a_mesh_that_cannot_split_the_key_heads(golden, plain):
    """Queries are split four ways over a decoder with a single head of keys and values."""
    config, params, expected = golden
    partitioner = Partitioner(num_partitions=4)
    placed = partitioner.place(params, partitioner.shard_tree(param_axes(config), params))
    batch = partitioner.place_batch(batch_of(expected)) if jax.device_count() == 8 else None
    assert batch is not None
    with partitioner.activate():
        (loss, _), gradients = value_and_grads(config, placed, batch, expected["weights"])
    np.testing.assert_allclose(loss, plain[0][0], rtol=1e-5)
    wanted = flatten_dict(plain[1], sep="/")
    for path, leaf in flatten_dict(gradients, sep="/").items():
        assert error(leaf, wanted[path]) <= 1e-4, path


def test_parameters_and_their_axes(golden):
    config, _, _ = golden
    config = config.replace(scan_layers=True, num_prompts=1, prompt_length=2)
    shapes = flatten_dict(param_shapes(config), sep="/")
    axes = flatten_dict(param_axes(config), sep="/")
    assert shapes.keys() == axes.keys()
    assert all(len(axes[path]) == len(leaf.shape) for path, leaf in shapes.items())
    assert shapes["decoder/decoder/encoder_decoder_attention/key/kernel"].shape == (16, 2, 8)
    assert axes["decoder/decoder/self_attention/query/kernel"] == ("embed", "layers", "joined_kv")
    assert shapes["decoder/token_embedder/embedding"].shape == (96, 20)
    drawn, _ = initial_params(config.replace(scan_layers=False), jax.random.key(0))
    embedding = np.asarray(drawn["token_embedder"]["embedding"]) * np.sqrt(config.emb_dim)
    assert abs(embedding.std() - 1) < 0.1


def test_windows_of_layers(golden):
    config, _, _ = golden

    def windows(depth, **changes):
        return [view.window for view in views(config.replace(**changes), depth)]

    assert windows(5) == [5, None, 5, None, 5]
    assert windows(4, full_attention_period=3) == [5, 5, None, 5]
    assert windows(2, sliding_window=0) == [None, None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads = 4 is no multiple of num_kv_heads = 3"),
        ({"decoder_head_dim": 5}, "decoder_head_dim is 5; it must be even"),
        ({"query_scale": 0.0}, "query_scale is 0.0; it must be above 0"),
        ({"sliding_window": -1}, "sliding_window is -1; it must be at least 0"),
    ],
)
def test_what_no_network_can_be(golden, changes, message):
    with pytest.raises(UserError, match=message):
        T5GemmaConfig(**{**dataclasses.asdict(golden[0]), **changes})
