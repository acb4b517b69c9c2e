"""Decoder-only models: the loss of the pipeline's batches against logits of whole sequences.

These are `transformers`' own (`tests/network/gemma/test_decoder_only.py`).
"""

import functools

import causal_helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_fakes import bound, store_of
from engine_helpers import QUICKLY, Ids, model_of, tiny_config
from flax.traverse_util import flatten_dict

from promot_t5x.data.assembly import batch_shapes
from promot_t5x.data.batch_rows import Shape
from promot_t5x.data.batches import Batches, EvalBatches
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.models import DecoderOnlyModel, EncoderDecoderModel
from promot_t5x.network import DecoderOnly, Transformer
from promot_t5x.network.prompt import PROMPT_PATH, prompt_ids

pytestmark = pytest.mark.slow

# Inputs and targets, longer and shorter than the window of 4; 0 is a token like any other.
EXAMPLES = (
    [([5, 9, 30, 7, 8, 11, 12, 0], [40, 0, 41, 1]), ([2], [7, 1]), ([6, 6], [8, 9, 10, 44, 0])],
    [([3, 14, 15, 9, 2, 6], [5, 3, 1]), ([0, 4], [1])],
)
LENGTHS = {"inputs": 12, "targets": 6}


def data(kind, model, **settings):
    prompts, prompt_length, _ = model.prompt_shape
    tasks = [bound("a", 0.5), bound("b", 0.5, prompt_index=1 if prompts > 1 else 0)]
    return kind(
        tasks,
        [
            store_of(f"{name}/train", examples)
            for name, examples in zip("ab", EXAMPLES, strict=True)
        ],
        lengths=LENGTHS,
        vocab_size=model.config.vocab_size,
        prompt_length=prompt_length,
        use_prompts=prompts > 0,
        start_id=model.start_id,
        **settings,
    )


