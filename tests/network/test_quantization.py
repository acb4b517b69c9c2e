"""Kernels and embeddings in int8: how far weights move, on any mesh, and what layers compute."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import QUICKLY, relative_error, tiny_config
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.network import T5GemmaConfig, quantization
from promot_t5x.network.gemma.config import DecoderOnlyConfig
from promot_t5x.network.lora import LoRA
from promot_t5x.network.parameters import module_of, param_axes, param_shapes

KERNEL = "encoder/layers_0/mlp/wo/kernel"
STACK = "encoder/encoder/mlp/wo/kernel"
EMBEDDING = "token_embedder/embedding"


def test_a_kernel_by_hand():
    # A scale is a 127th of the largest magnitude of its column: 1, 1/2, 1/127, 0. Halves go away
    # from zero.
    kernel = np.array([[127, 31.75, -1, 0], [-63.5, 63.5, 0.5, 0], [0.49, -0.2, 1 / 300, 0]])
    array, scales = quantization.quantized(KERNEL, kernel.astype(np.float32))
    assert (array.dtype, scales.dtype) == ("int8", "float32")
    np.testing.assert_array_equal(array, [[127, 64, -127, 0], [-64, 127, 64, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(scales, [1, 0.5, 1 / 127, 0], rtol=1e-7)


def test_an_embedding_has_a_scale_a_row():
    table = np.array([[0.5, -127, 3], [2.54, 1.27, -1.28]], np.float32)
    array, scales = quantization.quantized(EMBEDDING, table)
    np.testing.assert_array_equal(array, [[1, -127, 3], [127, 64, -64]])
    np.testing.assert_allclose(scales, [1, 0.02], rtol=1e-6)


@pytest.mark.parametrize("path", [KERNEL, STACK, EMBEDDING])
def test_no_weight_moves_by_more_than_half_a_scale(path):
    shape = (64, 3, 24) if path == STACK else (64, 24)
    exact = np.random.default_rng(0).standard_t(3, shape).astype(np.float32)
    array, scales = quantization.quantized(path, exact)
    found = np.asarray(quantization.dequantized(path, array, scales))
    wide = np.broadcast_to(
        {KERNEL: scales[None], STACK: scales.T[None], EMBEDDING: scales[:, None]}[path], shape
    )
    assert np.abs(found - exact).max() > 0
    assert (np.abs(found - exact) <= 0.5 * wide * (1 + 1e-5)).all()
    assert (np.abs(array).max(1 if path == EMBEDDING else 0) == quantization.LARGEST).all()
    if path == STACK:  # as its layers alone
        for layer in range(3):
            alone = quantization.quantized(KERNEL, exact[:, layer])
            np.testing.assert_array_equal(array[:, layer], alone[0])
            np.testing.assert_array_equal(scales[:, layer], alone[1])


def test_every_mesh_makes_the_same_bits():
    kernel = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    array, scales = quantization.quantized(KERNEL, kernel)
    # By definition: so many of (k + 1/2) scale are not above the magnitude.
    bounds = (np.arange(127, dtype=np.float32) + np.float32(0.5)) * np.asarray(scales)[:, None]
    steps = (np.abs(kernel)[..., None] >= bounds).sum(-1)
    np.testing.assert_array_equal(array, np.sign(kernel) * steps)
    partitioner = Partitioner(num_partitions=4)
    split = jax.device_put(kernel, partitioner.sharding(("mlp", "embed")))
    for found, alone in zip(quantization.quantized(KERNEL, split), (array, scales), strict=True):
        np.testing.assert_array_equal(found, alone)


def test_paths_of_scales():
    assert quantization.scale_of(KERNEL) == f"{KERNEL}_scale"
    assert quantization.owner(f"{EMBEDDING}_scale") == EMBEDDING
    for path in ("decoder/layers_0/attention/query_norm/scale", "x/rel_embedding", "x/bias_scale"):
        assert quantization.owner(path) == path
        assert not quantization.is_quantized(path)


SIZES = {"vocab_size": 64, "num_encoder_layers": 2, "num_decoder_layers": 1}
GROUPED = {
    **SIZES,
    "emb_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 24,
    "mlp_activations": ("gelu", "linear"),
    "query_scale": 4.0,
    "dropout_rate": 0.0,
}
CONFIGS = {
    "T5 1.1": tiny_config(**SIZES, num_prompts=1, prompt_length=2),
    "T5 1.0": tiny_config(**SIZES, logits_via_embedding=True, mlp_activations=("relu",)),
    "scanned": tiny_config(**SIZES, scan_layers=True, remat_policy="full"),
    "LoRA": tiny_config(**SIZES, lora=LoRA(kernels=(".*/kernel",))),
    "T5Gemma": T5GemmaConfig(**GROUPED),
    "decoder-only": DecoderOnlyConfig(
        **{**GROUPED, "num_encoder_layers": 0}, qkv_bias=True, scan_layers=True
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_compute_with_what_int8_stands_for(name):
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    exact = {
        path: 0.3 * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(param_shapes(config), sep="/").items()
    }
    wanted = quantization.stored_shapes(exact, "int8")
    stored = quantization.cast(exact, wanted)
    assert {p: (a.shape, a.dtype) for p, a in stored.items()} == {
        p: (a.shape, a.dtype) for p, a in wanted.items()
    }
    plain = {
        path: quantization.dequantized(path, stored[path], stored[quantization.scale_of(path)])
        if quantization.is_quantized(path)
        else array
        for path, array in exact.items()
    }
    ids = jnp.array([[65 if config.num_virtual_ids else 5, 9, 63, 2, 7, 1]] * 2)

    @functools.partial(jax.jit, compiler_options=QUICKLY)
    def logits(params):
        rows = (ids, ids % 64, ids % 64)
        params = unflatten_dict(params, sep="/")
        return module_of(config).apply({"params": params}, *rows, enable_dropout=False)

    found, alike, float32 = map(logits, (stored, plain, exact))
    assert relative_error(found, alike) < 1e-5
    assert 1e-4 < relative_error(found, float32) < 0.1
    axes = quantization.stored_axes(flatten_dict(param_axes(config), sep="/"))
    assert all(len(axes[path]) == array.ndim for path, array in stored.items())
