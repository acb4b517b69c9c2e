"""Prompts as virtual tokens: without them nothing changes, with them each reads its own rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params

from promot_t5x.errors import UserError
from promot_t5x.network.parameters import initial_params, param_axes
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids
from promot_t5x.network.transformer import T5Config, Transformer

pytestmark = pytest.mark.slow

PLAIN = T5Config(
    vocab_size=40,
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=2,
    num_decoder_layers=1,
    mlp_activations=("gelu", "linear"),
)
PROMPTED = PLAIN.replace(num_prompts=3, prompt_length=4)


@pytest.fixture(scope="module")
def params():
    return initial_params(PROMPTED, jax.random.key(0))[0]


def without_prompt(params):
    encoder = {name: part for name, part in params["encoder"].items() if name != "prompt"}
    return {**params, "encoder": encoder}


def logits(config, params, inputs, targets, **features):
    @jax.jit
    def call(params):
        return Transformer(config).apply(
            {"params": params}, inputs, targets, targets, enable_dropout=False, **features
        )

    return np.asarray(call(params))


@pytest.fixture(scope="module")
def texts():
    """[2, 6] inputs, the second padded, and [2, 5] targets."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(3, 40, (2, 6), np.int32)
    inputs[1, 4:] = 0
    return inputs, rng.integers(3, 40, (2, 5), np.int32)


def test_the_table_exists_if_there_are_prompts():
    axes = flatten_dict(param_axes(PROMPTED), sep="/")
    assert axes[PROMPT_PATH] == ("tasks", "prompt", "prompt_embed")
    assert PROMPT_PATH == "encoder/prompt/prompt"
    for config in (PLAIN, PLAIN.replace(num_prompts=3), PLAIN.replace(prompt_length=4)):
        assert PROMPT_PATH not in flatten_dict(param_axes(config), sep="/")


def test_the_rest_of_the_tree_is_the_plain_networks(params):
    prompt = params["encoder"]["prompt"]["prompt"]
    assert (prompt.shape, prompt.dtype) == ((3, 4, 8), jnp.float32)
    assert 0.4 < np.abs(prompt).max() <= 0.5
    plain = initial_params(PLAIN, jax.random.key(0))[0]
    jax.tree.map(np.testing.assert_array_equal, without_prompt(params), plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scan", [False, True])
def test_without_virtual_ids_the_network_is_the_plain_one(params, texts, scan, dtype):
    prompted = PROMPTED.replace(scan_layers=scan, dtype=dtype)
    if scan:
        params = scan_params(params)
    plain = PLAIN.replace(scan_layers=scan, dtype=dtype)
    np.testing.assert_array_equal(
        logits(prompted, params, *texts), logits(plain, without_prompt(params), *texts)
    )


def test_every_row_reads_its_own_prompt(params, texts):
    """A batch of several prompts equals a network whose vocabulary holds the prompts' vectors."""
    inputs, targets = texts
    prompts = np.stack([prompt_ids(PROMPTED, 2), prompt_ids(PROMPTED, 0)])
    mixed = np.concatenate([prompts, inputs], axis=1)
    table = params["token_embedder"]["embedding"]
    vectors = params["encoder"]["prompt"]["prompt"].reshape(12, 8)
    bigger = {
        **without_prompt(params),
        "token_embedder": {"embedding": jnp.concatenate([table, vectors])},
    }
    config = PLAIN.replace(vocab_size=52)
    head = params["decoder"]["logits_dense"]["kernel"]
    wide = {"kernel": jnp.concatenate([head, jnp.zeros((8, 12))], axis=1)}
    bigger = {**bigger, "decoder": {**bigger["decoder"], "logits_dense": wide}}
    expected = logits(config, bigger, mixed, targets)[..., :40]
    np.testing.assert_allclose(logits(PROMPTED, params, mixed, targets), expected, rtol=1e-5)
    # And the prompt matters.
    swapped = np.concatenate([prompts[::-1], inputs], axis=1)
    other = logits(PROMPTED, params, swapped, targets)
    assert np.abs(other - expected).max() > 1e-3


def test_packed_prompts_equal_unpacked_ones(params, texts):
    inputs, targets = texts
    lengths = (6, 4)
    rows = [
        np.concatenate([prompt_ids(PROMPTED, k), inputs[i, : lengths[i]]])
        for i, k in enumerate((1, 2))
    ]
    packed = np.concatenate(rows)[None]
    source_segments = np.repeat([1, 2], [len(row) for row in rows]).astype(np.int32)[None]
    target_segments = np.repeat([1, 2], 5).astype(np.int32)[None]
    together = logits(
        PROMPTED,
        params,
        packed,
        targets.reshape(1, 10),
        encoder_segment_ids=source_segments,
        decoder_segment_ids=target_segments,
    ).reshape(2, 5, 40)
    for i, row in enumerate(rows):
        alone = logits(PROMPTED, params, row[None], targets[i : i + 1])[0]
        np.testing.assert_allclose(together[i], alone, atol=2e-6 * np.abs(alone).max())


def test_only_the_prompts_in_the_batch_have_gradients(params, texts):
    inputs, targets = texts
    mixed = np.concatenate([np.stack([prompt_ids(PROMPTED, 1)] * 2), inputs], axis=1)

    def loss(prompt):
        whole = {**params, "encoder": {**params["encoder"], "prompt": {"prompt": prompt}}}
        module = Transformer(PROMPTED)
        return module.apply({"params": whole}, mixed, targets, targets, enable_dropout=False).var()

    grads = np.asarray(jax.jit(jax.grad(loss))(params["encoder"]["prompt"]["prompt"]))
    assert (np.abs(grads[1]).max(axis=-1) > 0).all()
    assert not grads[[0, 2]].any()


def test_prompt_ids():
    assert prompt_ids(PROMPTED, 1).tolist() == [44, 45, 46, 47]
    assert prompt_ids(PROMPTED, 1).dtype == np.int32
    for prompt in (3, -1):
        with pytest.raises(UserError, match=f"no prompt {prompt}: .* is 3"):
            prompt_ids(PROMPTED, prompt)
