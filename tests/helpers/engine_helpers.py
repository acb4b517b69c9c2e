"""A tiny model, batches for it, meshes and a compiled run, for tests of the training engine."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from data_fakes import bound, random_store
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.data.batches import Batches
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.models import DecoderOnlyModel, EncoderDecoderModel
from promot_t5x.network.parameters import module_of
from promot_t5x.network.transformer import T5Config
from promot_t5x.training import adafactor, state, step
from promot_t5x.training.schedules import create_learning_rate_scheduler

GOLDEN = Path(__file__).parents[1] / "golden"
VOCAB_SIZE = 1152  # the fakes' tokens go up to 1000 + the number of examples
LENGTHS = {"inputs": 32, "targets": 16}
PROMPT = {"num_prompts": 1, "prompt_length": 4}
ONLY_PROMPT = ("encoder/prompt/.*",)
ALL_BUT_PROMPT = ("(?!encoder/prompt/).*",)
EVERYTHING = (".*",)
# Compiling is what these tests cost, and tiny networks are fast however they are compiled.
QUICKLY = {"xla_backend_optimization_level": 0}


class Ids(NamedTuple):
    """All that a model asks of a vocabulary while it trains."""

    vocab_size: int = VOCAB_SIZE
    pad_id: int = 0
    eos_id: int = 1


def tiny_config(**changes):
    """Two layers a side, 32 wide, every dimension divisible by 8."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "emb_dim": 32,
        "num_heads": 8,
        "head_dim": 4,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "mlp_dim": 64,
        "mlp_activations": ("gelu", "linear"),
        "dropout_rate": 0.0,
    }
    return T5Config(**{**settings, **changes})


def model_of(config, **settings):
    vocabulary = Ids(vocab_size=config.vocab_size)
    kind = EncoderDecoderModel if config.has_encoder else DecoderOnlyModel
    return kind(
        module=module_of(config),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        **settings,
    )


def tiny_model(*, z_loss=1e-4, loss_normalizing_factor=None, **config):
    return model_of(
        tiny_config(**config), z_loss=z_loss, loss_normalizing_factor=loss_normalizing_factor
    )


def random_params(model, seed=0):
    """Host arrays drawn by numpy, of the sizes that T5's own initializers give.

    Compiling those costs more than all the steps of a test.
    """
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        noise = rng.normal(size=shape)
        if path.endswith("/scale"):
            return 1 + 0.1 * noise
        if path.endswith("/kernel"):
            width = model.config.head_dim if "/query/" in path else 1
            return noise / np.sqrt(shape[0] * width)
        return noise if path.endswith("/embedding") else 0.3 * noise

    shapes = flatten_dict(model.param_shapes(), sep="/")
    drawn = {path: draw(path, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    return unflatten_dict(drawn, sep="/")


def two_stores():
    """Two tasks of 23 and 17 examples, whose targets have 2 to 12 tokens."""
    tasks = [bound("a", 0.6), bound("b", 0.4, prompt_index=1)]
    stores = [
        random_store("a/train", 23, inputs=(3, 20), targets=(2, 12), seed=1),
        random_store("b/train", 17, inputs=(3, 24), targets=(2, 6), seed=2),
    ]
    return tasks, stores


def training_batches(config, count, *, pack=True, batch_size=8):
    """The first so many batches of one task, or of two where the model has two prompts."""
    tasks, stores = two_stores()
    number = max(1, config.num_prompts)
    data = Batches(
        tasks[:number],
        stores[:number],
        batch_size=batch_size,
        lengths=LENGTHS,
        pack=pack,
        seed=0,
        vocab_size=config.vocab_size,
        prompt_length=config.prompt_length,
        use_prompts=config.num_prompts > 0,
    )
    return [data.batch(number) for number in range(count)]


def one_device_mesh():
    """A mesh of the first device only."""
    return Partitioner(devices=jax.devices()[:1])


CONSTANT = create_learning_rate_scheduler(factors="constant", base_learning_rate=0.01)
small_adafactor = functools.partial(adafactor.adafactor, min_dim_size_to_factor=16)


class Run:
    """A state and its compiled step, put together as `Trainer.run` does."""

    def __init__(
        self,
        model,
        params,
        batch,
        *,
        partitioner=None,
        trainable=EVERYTHING,
        optimizer=small_adafactor,
        schedule=CONSTANT,
        microbatches=1,
        frozen_dtype="float32",
        random_seed=0,
        objective=None,
    ):
        self.partitioner = partitioner or one_device_mesh()
        optimizer = optimizer(learning_rate=schedule)
        self.state = state.create(
            params,
            model.param_axes(),
            trainable,
            optimizer,
            self.partitioner,
            frozen_dtype,
            objective is not None and objective.needs_base,
            random_seed=random_seed,
        )
        train_step = step.make_train_step(
            model, optimizer, schedule, microbatches=microbatches, objective=objective
        )
        formats = jax.tree.map(lambda a: a.format, self.state)
        with self.partitioner.activate():
            placed = self.partitioner.place_batch(batch)
            jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(formats, None, None))
            self.compiled = jitted.lower(self.state, placed).compile(QUICKLY)

    def train(self, batches):
        """The metrics of a step on each batch, as floats."""
        history = []
        for batch in batches:
            placed = self.partitioner.place_batch(batch)
            self.state, metrics, _ = self.compiled(self.state, placed)
            history.append({name: float(value) for name, value in metrics.items()})
        return history

    @property
    def params(self):
        return flat(self.state.params)


def flat(tree):
    """Paths to numpy copies of the leaves."""
    return {path: np.array(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def relative_error(actual, expected):
    """Largest difference over the largest magnitude expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-30))


def worst_error(actual, expected):
    """(largest `relative_error` of any array, its path) of two flat trees."""
    assert actual.keys() == expected.keys()
    return max((relative_error(actual[path], leaf), path) for path, leaf in expected.items())


def losses(history):
    """What T5X calls `loss`: the sum that is minimized, over its normalizing factor."""
    return [metrics["loss_sum"] for metrics in history]


class Golden:
    """T5X's own numbers: config, settings, parameters, batches, losses."""

    def __init__(self, name):
        self.described = json.loads((GOLDEN / f"{name}.json").read_text())
        self.config = T5Config(**self.described["config"])
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)

    def tree(self, prefix):
        return unflatten_dict(
            {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)},
            sep="/",
        )
