"""What upstream T5X relies on in the network, the prompts and the checkpoints, without T5X.

The golden files are T5X's own: both stages as `t5x.train` ran them with `gin/t5x/`.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_helpers import unpack
from engine_helpers import (
    ALL_BUT_PROMPT,
    ONLY_PROMPT,
    Golden,
    Run,
    losses,
    model_of,
    random_params,
    tiny_config,
    tiny_model,
    worst_error,
)
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import config as jax_config

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.errors import UserError
from promot_t5x.network.parameters import param_axes
from promot_t5x.network.prompt import PROMPT_AXES, PROMPT_PATH
from promot_t5x.network.prompt_init import EmbeddedText, SampledVocabulary, Uniform
from promot_t5x.network.transformer import Transformer
from promot_t5x.runs import weights
from promot_t5x.training import adafactor, schedules
from promot_t5x.training.state import with_prompt
from promot_t5x.upstream.optimizers import prompt_axis_rules
from promot_t5x.upstream.prompts import InitialPrompt

pytestmark = pytest.mark.slow

PROMPTED = {"num_prompts": 2, "prompt_length": 3}
# The axes that T5X's standard rules know, of partitioning and of Adafactor's factoring.
RULED = {"vocab", "embed", "mlp", "heads", "kv", "joined_kv", "relpos_buckets", "layers"}


def golden_stage(golden, stage):
    """(batches, losses) of a stage of the golden run."""
    features = golden.tree(f"{stage}/batch/")
    steps = len(golden.arrays[f"{stage}/losses"])
    batches = [{name: array[i] for name, array in features.items()} for i in range(steps)]
    return batches, golden.arrays[f"{stage}/losses"]


@pytest.fixture(scope="module")
def golden():
    return Golden("t5x_promot")


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory):
    """T5X's last checkpoint of stage one, in orbax, with None for the slots of frozen weights."""
    directory = tmp_path_factory.mktemp("t5x_stage_one")
    unpack("t5x_promot_stage_one", directory)
    return directory / "checkpoint_4"


# ------------------------------------------------------------------------ the module


def parameters_of(method):
    return list(inspect.signature(method).parameters)


def test_calls_take_what_t5x_passes():
    tokens = ["encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens"]
    called = parameters_of(Transformer.__call__)
    assert called[1:4] == tokens
    segments = {"encoder_segment_ids", "decoder_segment_ids"}
    positions = {"encoder_positions", "decoder_positions"}
    assert segments | positions | {"enable_dropout", "decode"} <= set(called)
    assert parameters_of(Transformer.encode)[1] == tokens[0]
    decoded = parameters_of(Transformer.decode)
    assert decoded[1:5] == ["encoded", *tokens]
    assert {"enable_dropout", "decode", "max_decode_length"} <= set(decoded)
    # With this parameter, T5X would ask for a cache filled with a whole decoder prompt.
    assert "prefill" not in decoded


@pytest.mark.parametrize("scan", [False, True])
def test_init_takes_float_tokens_and_gives_t5xs_collections(scan):
    config = tiny_config(**PROMPTED, scan_layers=scan)
    tokens = jnp.ones((2, 6), jnp.float32)
    ids = jnp.ones((2, 6), jnp.int32)

    def init(rng):
        return Transformer(config).init(
            rng,
            tokens,
            tokens,
            tokens,
            encoder_positions=ids,
            decoder_positions=ids,
            encoder_segment_ids=ids,
            decoder_segment_ids=ids,
            decode=False,
            enable_dropout=False,
        )

    variables = jax.eval_shape(init, jax.random.key(0))
    assert set(variables) == {"params", "params_axes"}
    params = flatten_dict(variables["params"], sep="/")
    axes = flatten_dict(variables["params_axes"], sep="/")
    assert set(axes) == {f"{path}_axes" for path in params}
    for path, leaf in params.items():
        assert leaf.dtype == jnp.float32
        names = axes[f"{path}_axes"]
        assert isinstance(names, AxisMetadata)
        assert len(names.names) == leaf.ndim
    assert params[PROMPT_PATH].shape == (2, 3, 32)
    assert axes[f"{PROMPT_PATH}_axes"].names == PROMPT_AXES


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_every_axis_has_a_rule(scan, tied):
    config = tiny_config(**PROMPTED, scan_layers=scan, logits_via_embedding=tied)
    used = {name for names in flatten_dict(param_axes(config)).values() for name in names}
    assert used - RULED == set(PROMPT_AXES)
    assert [name for name, _ in prompt_axis_rules()] == list(PROMPT_AXES)
    assert {mesh_axis for _, mesh_axis in prompt_axis_rules()} == {None}


