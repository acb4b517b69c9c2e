"""The tree of a scanned network, and where it has its layers."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params, unscan_params

from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.scan import LAYER_AXIS, layer_axis
from promot_t5x.network.transformer import T5Config

CONFIG = T5Config(
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=12,
    num_encoder_layers=12,
    num_decoder_layers=3,
    mlp_activations=("gelu", "linear"),
    num_prompts=2,
    prompt_length=3,
)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), param_shapes(CONFIG)
    )


def test_round_trip_is_bit_exact(params):
    back = unscan_params(scan_params(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_scanned_tree_is_the_scanned_networks(params):
    scanned = scan_params(params)
    expected = param_shapes(CONFIG.replace(scan_layers=True))
    assert jax.tree.structure(scanned) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), scanned, expected)
    kernel = scanned["encoder"]["encoder"]["mlp"]["wo"]["kernel"]
    # Layer 10 sorts before layer 2 as text; it must not here.
    np.testing.assert_array_equal(
        kernel[:, 10], params["encoder"]["layers_10"]["mlp"]["wo"]["kernel"]
    )


def test_a_tree_without_layers_is_unchanged(params):
    prompt = {"encoder": {"prompt": params["encoder"]["prompt"]}}
    assert scan_params(prompt) == unscan_params(prompt) == prompt


def test_layer_axis(params):
    axes = {path: layer_axis(path) for path in flatten_dict(scan_params(params), sep="/")}
    assert axes["encoder/encoder/attention/query/kernel"] == LAYER_AXIS == 1
    assert axes["decoder/decoder/pre_mlp_layer_norm/scale"] == 1
    for path in ("token_embedder/embedding", "encoder/encoder_norm/scale", "encoder/prompt/prompt"):
        assert axes[path] is None
    assert axes["decoder/relpos_bias/rel_embedding"] is None
    assert layer_axis("encoder/layers_0/attention/query/kernel") is None
