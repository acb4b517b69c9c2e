"""Adapters of kernels: what they compute, and what they leave alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import QUICKLY, tiny_config
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.errors import UserError
from promot_t5x.network import T5GemmaConfig, Transformer, lora
from promot_t5x.network.layers import Dense
from promot_t5x.network.lora import LoRA
from promot_t5x.network.parameters import param_axes, param_shapes

pytestmark = pytest.mark.slow

EVERY_KIND = (".*/kernel",)
SIZES = {"vocab_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 1}
GEMMA = T5GemmaConfig(
    vocab_size=64,
    emb_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("gelu", "linear"),
    query_scale=4.0,
    dropout_rate=0.0,
)
CONFIGS = {
    "T5": tiny_config(**SIZES),
    "scanned": tiny_config(**SIZES, scan_layers=True, remat_policy="full"),
    "bfloat16 and dropout": tiny_config(**SIZES, dtype="bfloat16", dropout_rate=0.1),
    "T5Gemma": GEMMA,
}
IDS = np.arange(1, 13, dtype=np.int32).reshape(2, 6)


def drawn(config, *, b_scale):
    """Random parameters with adapters, by path."""
    rng = np.random.default_rng(0)
    shapes = flatten_dict(param_shapes(config), sep="/")
    return {
        path: (rng.normal(size=leaf.shape) * (b_scale if path.endswith("lora_b") else 0.3)).astype(
            np.float32
        )
        for path, leaf in shapes.items()
    }


def logits(config, params, key=None):
    def apply(params):
        return Transformer(config).apply(
            {"params": params},
            *(IDS, IDS, IDS),
            enable_dropout=key is not None,
            rngs=None if key is None else {"dropout": key},
        )

    return np.asarray(
        jax.jit(apply, compiler_options=QUICKLY)(unflatten_dict(params, sep="/")), np.float32
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_b_of_zeros_is_the_base_bit_for_bit(name):
    base = CONFIGS[name]
    settings = LoRA(rank=3, kernels=EVERY_KIND, dropout_rate=0.5)
    adapted = dataclasses.replace(base, lora=settings)
    params = drawn(adapted, b_scale=0.0)
    plain = {path: array for path, array in params.items() if not lora.is_adapter(path)}
    key = jax.random.key(0) if base.dropout_rate else None
    found = logits(adapted, params, key)
    assert found.tobytes() == logits(base, plain, key).tobytes()
    moved = drawn(adapted, b_scale=0.3)
    assert np.abs(logits(adapted, moved, key) - found).max() > 1e-3


@pytest.mark.parametrize("name", ["T5", "scanned", "T5Gemma"])
def test_merged_kernels_are_adapted_ones(name):
    base = CONFIGS[name]
    settings = LoRA(rank=3, alpha=5.0, kernels=EVERY_KIND)
    adapted = dataclasses.replace(base, lora=settings)
    params = drawn(adapted, b_scale=0.3)
    merged = {}
    for path, array in params.items():
        if settings.adapts(path):
            a, b = (params[part] for part in lora.parts_of(path))
            merged[path] = lora.merged(array, a, b, settings.scale)
        elif not lora.is_adapter(path):
            merged[path] = array
    found, expected = logits(base, merged), logits(adapted, params)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_projection_and_its_gradients_have_their_closed_form():
    rng = np.random.default_rng(1)
    shapes = [(5, 4), (4, 6), (5, 6), (4, 2), (2, 6)]
    x, w, dy, a, b = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    dense = Dense(
        (6,), ("embed", "mlp"), jnp.float32, lora=LoRA(rank=2, alpha=3, kernels=["ker.*"])
    )

    def projected(parts):
        params = {"kernel": w, "lora_a": parts[0], "lora_b": parts[1]}
        return jnp.sum(dense.apply({"params": params}, x) * dy)

    value, (da, db) = jax.value_and_grad(projected)((a, b))
    assert value == pytest.approx(float(jnp.sum((x @ w + 1.5 * x @ a @ b) * dy)), rel=1e-4)
    np.testing.assert_allclose(da, 1.5 * x.T @ dy @ b.T, rtol=1e-4)
    np.testing.assert_allclose(db, 1.5 * (x @ a).T @ dy, rtol=1e-4)


def test_dropout_is_of_the_adapters_inputs_alone():
    x, w = jnp.ones((64, 8)), jnp.ones((8, 4))
    parts = {"lora_a": jnp.ones((8, 1)), "lora_b": jnp.ones((1, 4))}
    settings = LoRA(rank=1, alpha=1, dropout_rate=0.5, kernels=["kernel"])
    dense = Dense((4,), ("embed", "mlp"), jnp.float32, lora=settings)
    rngs = {"dropout": jax.random.key(0)}
    kept = np.asarray(dense.apply({"params": {"kernel": w, **parts}}, x, rngs=rngs)) - 8
    assert set(np.unique(kept)) <= set(range(0, 17, 2))  # each input is 0 or 2
    assert np.mean(kept) == pytest.approx(8, abs=1.5)
    assert len(np.unique(kept)) > 3
    plain = dense.apply({"params": {"kernel": w, **parts}}, x)
    np.testing.assert_array_equal(plain, np.full((64, 4), 16))


def test_only_the_kernels_that_a_pattern_matches_have_adapters():
    settings = LoRA(rank=2, kernels=[".*attention/(query|value)/kernel", "decoder/.*/wo/kernel"])
    config = dataclasses.replace(CONFIGS["scanned"], lora=settings)
    shapes = flatten_dict(param_shapes(config), sep="/")
    found = {lora.kernel_of(path) for path in shapes if lora.is_adapter(path)}
    assert found == {
        *(f"encoder/encoder/attention/{name}/kernel" for name in ("query", "value")),
        *(
            f"decoder/decoder/{part}/{name}/kernel"
            for part in ("self_attention", "encoder_decoder_attention")
            for name in ("query", "value")
        ),
        "decoder/decoder/mlp/wo/kernel",
    }
    axes = flatten_dict(param_axes(config), sep="/")
    place = "decoder/decoder/mlp/wo"
    assert shapes[f"{place}/lora_a"].shape == (64, 1, 2)
    assert axes[f"{place}/lora_a"] == ("mlp", "layers", "lora")
    assert shapes[f"{place}/lora_b"].shape == (2, 1, 32)
    assert axes[f"{place}/lora_b"] == ("lora", "layers", "embed")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "LoRA.rank must be a positive integer, got 0"),
        ({"alpha": -1.0}, "LoRA.alpha must be a finite number"),
        ({"dropout_rate": 1.0}, r"LoRA.dropout_rate is 1.0; it must be in \[0, 1\)"),
        ({"kernels": ".*"}, "must be a list of patterns"),
        ({"kernels": ["("]}, "is no regular expression"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LoRA(**settings)


def test_a_pattern_that_matches_no_kernel_is_refused():
    with pytest.raises(
        UserError, match=r"has 'query', which matches none of the model's 2 kernels"
    ):
        lora.check_kernels(LoRA(kernels=["query"]), ["a/query/kernel", "a/key/kernel", "b/scale"])
