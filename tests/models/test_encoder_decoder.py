"""The model: its vocabulary checks, and the same model without its prompt or its scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import (
    PROMPT,
    QUICKLY,
    VOCAB_SIZE,
    Ids,
    flat,
    random_params,
    tiny_config,
    tiny_model,
    training_batches,
)
from scan_helpers import scan_params

from promot_t5x.errors import UserError
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.network.transformer import Transformer
from promot_t5x.training import state


def build(inputs, outputs):
    module = Transformer(config=tiny_config())
    return EncoderDecoderModel(module=module, input_vocabulary=inputs, output_vocabulary=outputs)


def test_one_vocabulary_serves_both_sides():
    model = build(Ids(), Ids())
    assert model.vocabulary == Ids()
    assert model.config.vocab_size == VOCAB_SIZE
    with pytest.raises(UserError, match="set both to %VOCABULARY") as error:
        build(Ids(vocab_size=100), Ids(vocab_size=101))
    assert "vocab_size=100" in str(error.value)
    assert "vocab_size=101" in str(error.value)


def test_a_vocabulary_larger_than_the_embedding_is_refused_and_a_smaller_one_is_not():
    build(Ids(vocab_size=VOCAB_SIZE - 100), Ids(vocab_size=VOCAB_SIZE - 100))
    with pytest.raises(UserError, match=f"NUM_EMBEDDINGS = {VOCAB_SIZE} rows") as error:
        build(Ids(vocab_size=VOCAB_SIZE + 1), Ids(vocab_size=VOCAB_SIZE + 1))
    assert f"The vocabulary Ids has {VOCAB_SIZE + 1} ids" in str(error.value)


def test_without_its_prompt_a_model_is_the_same_plain_one():
    prompted, plain = tiny_model(dropout_rate=0.1, **PROMPT), tiny_model(dropout_rate=0.1)
    assert prompted.prompt_shape == (1, 4, 32)
    bare = prompted.without_prompt()
    assert bare == plain
    assert bare.prompt_shape == (0, 0, 32)
    assert prompted.prompt_shape == (1, 4, 32)
    paths = set(state.flatten(prompted.param_shapes()))
    assert paths - set(state.flatten(bare.param_shapes())) == {PROMPT_PATH}
    assert bare.z_loss == prompted.z_loss == 1e-4


def test_axes_and_shapes_are_one_tree():
    for model in (tiny_model(**PROMPT), tiny_model(scan_layers=True, **PROMPT)):
        axes, shapes = state.flatten(model.param_axes()), state.flatten(model.param_shapes())
        assert axes.keys() == shapes.keys()
        assert all(len(axes[path]) == len(leaf.shape) for path, leaf in shapes.items())


@pytest.fixture(scope="module")
def shallow():
    return tiny_model(**PROMPT, num_encoder_layers=1, num_decoder_layers=1)


def arrays(batch):
    return {name: jnp.asarray(rows) for name, rows in batch.items()}


def sums_of(model):
    """The model's loss, compiled once for all batches of a shape."""
    return jax.jit(model.loss_sums, compiler_options=QUICKLY)


def test_unscanned_is_the_form_of_checkpoints(shallow):
    scanned = tiny_model(**PROMPT, num_encoder_layers=1, num_decoder_layers=1, scan_layers=True)
    assert scanned.unscanned() == shallow
    assert shallow.unscanned() == shallow
    params = random_params(shallow)
    batch = arrays(training_batches(shallow.config, 1)[0])
    expected = sums_of(shallow)(params, batch)
    got = sums_of(scanned)(scan_params(params), batch)
    np.testing.assert_allclose(np.array(got), np.array(expected), rtol=1e-5)


def test_the_prompt_shows_in_the_loss_and_only_where_its_ids_stand(shallow):
    params = random_params(shallow)
    plain = shallow.without_prompt()
    prompted_batch = arrays(training_batches(shallow.config, 1)[0])
    plain_batch = arrays(training_batches(plain.config, 1)[0])
    other = state.with_prompt(params, params["encoder"]["prompt"]["prompt"] + 1)
    prompted_sums = sums_of(shallow)
    with_it = prompted_sums(params, prompted_batch).total
    assert abs(with_it - prompted_sums(other, prompted_batch).total) > 1e-3
    # Without virtual ids the table is not read, and is not missed: bit for bit.
    bare = {path: leaf for path, leaf in flat(params).items() if path != PROMPT_PATH}
    without = prompted_sums(params, plain_batch)
    assert without == sums_of(plain)(state.unflatten(bare), plain_batch)
    assert without == prompted_sums(other, plain_batch)


def test_dropout_needs_a_key_and_padding_weighs_nothing():
    model = tiny_model(dropout_rate=0.3, num_encoder_layers=1, num_decoder_layers=1)
    params = random_params(model)
    batch = arrays(training_batches(model.config, 1, pack=False)[0])
    sums = sums_of(model)
    still = sums(params, batch)
    assert still == sums(params, batch)
    dropped = sums(params, batch, jax.random.key(1))
    assert abs(float(dropped.total - still.total)) > 1e-3
    padding = {name: jnp.concatenate([rows, 0 * rows]) for name, rows in batch.items()}
    doubled = sums(params, padding)
    assert doubled.weight_sum == still.weight_sum == batch["decoder_loss_weights"].sum()
    np.testing.assert_allclose(np.array(doubled), np.array(still), rtol=1e-5)
