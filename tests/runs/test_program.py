"""A stage's program: lowered from shapes, run on arrays; how a scanned stack lies in memory."""

import functools

import jax
import numpy as np
import optax
import pytest
from engine_helpers import (
    ALL_BUT_PROMPT,
    CONSTANT,
    EVERYTHING,
    LENGTHS,
    ONLY_PROMPT,
    PROMPT,
    QUICKLY,
    flat,
    random_params,
    small_adafactor,
    tiny_model,
    training_batches,
    two_stores,
    worst_error,
)

from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.data.batches import Batches
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.network import scan
from promot_t5x.runs import program, stages
from promot_t5x.training import state

pytestmark = pytest.mark.slow

KERNELS = {  # order in memory: layers, then what the products read
    "encoder/encoder/mlp/wi_0/kernel": (1, 0, 2),
    "encoder/encoder/attention/out/kernel": (1, 0, 2),
    "encoder/encoder/attention/query/kernel": (1, 2, 0),
    "decoder/decoder/encoder_decoder_attention/key/kernel": (1, 2, 0),
}


@functools.cache
def scanned_program(frozen_dtype="float32"):
    model = tiny_model(scan_layers=True, remat_policy="full", **PROMPT)
    stage = stages.Stage(
        trainable=ALL_BUT_PROMPT,
        base=None,
        train_dataset=stages.DatasetConfig(
            mixture_or_task_name="fake", task_feature_lengths=LENGTHS, batch_size=8, pack=True
        ),
        train_steps=2,
        eval_period=1,
        optimizer=small_adafactor,
        learning_rate=CONSTANT,
        frozen_dtype=frozen_dtype,
    )
    return model, program.StageProgram(model, stage, Partitioner(num_partitions=2))


def test_a_scanned_stack_lies_layer_after_layer():
    model, stage_program = scanned_program()
    made = stage_program.create_state(random_params(model), random_seed=0)
    orders = {
        path: a.format.layout.major_to_minor for path, a in state.flatten(made.params).items()
    }
    assert {path: orders[path] for path in KERNELS} == KERNELS
    assert orders["decoder/logits_dense/kernel"] == (0, 1)
    shapes = jax.tree.leaves(stage_program.state_shapes())
    for leaf, shape in zip(jax.tree.leaves(made), shapes, strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (shape.shape, shape.dtype, shape.sharding)
        if shape.format.layout is not None:
            assert leaf.format.layout.major_to_minor == shape.format.layout.major_to_minor


def test_what_the_order_in_memory_is_of_every_other_parameter():
    assert scan.major_to_minor("encoder/layers_0/mlp/wo/kernel", 2) is None
    assert scan.major_to_minor("encoder/prompt/prompt", 3) is None
    assert scan.major_to_minor("decoder/decoder/pre_mlp_layer_norm/scale", 2) == (1, 0)


@pytest.mark.parametrize("frozen_dtype", ["float32", "bfloat16"])
def test_the_step_lowered_from_shapes_takes_up_what_a_checkpoint_holds(tmp_path, frozen_dtype):
    model, stage_program = scanned_program(frozen_dtype)
    params = random_params(model)
    partitioner = Partitioner(num_partitions=2)
    placed = [partitioner.place_batch(b) for b in training_batches(model.config, 2)]
    compiled = stage_program.lower(stage_program.whole).compile(QUICKLY)

    straight = stage_program.create_state(params, random_seed=0)
    for batch in placed:
        straight, *_ = compiled(straight, batch)

    stopped, *_ = compiled(stage_program.create_state(params, random_seed=0), placed[0])
    with Checkpoints(tmp_path, keep=1) as saver:
        saver.save(1, trainable=stopped.trainable, opt_state=stopped.opt_state, metadata={})
        saver.wait()
        fresh = stage_program.create_state(params, random_seed=0)
        read = saver.restore(trainable=fresh.trainable, opt_state=fresh.opt_state)
    resumed = fresh.replace(
        step=partitioner.place(np.int32(1), partitioner.replicated),
        trainable=read.trainable,
        opt_state=read.opt_state,
    )
    resumed, *_ = compiled(resumed, placed[1])
    assert worst_error(flat(resumed.params), flat(straight.params))[0] == 0


def two_steps(pack, trainable, num_prompts, factor, microbatches):
    """Metrics and updates of two steps of a stage, and the shapes of their batches."""
    prompt = {"num_prompts": num_prompts, "prompt_length": 4 if num_prompts else 0}
    shallow = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    model = tiny_model(loss_normalizing_factor=factor, **shallow, **prompt)
    dataset = stages.DatasetConfig(
        mixture_or_task_name="fake",
        task_feature_lengths={"inputs": 64, "targets": 16},
        batch_size=16,
        pack=pack,
    )
    stage = stages.Stage(
        trainable=trainable,
        base=None,
        train_dataset=dataset,
        train_steps=2,
        eval_period=1,
        optimizer=optax.sgd,
        learning_rate=CONSTANT,
        microbatches=microbatches,
    )
    partitioner = Partitioner(mesh_shape={"data": 2}, devices=jax.devices()[:2])
    stage_program = program.StageProgram(model, stage, partitioner)
    number = max(1, num_prompts)
    tasks, stores = (each[:number] for each in two_stores())
    data = Batches(
        tasks,
        stores,
        batch_size=16,
        lengths=dataset.task_feature_lengths,
        pack=pack,
        row_multiple=2 * microbatches,
        seed=0,
        vocab_size=model.config.vocab_size,
        prompt_length=prompt["prompt_length"],
        use_prompts=num_prompts > 0,
    )
    params = random_params(model)
    train_state = stage_program.create_state(params, random_seed=0)
    compiled = functools.cache(lambda shape: stage_program.lower(shape).compile(QUICKLY))
    found, shapes = [], []
    for number in range(2):
        shapes.append(data.shape(number))
        placed = partitioner.place_batch(data.batch(number))
        train_state, metrics, _ = compiled(shapes[-1])(train_state, placed)
        found.append({name: float(value) for name, value in metrics.items()})
    before, after = flat(params), flat(train_state.params)
    trained = flat(train_state.trainable)
    return found, {path: after[path] - before[path] for path in trained}, shapes


@pytest.mark.parametrize(
    ("trainable", "num_prompts", "factor", "microbatches"),
    [
        pytest.param(ONLY_PROMPT, 2, "NUM_TOTAL_TARGET_TOKENS", 1, id="stage one, multi-task"),
        pytest.param(ALL_BUT_PROMPT, 1, "AVERAGE_PER_SEQUENCE", 2, id="stage two, microbatches"),
        pytest.param(EVERYTHING, 0, "NUM_REAL_TARGET_TOKENS", 1, id="standard"),
    ],
)
def test_batches_packed_into_few_rows_train_as_unpacked_ones(
    trainable, num_prompts, factor, microbatches
):
    settings = (trainable, num_prompts, factor, microbatches)
    wanted, updates, whole = two_steps(False, *settings)
    found, packed_updates, shapes = two_steps("batch", *settings)
    assert all(few.tokens < 0.6 * all_.tokens for few, all_ in zip(shapes, whole, strict=True))
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert packed_updates.keys() == updates.keys()
    worst, path = worst_error(packed_updates, updates)
    assert worst < 5e-4, path  # of differences that are small against the parameters
