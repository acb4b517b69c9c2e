"""Packed rows of two tasks, each behind its own prompt, as T5X trains on them."""

import functools

import jax
import numpy as np
import run_tasks
import upstream_helpers
from engine_helpers import ONLY_PROMPT, Run, losses, model_of
from etils import epath

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats import t5x_writing
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.network import parameters, transformer
from promot_t5x.training import adafactor, schedules
from promot_t5x.training.state import with_prompt

STEPS, ROWS, LENGTH = 4, 4, 3
LENGTHS = {"inputs": 48, "targets": 16}
SHAPE = """\
from __gin__ import dynamic_registration

include 'models/t5_1_1.gin'
include 'models/byte_vocabulary.gin'

EMBED_DIM = 32
NUM_HEADS = 4
HEAD_DIM = 8
MLP_DIM = 64
NUM_ENCODER_LAYERS = 1
NUM_DECODER_LAYERS = 1
ACTIVATION_DTYPE = 'float32'
"""
CONFIG = transformer.T5Config(
    vocab_size=384,
    emb_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.0,
)


def t5xs_batches():
    """What `t5x.utils.get_dataset` gives the run below."""
    import seqio

    from promot_t5x.upstream import feature_converter, tasks

    name = tasks.register("run_pair", vocabulary=run_tasks.VOCABULARY, num_prompts=2)
    converter = feature_converter.PromptFeatureConverter(
        vocab_size=384, num_prompts=2, prompt_length=LENGTH, pack=True
    )
    data = seqio.get_dataset(
        name,
        feature_converter.text_lengths(LENGTHS, LENGTH),
        converter,
        num_epochs=None,
        shard_info=seqio.ShardInfo(0, 1),
        seed=0,
        batch_size=ROWS,
    )
    return list(data.take(STEPS).as_numpy_iterator())


def test_losses_are_the_engines(tmp_path):
    directory = epath.Path(tmp_path)
    (directory / "shape.gin").write_text(SHAPE)
    base = directory / "base" / "checkpoint_0"
    params, _ = parameters.initial_params(CONFIG, jax.random.key(2))
    t5x_writing.write_inline(base, params, 0)
    upstream_helpers.t5x(
        "train",
        [str(directory / "shape.gin"), "t5x/runs/prompt_tune.gin"],
        {
            "MIXTURE_OR_TASK_MODULE": run_tasks.__file__,
            "MIXTURE_OR_TASK_NAME": "run_pair",
            "TASK_FEATURE_LENGTHS": LENGTHS,
            "INITIAL_CHECKPOINT_PATH": base,
            "MODEL_DIR": directory / "run",
            "NUM_PROMPTS": 2,
            "PROMPT_LENGTH": LENGTH,
            "PACK": True,
            "BATCH_SIZE": ROWS,
            "EVAL_BATCH_SIZE": 8,
            "DROPOUT_RATE": 0.0,
            "SHUFFLE": False,
            "DATA_SEED": 0,
            "STATS_PERIOD": 1,
            "EVAL_STEPS": 1,
            "TRAIN_STEPS": STEPS,
            "EVAL_PERIOD": STEPS,
            "CHECKPOINT_PERIOD": STEPS,
        },
    )
    batches = t5xs_batches()
    assert max(batch["encoder_segment_ids"].max() for batch in batches) > 1
    prompts = np.concatenate([batch["encoder_input_tokens"] for batch in batches])
    assert {384, 384 + LENGTH} <= set(prompts.reshape(-1).tolist())
    first = directory / "run" / "checkpoint_0"
    start = with_prompt(open_checkpoint(base).read_tree(), prompt_file.load_prompt(first)[0])
    rate = schedules.create_learning_rate_scheduler(factors="constant", base_learning_rate=0.2)
    run = Run(
        model_of(
            CONFIG.replace(num_prompts=2, prompt_length=LENGTH), z_loss=1e-4, label_smoothing=0.1
        ),
        start,
        batches[0],
        trainable=ONLY_PROMPT,
        optimizer=functools.partial(
            adafactor.adafactor, multiply_by_parameter_scale=False, weight_decay_rate=1e-5
        ),
        schedule=rate,
    )
    theirs = upstream_helpers.losses(directory / "run")
    np.testing.assert_allclose(theirs, losses(run.train(batches)), rtol=1e-4)
    last = prompt_file.load_prompt(directory / "run" / f"checkpoint_{STEPS}")[0]
    np.testing.assert_allclose(
        np.asarray(run.state.trainable["encoder"]["prompt"]["prompt"]), last, rtol=1e-3, atol=1e-4
    )
