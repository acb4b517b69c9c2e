"""Decoder-only networks against what `transformers` computes, and their other ways of running.

The golden models are tiny ones of each type; `tests/golden/make_hf_decoder_only.py`.
"""

import causal_helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params

from promot_t5x.checkpoints.formats import hf_decoder_only
from promot_t5x.errors import UserError
from promot_t5x.network.gemma import DecoderOnlyConfig
from promot_t5x.network.gemma.stacks import views
from promot_t5x.network.parameters import initial_params, param_axes, param_shapes
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids

pytestmark = pytest.mark.slow


def golden(kind):
    """Return (configuration, parameters, what transformers computes)."""
    with np.load(causal_helpers.DIRECTORY / kind / "expected.npz") as arrays:
        return *causal_helpers.golden(kind), dict(arrays)


def error(actual, expected):
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def loss_and_logits(config, params, ids, weights, segment_ids=None, positions=None):
    """Sum the loss of the tokens that `weights` names, each predicted by those before it."""
    logits = causal_helpers.sequence_logits(config, params, ids, segment_ids, positions)
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    targets = jnp.minimum(ids[:, 1:], config.vocab_size - 1)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -jnp.sum(chosen * weights[:, 1:]), logits


value_and_grads = jax.jit(
    jax.value_and_grad(loss_and_logits, argnums=1, has_aux=True), static_argnums=0
)


@pytest.mark.parametrize("kind", hf_decoder_only.MODEL_TYPES)
def test_logits_and_gradients(kind):
    """Rows longer and shorter than the windows."""
    config, params, expected = golden(kind)
    (_, logits), gradients = value_and_grads(config, params, expected["ids"], expected["weights"])
    real = expected["real"][..., None]
    assert error(logits * real, expected["logits"] * real) <= 1e-5
    flat = flatten_dict(gradients, sep="/")
    found = {hf_decoder_only.tensor_name(path, kind): leaf for path, leaf in flat.items()}
    assert {f"grad/{name}" for name, _ in found} == {n for n in expected if n.startswith("grad/")}
    for (name, transposed), leaf in found.items():
        theirs = expected[f"grad/{name}"]
        assert error(leaf, theirs.T if transposed else theirs) <= 1e-4, name


@pytest.mark.parametrize("remat", ["none", "full"])
def test_scanned_equals_unscanned(remat):
    """Windows and wavelengths differ between the layers of the one loop."""
    config, params, expected = golden("gemma3_text")
    ids, weights = expected["ids"], expected["weights"]
    (loss, _), gradients = value_and_grads(config, params, ids, weights)
    scanned = config.replace(scan_layers=True, remat_policy=remat)
    (same, _), again = value_and_grads(scanned, scan_params(params), ids, weights)
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    wanted = flatten_dict(scan_params(jax.tree.map(np.asarray, gradients)), sep="/")
    for path, leaf in flatten_dict(again, sep="/").items():
        assert error(leaf, wanted[path]) <= 1e-4, path


def test_packed_equals_unpacked_with_prompts():
    """Each example has a prompt in front, and no part in another's loss or gradients."""
    expected = golden("gemma3_text")[2]
    config, params = causal_helpers.prompted("gemma3_text")
    sizes = expected["real"].sum(1)
    expected["ids"][0, 4] = 0  # a token like others
    rows = [
        np.concatenate([prompt_ids(config, row % 2), expected["ids"][row][:size]])
        for row, size in enumerate(sizes)
    ]
    weights = [
        np.pad(expected["weights"][row][:size], (3, 0)).astype(np.float32)
        for row, size in enumerate(sizes)
    ]

    def padded(arrays, length):
        return np.stack([np.pad(array, (0, length - len(array))) for array in arrays])

    (loss, _), gradients = value_and_grads(config, params, padded(rows, 14), padded(weights, 14))
    lengths = [len(row) for row in rows]
    packed = [
        np.concatenate(rows),
        np.concatenate(weights),
        np.repeat([1, 2, 3], lengths),
        np.concatenate([np.arange(length) for length in lengths]),
    ]
    (same, _), again = value_and_grads(config, params, *(padded([array], 33) for array in packed))
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    wanted = flatten_dict(gradients, sep="/")
    assert np.abs(wanted[PROMPT_PATH]).max() > 0
    for path, leaf in flatten_dict(again, sep="/").items():
        assert error(leaf, wanted[path]) <= 1e-4, path


def test_parameters_and_their_axes():
    config = golden("qwen2")[0].replace(
        scan_layers=True, num_prompts=1, prompt_length=2, qk_norm=True, logits_via_embedding=False
    )
    shapes = flatten_dict(param_shapes(config), sep="/")
    axes = flatten_dict(param_axes(config), sep="/")
    assert shapes.keys() == axes.keys()
    assert all(len(axes[path]) == len(leaf.shape) for path, leaf in shapes.items())
    assert axes["decoder/decoder/attention/key/bias"] == ("joined_kv", "layers")
    assert axes["decoder/decoder/attention/key_norm/scale"] == ("kv", "layers")
    assert shapes["decoder/logits_dense/kernel"].shape == (16, 48)
    assert shapes[PROMPT_PATH].shape == (1, 2, 16)
    drawn, _ = initial_params(config.replace(scan_layers=False), jax.random.key(0))
    assert (drawn["decoder"]["decoder_norm"]["scale"] == 1).all()


def test_views_of_layers():
    """By hand: wavelengths of a head of 4, of theta 100 where it slides and 10,000 over 8."""
    config = DecoderOnlyConfig(
        vocab_size=8,
        head_dim=4,
        sliding_window=5,
        full_attention_period=3,
        rope_theta=10_000.0,
        sliding_rope_theta=100.0,
        rope_factor=8.0,
    )
    first, _, third, last = views(config, 4)
    assert (first.window, third.window, last.window) == (5, None, 5)
    np.testing.assert_allclose(first.frequencies, [1, 0.1])
    np.testing.assert_allclose(third.frequencies, [1 / 8, 0.01 / 8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_encoder_layers": 2}, "num_encoder_layers is 2; a decoder-only network has none"),
        ({"rope_factor": 0.0}, "rope_factor is 0.0; it must be above 0"),
        ({"sliding_window": 0}, "full_attention_period is 2, but sliding_window is 0"),
        ({"num_decoder_layers": 0}, "num_decoder_layers is 0; it must be at least 1"),
        ({"num_kv_heads": 3}, "num_heads = 8 is no multiple of num_kv_heads = 3"),
    ],
)
def test_what_no_network_can_be(changes, message):
    with pytest.raises(UserError, match=message):
        DecoderOnlyConfig(vocab_size=8, **changes)
