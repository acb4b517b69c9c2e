"""Stacking layers and splitting them again changes no bit."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from promot_t5x.errors import UserError
from promot_t5x.network.scan import LAYER_AXIS, layer_axis, scan_params, unscan_params
from promot_t5x.network.transformer import T5Config, param_shapes

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
    back = unscan_params(scan_params(params, CONFIG), CONFIG)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_scanned_tree_is_the_scanned_networks(params):
    scanned = scan_params(params, CONFIG)
    expected = param_shapes(CONFIG.replace(scan_layers=True))
    assert jax.tree.structure(scanned) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), scanned, expected)
    kernel = scanned["encoder"]["encoder"]["mlp"]["wo"]["kernel"]
    # Layer 10 sorts before layer 2 as text; it must not here.
    np.testing.assert_array_equal(
        kernel[:, 10], params["encoder"]["layers_10"]["mlp"]["wo"]["kernel"]
    )


def test_leaves_keep_their_kind_and_type(params):
    part = {"decoder": {k: v for k, v in params["decoder"].items() if k.startswith("layers_")}}
    on_device = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "bfloat16"), part)
    for leaf in jax.tree.leaves(scan_params(on_device, CONFIG)):
        assert isinstance(leaf, jax.Array) and leaf.dtype == "bfloat16"
    for leaf in jax.tree.leaves(scan_params(part, CONFIG)):
        assert isinstance(leaf, np.ndarray)


def test_a_tree_without_layers_is_unchanged(params):
    prompt = {"encoder": {"prompt": params["encoder"]["prompt"]}}
    assert scan_params(prompt, CONFIG) == unscan_params(prompt, CONFIG) == prompt


def test_layer_axis(params):
    axes = {path: layer_axis(path) for path in flatten_dict(scan_params(params, CONFIG), sep="/")}
    assert axes["encoder/encoder/attention/query/kernel"] == LAYER_AXIS == 1
    assert axes["decoder/decoder/pre_mlp_layer_norm/scale"] == 1
    for path in ("token_embedder/embedding", "encoder/encoder_norm/scale", "encoder/prompt/prompt"):
        assert axes[path] is None
    assert axes["decoder/relpos_bias/rel_embedding"] is None
    assert layer_axis("encoder/layers_0/attention/query/kernel") is None


def test_errors_name_the_stack_and_both_depths(params):
    deeper = CONFIG.replace(num_decoder_layers=4)
    with pytest.raises(UserError, match=r"decoder/decoder/.*\[0, 1, 2\] and the config 4"):
        scan_params(params, deeper)
    scanned = scan_params(params, CONFIG)
    with pytest.raises(UserError, match="config 4 layers"):
        unscan_params(scanned, deeper)
    with pytest.raises(UserError, match="stacked already"):
        scan_params(scanned, CONFIG)
    with pytest.raises(UserError, match="one layer already"):
        unscan_params(params, CONFIG)
