"""The same stages under upstream T5X and under this project's engine, on the same batches.

Each engine goes on from what the other left, at every point.
"""

import dataclasses

import jax
import numpy as np
import pytest
import run_helpers
import upstream_helpers
from etils import epath
from flax.traverse_util import flatten_dict

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats import t5x_writing
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.network import parameters, transformer
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.tasks import dialects

STEPS = 4
RELATIVE = 1e-4
SHAPE = """\
from __gin__ import dynamic_registration

include 'models/t5_1_1.gin'
include 'models/byte_vocabulary.gin'

EMBED_DIM = 128
NUM_HEADS = 2
HEAD_DIM = 64
MLP_DIM = 256
NUM_ENCODER_LAYERS = 2
NUM_DECODER_LAYERS = 2
ACTIVATION_DTYPE = 'float32'
DIALECT = 'span_corruption'
SENTINEL = 'both'
"""
SPOKEN = {"kind": "span_corruption", "sentinel": "both"}
DRAWN = transformer.T5Config(
    vocab_size=384,
    emb_dim=128,
    num_heads=2,
    head_dim=64,
    mlp_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=2,
    mlp_activations=("gelu", "linear"),
)


@dataclasses.dataclass
class World:
    """A model with a base, and both engines' runs of it by name, each made when first asked for.

    The scanned one has untied logits, factored slots, and answers between sentinels; its base has
    the layers one by one.
    """

    directory: epath.Path
    model: str
    lengths: dict
    scan: bool
    dialect: dict

    def __post_init__(self):
        self.base = self.directory / "base" / "checkpoint_0"
        self._made = {}

    @property
    def common(self):
        return {
            "MIXTURE_OR_TASK_NAME": "tiny_rte",
            "TASK_FEATURE_LENGTHS": self.lengths,
            "BATCH_SIZE": 8,
            "DROPOUT_RATE": 0.0,
            "SCAN_LAYERS": self.scan,
        }

    def upstream(self, name, verb, run, *bindings, devices=1, **macros):
        """The directory of a run of T5X's."""
        directory = self.directory / "upstream" / name
        if directory in self._made:
            return directory
        place = {"train": "MODEL_DIR", "eval": "EVAL_OUTPUT_DIR", "infer": "INFER_OUTPUT_DIR"}
        settings = {**self.common, place[verb]: directory}
        if verb == "train":
            settings |= {
                "TRAIN_STEPS": STEPS,
                "EVAL_PERIOD": STEPS,
                "CHECKPOINT_PERIOD": STEPS,
                "STATS_PERIOD": 1,
                "EVAL_STEPS": 1,
                "EVALUATOR_NUM_EXAMPLES": 16,
                "SHUFFLE": False,
                "DATA_SEED": 0,
            }
        files = [self.model, f"t5x/runs/{run}.gin"]
        upstream_helpers.t5x(verb, files, settings | macros, *bindings, devices=devices)
        self._made[directory] = True
        return directory

    def own(self, name, verb, run, *bindings, **macros):
        """The directory of a run of this project's engine."""
        directory = self.directory / "own" / name
        if directory in self._made:
            return directory
        settings = dict(self.common)
        if verb == "train":
            steps = ["TRAIN_STEPS", "EVAL_PERIOD"]
            if run == "prompt_tune":
                steps = ["PROMPT_STEPS", "PROMPT_EVAL_PERIOD"]
            settings |= {**dict.fromkeys(steps, STEPS), "MODEL_DIR": directory}
            settings |= {"EVAL_NUM_EXAMPLES": 16, "stages.DatasetConfig.shuffle": False}
        else:
            settings["EVAL_OUTPUT_DIR"] = directory
        words = [f"--gin_file={name}" for name in (self.model, f"runs/{run}.gin")]
        words += upstream_helpers.words_of(settings | macros)
        run_helpers.succeed([verb, *words, *bindings])
        self._made[directory] = True
        return directory

    # The stages, by the engine that runs them and what they start from.

    def upstream_one(self):
        prompt = {"PROMPT_LENGTH": 5, "INITIAL_CHECKPOINT_PATH": self.base}
        return self.upstream("one", "train", "prompt_tune", **prompt)

    def own_one(self):
        prompt = {"PROMPT_LENGTH": 5, "INITIAL_CHECKPOINT_PATH": self.base}
        return self.own("one", "train", "prompt_tune", **prompt)

    def upstream_two(self):
        start = {"INITIAL_CHECKPOINT_PATH": self.upstream_one() / f"checkpoint_{STEPS}"}
        return self.upstream("two", "train", "stage_two", **start, PROMPT_LENGTH=5)

    def own_two(self):
        start = {"INITIAL_CHECKPOINT_PATH": self.base, "PROMPT_FILE": self.own_one()}
        return self.own("two", "train", "stage_two", **start, PROMPT_LENGTH=5)