def test_a_decoding_step_sees_the_prompt_in_the_raw_inputs():
    # T5X passes raw ids for the mask only, so these must count the prompt as encode() does.
    config = tiny_config(**PROMPTED)
    module, params = Transformer(config), random_params(model_of(config))
    text = np.array([[5, 6, 1, 0]], np.int32)
    first, second = (np.concatenate([[[v, v + 1, v + 2]], text], 1) for v in (1152, 1155))
    target = np.array([[7]], np.int32)

    @jax.jit
    def step(sources):
        encoded = module.apply({"params": params}, sources, enable_dropout=False, method="encode")
        ones = jnp.ones_like(target)
        _, made = module.apply(
            {"params": params},
            encoder_input_tokens=jnp.ones_like(sources),
            decoder_input_tokens=ones,
            decoder_target_tokens=ones,
            mutable=["cache"],
            decode=True,
            enable_dropout=False,
        )
        logits, changed = module.apply(
            {"params": params, "cache": made["cache"]},
            encoded,
            sources,
            target,
            target,
            enable_dropout=False,
            decode=True,
            max_decode_length=1,
            mutable=["cache"],
            method=module.decode,
        )
        assert set(changed) == {"cache"}
        full = module.apply(
            {"params": params}, sources, target, target, decode=False, enable_dropout=False
        )
        return logits, full

    (one, full), (two, _) = step(first), step(second)
    np.testing.assert_allclose(one, full, rtol=1e-5, atol=1e-5)
    assert np.abs(np.asarray(one) - np.asarray(two)).max() > 1e-3


# ------------------------------------------------------------------------ T5X's numbers


def golden_run(golden, stage, params, batch, trainable, **optimizer):
    settings = golden.described[stage]
    schedule = schedules.create_learning_rate_scheduler(
        factors="constant", base_learning_rate=settings["learning_rate"]
    )
    model = model_of(golden.config, **golden.described["loss"])

    def make(learning_rate):
        return adafactor.adafactor(learning_rate, **optimizer)

    return Run(model, params, batch, trainable=trainable, optimizer=make, schedule=schedule)


def test_stage_one_is_t5xs(golden, stage_one):
    batches, expected = golden_stage(golden, "one")
    base = open_checkpoint(stage_one).read_tree()
    trained, _ = prompt_file.load_prompt(stage_one, shape=(1, 4, 16))
    base["encoder"]["prompt"]["prompt"] = golden.arrays["one/initial_prompt"]
    settings = {k: v for k, v in golden.described["one"].items() if k != "learning_rate"}
    run = golden_run(golden, "one", base, batches[0], ONLY_PROMPT, **settings)
    np.testing.assert_allclose(losses(run.train(batches)), expected, rtol=1e-5)
    np.testing.assert_allclose(run.params[PROMPT_PATH], trained, rtol=1e-4, atol=1e-5)


def test_stage_two_goes_on_from_t5xs_stage_one(golden, stage_one):
    batches, expected = golden_stage(golden, "two")
    source = weights.Weights(model_of(golden.config))
    source.check(str(stage_one), {}, "base")
    source.check(str(stage_one), {}, "prompt")
    shapes = flatten_dict(model_of(golden.config).without_prompt().param_shapes(), sep="/")
    base = unflatten_dict(source.read(str(stage_one), shapes, seed=0).arrays, sep="/")
    prompt, _ = source.prompt(str(stage_one), seed=0, base=None)
    run = golden_run(golden, "two", with_prompt(base, prompt), batches[0], ALL_BUT_PROMPT)
    np.testing.assert_allclose(losses(run.train(batches)), expected, rtol=1e-5)
    trained = flatten_dict(golden.tree("two/params/"), sep="/")
    error, path = worst_error(run.params, trained)
    assert error <= 1e-4, path
    np.testing.assert_array_equal(run.params[PROMPT_PATH], trained[PROMPT_PATH])


