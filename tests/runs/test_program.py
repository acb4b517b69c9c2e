"""A stage's program: lowered from shapes, run on arrays; how a scanned stack lies in memory."""

import functools

import jax
import numpy as np
import pytest
from engine_helpers import (
    ALL_BUT_PROMPT,
    CONSTANT,
    LENGTHS,
    PROMPT,
    QUICKLY,
    flat,
    random_params,
    small_adafactor,
    tiny_model,
    training_batches,
    worst_error,
)

from promot_t5x.checkpoints.saving import Checkpoints
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
    compiled = stage_program.lower().compile(QUICKLY)

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