@pytest.fixture(scope="module", params=["tiny_world", "scanned"])
def world(request, tmp_path_factory):
    directory = epath.Path(tmp_path_factory.mktemp(request.param))
    if request.param == "tiny_world":
        made = World(directory, "demo/model.gin", {"inputs": 48, "targets": 6}, False, {})
        run_helpers.succeed(["convert", "tiny_world", str(made.base), "--to", "t5x"])
    else:
        shape = directory / "shape.gin"
        shape.write_text(SHAPE)
        made = World(directory, str(shape), {"inputs": 72, "targets": 10}, True, SPOKEN)
        params, _ = parameters.initial_params(DRAWN, jax.random.key(1))
        t5x_writing.write_inline(made.base, params, 0)
    return made


def assert_same_losses(upstream, own):
    theirs, ours = upstream_helpers.losses(upstream), run_helpers.losses(own)
    assert len(theirs) == len(ours) == STEPS
    np.testing.assert_allclose(theirs, ours, rtol=RELATIVE)


def assert_same_weights(one, other):
    """Of two whole models, up to what the last bits of a few updates make of them."""
    one, other = (flatten_dict(open_checkpoint(path).read_tree(), sep="/") for path in (one, other))
    assert one.keys() - {PROMPT_PATH} == other.keys() - {PROMPT_PATH}
    for path in one.keys() & other.keys():
        scale = np.abs(other[path]).max()
        assert np.abs(one[path] - other[path]).max() <= 1e-3 * scale, path


def last(directory):
    return directory / f"checkpoint_{STEPS}"


# ------------------------------------------------------------------------ training


def test_stage_one(world):
    upstream, own = world.upstream_one(), world.own_one()
    assert_same_losses(upstream, own)
    theirs, ours = (prompt_file.load_prompt(path)[0] for path in (last(upstream), own))
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)
    asked = [upstream_helpers.predictions(path, "tiny_rte", STEPS) for path in (upstream, own)]
    assert asked[0] == asked[1]
    # The model itself has stayed what it was, to the bit.
    base, after = (
        flatten_dict(open_checkpoint(p).read_tree(), sep="/") for p in (world.base, last(upstream))
    )
    if world.scan:
        assert {path for path in after if "layers_" in path} == set()
        after = {path: array for path, array in after.items() if path in base}
    else:
        after.pop(PROMPT_PATH)
        assert after.keys() == base.keys()
    for path, array in after.items():
        assert array.tobytes() == base[path].tobytes(), path


def test_stage_two(world):
    upstream, own = world.upstream_two(), world.own_two()
    assert_same_losses(upstream, own)
    assert_same_weights(last(upstream), last(own))
    asked = [upstream_helpers.predictions(path, "tiny_rte", STEPS) for path in (upstream, own)]
    assert asked[0] == asked[1]
    before, after = (
        prompt_file.load_prompt(last(path))[0] for path in (world.upstream_one(), upstream)
    )
    assert before.tobytes() == after.tobytes()


def test_stage_two_here_after_a_stage_one_there(world):
    start = last(world.upstream_one())
    own = world.own(
        "two_after_t5x",
        "train",
        "stage_two",
        INITIAL_CHECKPOINT_PATH=start,
        PROMPT_FILE=start,
        PROMPT_LENGTH=5,
    )
    assert_same_losses(world.upstream_two(), own)


def test_stage_two_there_after_a_stage_one_here(world):
    upstream = world.upstream(
        "two_after_own",
        "train",
        "stage_two",
        INITIAL_CHECKPOINT_PATH=world.base,
        PROMPT_FILE=world.own_one(),
        PROMPT_LENGTH=5,
    )
    assert_same_losses(upstream, world.own_two())