# ------------------------------------------------------------------------ prompts


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(path, params) of a whole model."""
    params = random_params(tiny_model())
    directory = tmp_path_factory.mktemp("base")
    with Checkpoints(directory) as saver:
        saver.save(3, trainable=params, opt_state=(), metadata={})
    return directory / "checkpoint_3", params


class Letters:
    def encode(self, text):
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    "source", [Uniform(scale=0.1), SampledVocabulary(), EmbeddedText(text="cut"), None]
)
def test_the_network_starts_from_the_engines_prompt(base, source):
    path, params = base
    initial = InitialPrompt(source=source, base=str(path), vocabulary=Letters(), seed=7)
    config = tiny_config(num_prompts=1, prompt_length=5, prompt_init=initial)
    tokens = jnp.ones((1, 2), jnp.int32)

    def init(rng):
        return Transformer(config).init(rng, tokens, tokens, tokens)["params"]["encoder"]["prompt"]

    # T5X's default generator for speed; what it draws is another thing in another program.
    with jax.default_prng_impl("unsafe_rbg"):
        made = jax.jit(init)(jax.random.key(0))["prompt"]
    expected = (source or Uniform())(
        jax.random.key(7, impl="threefry2x32"),
        (1, 5, 32),
        embedding=params["token_embedder"]["embedding"],
        vocabulary=Letters(),
    )
    assert np.asarray(made).tobytes() == expected.tobytes()
    assert jax_config.jax_default_prng_impl == "threefry2x32"


def test_a_trained_prompt_comes_from_a_file_a_stage_or_a_checkpoint(base, tmp_path):
    table = np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32)
    with Checkpoints(tmp_path / "stage") as saver:
        tree = {"encoder": {"prompt": {"prompt": table}}}
        saver.save(2, trainable=tree, opt_state=(), metadata={})
    info = prompt_file.PromptInfo(tasks=("a", "b"))
    prompt_file.save_prompt(tmp_path / "other" / prompt_file.FILE_NAME, table + 1, info)
    for path, expected in (
        (tmp_path / "stage", table),
        (tmp_path / "stage" / "checkpoint_2", table),
        (tmp_path / "other", table + 1),
        (tmp_path / "other" / "prompt.npz", table + 1),
    ):
        made = InitialPrompt(source=str(path))(jax.random.key(0), (2, 3, 32), jnp.float32)
        np.testing.assert_array_equal(made, expected)
    with pytest.raises(UserError, match="checkpoint_3 holds no prompt"):
        prompt_file.load_prompt(base[0])


# ------------------------------------------------------------------------ checkpoints


def test_own_checkpoints_are_what_t5x_restores(base):
    # T5X opens the item `state` of its manager's step and takes target/… and state/step.
    path, params = base
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", read_only=True)
    with ocp.CheckpointManager(path.parent, options=options) as manager:
        assert manager.all_steps() == [3]
    metadata = ocp.PyTreeCheckpointer().metadata(path / "state").item_metadata.tree
    flat = flatten_dict(metadata["target"], sep="/")
    wanted = flatten_dict(params, sep="/")
    assert {p: leaf.shape for p, leaf in flat.items()} == {p: a.shape for p, a in wanted.items()}
    assert (metadata["state"]["step"].shape, metadata["state"]["step"].dtype) == ((), np.int32)
    restored = ocp.PyTreeCheckpointer().restore(
        path / "state", restore_args=ocp.checkpoint_utils.construct_restore_args(metadata)
    )
    assert int(restored["state"]["step"]) == 3
    for p, array in flatten_dict(restored["target"], sep="/").items():
        np.testing.assert_array_equal(array, wanted[p])
