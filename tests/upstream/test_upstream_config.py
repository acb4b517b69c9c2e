"""The gin files for upstream T5X, read without it, and what its restoring is given.

T5X's side of the names is written down here: a file that binds anything else fails.
"""

import importlib
import inspect
import io

import jax
import numpy as np
import pytest
from engine_helpers import model_of, random_params, tiny_config
from flax.traverse_util import flatten_dict
from gin import config_parser
from scan_helpers import scan_params

from promot_t5x import config
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.errors import UserError
from promot_t5x.upstream import restore
from promot_t5x.upstream.optimizers import Frozen

PROMPTED = {"num_prompts": 1, "prompt_length": 3}
GIN = config.gin_root()
RUNS = {"prompt_tune", "stage_two", "finetune", "eval", "prompt_eval", "infer", "prompt_infer"}
EVERY_RUN = {"MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "MIXTURE_OR_TASK_MODULE"}
# What T5X's own run files define, which `t5x/runs/` include, by file.
UPSTREAM_RUNS = {
    "t5x/configs/runs/finetune.gin": EVERY_RUN
    | {"MODEL_DIR", "TRAIN_STEPS", "INITIAL_CHECKPOINT_PATH", "DROPOUT_RATE", "USE_CACHED_TASKS"}
    | {"BATCH_SIZE", "EVAL_STEPS", "EVAL_PERIOD", "EVALUATOR_USE_MEMORY_CACHE", "RANDOM_SEED"}
    | {
        "EVALUATOR_NUM_EXAMPLES",
        "JSON_WRITE_N_RESULTS",
        "USE_HARDWARE_RNG",
        "TRAIN_STEPS_RELATIVE",
    },
    "t5x/configs/runs/eval.gin": EVERY_RUN | {"CHECKPOINT_PATH", "EVAL_OUTPUT_DIR"},
    "t5x/configs/runs/infer.gin": EVERY_RUN | {"CHECKPOINT_PATH", "INFER_OUTPUT_DIR"},
}
# T5X's configurables that the files name, and those of their parameters that they bind.
UPSTREAM = {
    "train_script.train": {"stats_period"},
    "eval_script.evaluate": {"fallback_init_rng"},
    "infer_script.infer": {"mode", "fallback_init_rng"},
    "utils.DatasetConfig": {
        *("mixture_or_task_name", "task_feature_lengths", "split", "batch_size"),
        *("shuffle", "seed", "pack", "module"),
    },
    "utils.RestoreCheckpointConfig": {"state_transformation_fns", "fallback_to_scratch", "dtype"},
    "utils.SaveCheckpointConfig": {"period", "keep"},
    "utils.create_learning_rate_scheduler": {"base_learning_rate"},
    "trainer.Trainer": {"num_microbatches"},
    "partitioning.PjitPartitioner": {"num_partitions"},
    "partitioning.standard_logical_axis_rules": {"additional_rules"},
    "models.EncoderDecoderModel": {
        *("module", "input_vocabulary", "output_vocabulary", "optimizer_def", "decode_fn"),
        *("feature_converter_cls", "label_smoothing", "z_loss", "loss_normalizing_factor"),
        "default_decoder_params",
    },
    "models.DecoderParams": {"num_decodes"},
    "decoding.beam_search": set(),
    "adafactor.Adafactor": {
        *("decay_rate", "step_offset", "logical_factor_rules"),
        *("multiply_by_parameter_scale", "weight_decay_rate"),
    },
    "seqio.Evaluator": {"num_examples"},
}
# T5X's modules; anything else that a file imports can be imported here.
UPSTREAM_MODULES = {f"t5x.{name}" for name in ("adafactor", "decoding", "models", "utils")} | {
    *("t5x.partitioning", "t5x.trainer", "__main__", "seqio")
}


class Names(config_parser.ParserDelegate):
    """Collects the names that values refer to."""

    def __init__(self):
        self.references, self.macros = [], []

    def configurable_reference(self, scoped_configurable_name, evaluate):
        self.references.append(scoped_configurable_name.rpartition("/")[2])
        return scoped_configurable_name

    def macro(self, scoped_name):
        self.macros.append(scoped_name)
        return scoped_name


class File:
    """One file's statements."""

    def __init__(self, name):
        self.imports, self.includes, self.bound = {}, [], []
        self.defined, names = set(), Names()
        parser = config_parser.ConfigParser(io.StringIO((GIN / name).read_text()), names)
        for statement in parser:
            if isinstance(statement, config_parser.IncludeStatement):
                self.includes.append(statement.filename)
            elif isinstance(statement, config_parser.ImportStatement):
                if statement.module != "__gin__.dynamic_registration":
                    self.imports[statement.bound_name()] = statement.module
            elif isinstance(statement, config_parser.BindingStatement):
                if statement.arg_name:
                    self.bound.append((statement.selector, statement.arg_name))
                else:
                    self.defined.add(statement.selector)
        self.bound += [(name, None) for name in names.references]
        self.macros = set(names.macros) - {"gin.REQUIRED"}


def chain(name):
    """(defined macros, used macros) of a file and all that it includes."""
    if name in UPSTREAM_RUNS:
        return set(UPSTREAM_RUNS[name]), set()
    file = File(name)
    parts = [(file.defined, file.macros), *map(chain, file.includes)]
    return set().union(*(p[0] for p in parts)), set().union(*(p[1] for p in parts))


FILES = sorted(str(path.relative_to(GIN)) for path in (GIN / "t5x").rglob("*.gin"))


def test_there_is_a_run_file_for_everything():
    assert {path.stem for path in GIN.glob("t5x/runs/*.gin")} == RUNS | {"training"}


@pytest.mark.parametrize("name", FILES)
def test_names_exist_on_both_sides(name):
    file = File(name)
    for module in file.imports.values():
        assert module in UPSTREAM_MODULES or importlib.import_module(module), module
    for include in file.includes:
        assert include in UPSTREAM_RUNS or (GIN / include).is_file(), include
    for selector, parameter in file.bound:
        alias, _, path = selector.partition(".")
        module = file.imports[alias]
        if module in UPSTREAM_MODULES:
            assert selector in UPSTREAM, selector
            assert parameter is None or parameter in UPSTREAM[selector], (selector, parameter)
            continue
        function = getattr(importlib.import_module(module), path)
        assert parameter is None or parameter in inspect.signature(function).parameters


@pytest.mark.parametrize("run", sorted(RUNS))
def test_a_model_file_and_a_run_file_define_every_macro(run):
    # As on T5X's command line: the model, then the run.
    model, models_use = chain("models/t5_1_1_small.gin")
    defined, used = chain(f"t5x/runs/{run}.gin")
    assert used | models_use <= defined | model
    assert defined >= EVERY_RUN
    text = (GIN / f"t5x/runs/{run}.gin").read_text()
    for required in ("MODEL_DIR", "CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "INFER_OUTPUT_DIR"):
        if required in defined:
            assert f"--gin.{required}=" in text or f"--gin.INITIAL_{required}=" in text


# ------------------------------------------------------------------------ restoring

SPEC = {"driver": "zarr", "kvstore": {}, "metadata": {}}


def stored(*, prompt):
    """A checkpoint's tree as T5X's formats give it: leaves are arrays, specs or metadata."""
    target = {
        "token_embedder": {"embedding": SPEC},
        "encoder": {"norm": {"scale": np.ones(2)}},
        "decoder": {"extra": {"kernel": np.ones(2)}},
    }
    if prompt:
        target["encoder"]["prompt"] = {"prompt": SPEC}
    return {"target": target, "state": {"step": np.int32(7), "param_states": {"slot": SPEC}}}


def wanted(*, prompt):
    """The tree of T5X's train state for a model of these parameters."""
    encoder = {"norm": {"scale": object()}}
    if prompt:
        encoder["prompt"] = {"prompt": object()}
    target = {"token_embedder": {"embedding": object()}, "encoder": encoder}
    return {"target": target, "state": {"step": object(), "param_states": {"slot": object()}}}


def test_a_stage_starts_with_weights_and_nothing_else():
    taken = restore.weights_only(stored(prompt=True), wanted(prompt=True))
    assert set(taken) == {"target"}
    assert taken["target"]["encoder"]["prompt"]["prompt"] is SPEC
    assert "decoder" not in taken["target"]


def test_a_named_prompt_replaces_that_of_the_checkpoint():
    for prompt in (False, True):
        taken = restore.weights_only(stored(prompt=prompt), wanted(prompt=True), prompt="p.npz")
        assert "prompt" not in taken["target"]["encoder"]


def test_evaluation_keeps_the_step_that_names_its_results():
    taken = restore.weights_and_step(stored(prompt=True), wanted(prompt=False))
    assert taken["state"] == {"step": 7}
    assert "prompt" not in taken["target"]["encoder"]


def test_a_run_that_resumes_takes_all_of_its_own_checkpoint():
    tree = stored(prompt=True)
    for take in (restore.weights_only, restore.weights_and_step):
        assert take(tree, wanted(prompt=True), is_resuming=True) is tree


def test_what_a_checkpoint_lacks_is_an_error():
    for take in (restore.weights_only, restore.weights_and_step):
        with pytest.raises(UserError, match="holds no prompt: name one, PROMPT_FILE"):
            take(stored(prompt=False), wanted(prompt=True))
        tree = stored(prompt=True)
        del tree["target"]["token_embedder"]
        with pytest.raises(UserError, match="lacks 1 of the model's 2 .*token_embedder/embedding"):
            take(tree, wanted(prompt=False))


def test_a_network_that_scans_takes_single_layers(tmp_path):
    config = tiny_config(**PROMPTED)
    params = random_params(model_of(config))
    with Checkpoints(tmp_path) as saver:
        saver.save(3, trainable=params, opt_state=(), metadata={})
    scanned = model_of(config.replace(scan_layers=True))
    tree = {"target": params, "state": {"step": np.int32(3)}}
    model = {"target": scanned.param_shapes(), "state": {"step": None}}
    taken = restore.weights_only(tree, model, path=str(tmp_path / "checkpoint_3"))
    expected = flatten_dict(scan_params(params), sep="/")
    found = flatten_dict(taken["target"], sep="/")
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array)
    deeper = model_of(config.replace(scan_layers=True, num_encoder_layers=3))
    model = {"target": deeper.param_shapes(), "state": {"step": None}}
    with pytest.raises(UserError, match="lacks 9 of the model's .*encoder/encoder/"):
        restore.weights_only(tree, model, path=str(tmp_path / "checkpoint_3"))


def test_what_is_frozen_stays_and_has_a_slot():
    # T5X's `MultiOptimizer` calls the parts so, and replaces the learning rate of each.
    frozen = Frozen()
    params = {"a": {"kernel": np.ones((2, 3), np.float32)}}
    state = frozen.init_state(params)
    assert jax.tree.map(lambda slot: (slot.shape, slot.dtype.name), state.param_states) == {
        "a": {"kernel": ((1,), "float32")}
    }
    rate = frozen.hyper_params.replace(learning_rate=0.1)
    assert rate.learning_rate == 0.1
    after, slots = frozen.apply_gradient(rate, params, state, params)
    assert after is params
    assert slots is state