def test_standard_fine_tuning(world):
    start = {"INITIAL_CHECKPOINT_PATH": world.base}
    upstream = world.upstream("standard", "train", "finetune", **start)
    own = world.own("standard", "train", "finetune", **start)
    assert_same_losses(upstream, own)
    assert_same_weights(last(upstream), last(own))


# ------------------------------------------------------------------------ evaluation, inference


def asked(world, engine, name, checkpoint, *, prompt):
    """Predictions of an engine's evaluation of a checkpoint, behind a prompt or without."""
    settings = {"CHECKPOINT_PATH": checkpoint, "NUM_EXAMPLES": 16}
    if engine == "upstream":
        run, step = "prompt_eval" if prompt else "eval", STEPS
    else:
        run, step = "eval", None
    if prompt:
        settings |= {"PROMPT_FILE": prompt, "PROMPT_LENGTH": 5, "NUM_PROMPTS": 1}
    directory = getattr(world, engine)(name, "eval", run, **settings)
    if step is None:
        (records,) = (directory / "inference_eval").glob("tiny_rte-0*.jsonl")
        step = int(records.stem.rpartition("-")[2])
    return upstream_helpers.predictions(directory, "tiny_rte", step)


@pytest.mark.parametrize("prompted", [False, True])
def test_evaluation_of_both_engines_checkpoints(world, prompted):
    checkpoints = {"upstream": last(world.upstream_two()), "own": last(world.own_two())}
    prompts = {"upstream": last(world.upstream_one()), "own": world.own_one() / "prompt.npz"}
    answers = [
        asked(
            world,
            engine,
            f"eval_{prompted}_of_{maker}s",
            checkpoints[maker],
            prompt=prompts[maker] if prompted else None,
        )
        for maker in checkpoints
        for engine in ("upstream", "own")
    ]
    assert len(answers[0]) == 16
    assert all(each == answers[0] for each in answers)


def test_inference(world):
    settings = {"CHECKPOINT_PATH": last(world.upstream_two()), "SPLIT": "validation"}
    directory = world.upstream("infer", "infer", "prompt_infer", **settings, PROMPT_LENGTH=5)
    lines = upstream_helpers.inferences(directory, "tiny_rte")
    dialect = dialects.Dialect(**world.dialect)
    expected = upstream_helpers.predictions(world.upstream_two(), "tiny_rte", STEPS)
    assert [dialect.read(line["prediction"]) for line in lines[:16]] == expected


# ------------------------------------------------------------------------ T5X's own ways


@pytest.mark.parametrize("world", ["tiny_world"], indirect=True)
def test_a_run_that_was_stopped_goes_on(world):
    start = {"PROMPT_LENGTH": 5, "INITIAL_CHECKPOINT_PATH": world.base}
    whole = world.upstream_one()
    half = {"TRAIN_STEPS": 2, "EVAL_PERIOD": 2, "CHECKPOINT_PERIOD": 2}
    world.upstream("stopped", "train", "prompt_tune", **start, **half)
    table = prompt_file.load_prompt(world.directory / "upstream/stopped/checkpoint_2")[0]
    world._made.clear()
    resumed = world.upstream("stopped", "train", "prompt_tune", **start)
    # T5X's data start again, so that the third batch is the first; the slots must not.
    again = upstream_helpers.losses(resumed)
    np.testing.assert_allclose(again[:2], upstream_helpers.losses(whole)[:2], rtol=1e-6)
    assert len(again) == STEPS
    assert again[2] < again[0]
    after = prompt_file.load_prompt(last(resumed))[0]
    assert np.abs(after - table).max() > 1e-3


@pytest.mark.parametrize("world", ["tiny_world"], indirect=True)
def test_two_devices_and_microbatches_change_no_number(world):
    start = {"PROMPT_LENGTH": 5, "INITIAL_CHECKPOINT_PATH": world.base, "MICROBATCHES": 2}
    split = world.upstream("split", "train", "prompt_tune", devices=2, **start)
    theirs, whole = upstream_helpers.losses(split), upstream_helpers.losses(world.upstream_one())
    np.testing.assert_allclose(theirs, whole, rtol=RELATIVE)