def passed(model, *, pack):
    """One pass over the examples, as one batch."""
    batches = data(EvalBatches, model, batch_size=1 if pack else 8, pack=pack)
    parts = [batches.batch(n) for n in range(len(batches))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def loss_and_gradients(model, params, batch):
    def total(params):
        sums = model.loss_sums(params, batch)
        return sums.total, sums

    (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(params)
    return sums, gradients


def sequences(config):
    """Each example in one sequence, filled up, and where its targets begin and end."""
    whole, ends = [], []
    for task, examples in enumerate(EXAMPLES):
        prompt = prompt_ids(config, task).tolist() if config.num_prompts else []
        for inputs, targets in examples:
            ids = [*prompt, *inputs, *targets]
            whole.append(np.pad(ids, (0, 18 - len(ids))))
            ends.append((len(ids) - len(targets), len(ids)))
    return np.array(whole), ends


def by_hand(config, logits_of):
    """Sum the loss from the logits of whole sequences."""
    ids, ends = sequences(config)
    firsts = np.array([first for first, _ in ends])
    log_probs = jax.nn.log_softmax(jax.jit(logits_of, compiler_options=QUICKLY)(ids, firsts))
    return -sum(
        float(log_probs[row, place - 1, ids[row, place]])
        for row, (first, end) in enumerate(ends)
        for place in range(first, end)
    )


@pytest.mark.parametrize(("kind", "prompts"), [("gemma3_text", 2), ("qwen2", 0)])
def test_the_loss_is_that_of_targets_behind_their_inputs(kind, prompts):
    config, params = causal_helpers.prompted(kind) if prompts else causal_helpers.golden(kind)
    model = model_of(config, loss_chunk_tokens=8)

    def logits_of(ids, firsts):
        return causal_helpers.sequence_logits(config, params, ids)

    sums, _ = loss_and_gradients(model, params, passed(model, pack=False))
    np.testing.assert_allclose(sums.total, by_hand(config, logits_of), rtol=1e-5)
    assert sums.weight_sum == sum(len(targets) for task in EXAMPLES for _, targets in task)


@pytest.mark.parametrize("prefix_mask", [False, True])
def test_packed_equals_unpacked(prefix_mask):
    """Loss and gradients, the prompts' among them; windows go by positions within an example."""
    config, params = causal_helpers.prompted("gemma3_text", prefix_mask=prefix_mask)
    model = model_of(config)
    alone, together = passed(model, pack=False), passed(model, pack=True)
    assert len(together["encoder_input_tokens"]) < 5
    sums, gradients = loss_and_gradients(model, params, alone)
    if not prefix_mask:
        # On four times two devices, which cannot split the one head of keys and values.
        partitioner = Partitioner(num_partitions=2)
        placed = partitioner.place(params, partitioner.shard_tree(model.param_axes(), params))
        with partitioner.activate():
            split, _ = loss_and_gradients(model, placed, partitioner.place_batch(alone))
        np.testing.assert_allclose(np.array(split), np.array(sums), rtol=1e-5)
    same, again = loss_and_gradients(model, params, together)
    np.testing.assert_allclose(np.array(same), np.array(sums), rtol=1e-5)
    wanted = flatten_dict(gradients, sep="/")
    assert np.abs(wanted[PROMPT_PATH]).max() > 0
    for path, leaf in flatten_dict(again, sep="/").items():
        assert np.abs(leaf - wanted[path]).max() <= 1e-4 * np.abs(wanted[path]).max(), path


def test_under_a_prefix_mask_inputs_see_all_of_them():
    config, params = causal_helpers.prompted("gemma3_text", prefix_mask=True)
    model = model_of(config)

    def masked(module, ids, firsts):
        places = jnp.arange(ids.shape[1])
        causal = places <= places[:, None]
        seen = causal | (places < firsts[:, None])[:, None, :]
        hidden, _ = module.decoder(
            module.encoder(ids), seen[:, None], places[None], deterministic=True
        )
        return module.logits(hidden)

    def logits_of(ids, firsts):
        return DecoderOnly(config).apply({"params": params}, ids, firsts, method=masked)

    batch = passed(model, pack=False)
    sums, _ = loss_and_gradients(model, params, batch)
    np.testing.assert_allclose(sums.total, by_hand(config, logits_of), rtol=1e-5)
    causal = model_of(config.replace(prefix_mask=False))
    assert abs(loss_and_gradients(causal, params, batch)[0].total - sums.total) > 1e-3


def test_a_prompt_of_length_0_is_none():
    model = model_of(causal_helpers.golden("llama")[0])
    empty = model.with_prompts(1, 0)
    assert jax.tree.map(jnp.shape, empty.param_shapes()) == jax.tree.map(
        jnp.shape, model.param_shapes()
    )
    assert PROMPT_PATH in flatten_dict(model.with_prompts(1, 2).param_shapes(), sep="/")


@pytest.mark.parametrize("pack", [False, True, "batch"])
def test_features_are_those_that_programs_are_compiled_for(pack):
    model = model_of(causal_helpers.prompted("llama")[0])
    batches = data(Batches, model, batch_size=4, pack=pack, seed=0)
    batch = batches.batch(0)
    shapes = batch_shapes(batches.shape(0), packed=bool(pack), start_id=None)
    assert {name: rows.shape for name, rows in batch.items()} == shapes
    assert "decoder_segment_ids" not in batch_shapes(Shape(4, 12, 6), packed=False)


def test_what_cannot_be():
    model = model_of(causal_helpers.golden("llama")[0])
    stores = [store_of("empty/train", [([], [3, 1]), ([4], [1])])]
    settings = {"batch_size": 1, "lengths": LENGTHS, "vocab_size": 48}
    with pytest.raises(UserError, match=r"empty/train has an example without inputs.*BOS_IN_INPUT"):
        EvalBatches([bound("a")], stores, start_id=model.start_id, **settings)
    prompt = {"prompt_length": 2, "use_prompts": True}
    batch = EvalBatches([bound("a")], stores, start_id=None, **settings, **prompt).batch(0)
    assert batch["encoder_input_tokens"][0].tolist()[:2] == [48, 0]
    assert batch["decoder_input_tokens"][0].tolist()[:2] == [49, 3]
    vocabulary = {"input_vocabulary": Ids(), "output_vocabulary": Ids()}
    for kind, module, wanted in (
        (DecoderOnlyModel, Transformer(tiny_config()), "DecoderOnly"),
        (EncoderDecoderModel, model.module, "Transformer"),
        (EncoderDecoderModel, Transformer(model.config), "Transformer"),
    ):
        with pytest.raises(UserError, match=rf"must be a network\.{wanted}: choose the model file"):
            kind(module=module, **vocabulary)
