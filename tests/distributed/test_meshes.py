"""Results do not depend on the mesh, and nothing that is split is put together again."""

import re

import jax
import numpy as np
import pytest
from engine_helpers import (
    ALL_BUT_PROMPT,
    CONSTANT,
    PROMPT,
    QUICKLY,
    one_device_mesh,
    random_params,
    small_adafactor,
    tiny_model,
)

from promot_t5x import decoding
from promot_t5x.decoding import decoder
from promot_t5x.distributed.partitioning import AXES, Partitioner
from promot_t5x.training import state, step

pytestmark = pytest.mark.slow

BATCH, INPUTS, TARGETS, ANSWER = 16, 24, 16, 6


@pytest.fixture(scope="module")
def model():
    layers = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return tiny_model(scan_layers=True, dropout_rate=0.1, **layers, **PROMPT)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def compiled_decode(model, params, partitioner):
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 1000, (BATCH, INPUTS)).astype(np.int32)
    ids[:, :4] = 1152 + np.arange(4)  # the prompt's
    ids[5, 9:], ids[11] = 0, 0  # a short one, and padding of the batch
    method = decoding.BeamSearch(num_decodes=2)

    def answers(params, tokens):
        return decoder.decode(model.module, params, tokens, max_decode_length=ANSWER, method=method)

    with partitioner.activate():
        placed = partitioner.place(params, partitioner.shard_tree(model.param_axes(), params))
        tokens = partitioner.place_batch({"tokens": ids})["tokens"]
        program = jax.jit(answers).lower(placed, tokens).compile(QUICKLY)
    return program, (placed, tokens)


@pytest.fixture(scope="module")
def on_one_device(model, params):
    program, arguments = compiled_decode(model, params, one_device_mesh())
    return jax.device_get(program(*arguments))


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 2, 4), (2, 2, 2)])
def test_beam_search_finds_the_same_on_every_mesh(model, params, on_one_device, shape):
    partitioner = Partitioner(mesh_shape=dict(zip(AXES, shape, strict=True)))
    program, arguments = compiled_decode(model, params, partitioner)
    found = jax.device_get(program(*arguments))
    np.testing.assert_array_equal(found.ids, on_one_device.ids)
    np.testing.assert_allclose(found.scores, on_one_device.scores, rtol=1e-5)
    assert len({tuple(row) for row in found.ids[:, -1]}) > BATCH // 2
    assert not found.ids[11].any()
    assert largest_gathered(program) == 0


def test_a_step_gathers_neither_parameters_nor_slots_nor_logits(model):
    """Of the two mesh axes, each device's part of them is all that it ever holds."""
    partitioner = Partitioner(num_partitions=4)
    optimizer = small_adafactor(learning_rate=CONSTANT)
    shapes = state.state_shapes(
        model.param_shapes(), model.param_axes(), ALL_BUT_PROMPT, optimizer, partitioner
    )
    lengths = {
        "encoder_input_tokens": INPUTS,
        "decoder_input_tokens": TARGETS,
        "decoder_target_tokens": TARGETS,
        "decoder_loss_weights": TARGETS,
    }
    rows = partitioner.sharding(("batch",))
    batch = {
        name: jax.ShapeDtypeStruct((BATCH, length), np.int32, sharding=rows)
        for name, length in lengths.items()
    }
    train_step = step.make_train_step(model, optimizer, CONSTANT, microbatches=2)
    with partitioner.activate():
        program = jax.jit(train_step, donate_argnums=0).lower(shapes, batch).compile(QUICKLY)
    # The best logit of each device's part of the vocabulary, a target token.
    assert 0 < largest_gathered(program) <= BATCH // 2 * TARGETS * 4


def largest_gathered(program):
    """Elements of the largest array that a compiled program makes by gathering parts of it."""
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", program.as_text())
    return max((int(np.prod([int(n) for n in dims.split(",")])) for dims in gathered), default=0)
