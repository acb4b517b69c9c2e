"""The state of a run: what trains, what is frozen, and where the optimizer's slots lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_helpers import (
    ALL_BUT_PROMPT,
    EVERYTHING,
    ONLY_PROMPT,
    PROMPT,
    flat,
    random_params,
    small_adafactor,
    tiny_model,
)
from jax.sharding import PartitionSpec

from promot_t5x.distributed.partitioning import Partitioner, standard_logical_axis_rules
from promot_t5x.errors import UserError
from promot_t5x.network import quantization
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.training import state


@pytest.fixture(scope="module")
def model():
    return tiny_model(**PROMPT)


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.fixture(scope="module")
def partitioner():
    """Four ways of data, two of the model, parameters split over both."""
    rules = standard_logical_axis_rules(1, 2)
    return Partitioner(num_partitions=2, logical_axis_rules=rules)


@pytest.mark.parametrize("patterns", [ONLY_PROMPT, ALL_BUT_PROMPT, EVERYTHING])
def test_a_split_takes_every_parameter_once_and_merges_back(params, patterns):
    trainable, frozen = state.split(params, patterns)
    trains, rests = set(flat(trainable)), set(flat(frozen))
    assert not trains & rests
    assert trains | rests == set(flat(params))
    assert (PROMPT_PATH in trains) == (patterns != ALL_BUT_PROMPT)
    assert (len(trains) == 1) == (patterns == ONLY_PROMPT)
    merged = state.merge(trainable, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (merged, params)), strict=True))
    assert state.count(trainable) + state.count(frozen) == state.count(params)


def test_a_pattern_covers_the_whole_path_and_several_add_up(params):
    trainable, _ = state.split(params, ["encoder/prompt/.*", ".*/layers_1/mlp/wo/kernel"])
    assert set(flat(trainable)) == {
        PROMPT_PATH,
        "encoder/layers_1/mlp/wo/kernel",
        "decoder/layers_1/mlp/wo/kernel",
    }
    with pytest.raises(UserError, match="'encoder/prompt', which matches none of the model's"):
        state.split(params, ["encoder/prompt"])


def test_a_prompt_that_is_not_there_cannot_train():
    shapes = tiny_model().param_shapes()
    with pytest.raises(UserError, match="PROMPT_LENGTH and NUM_PROMPTS are above 0") as error:
        state.split(shapes, ONLY_PROMPT)
    assert "'encoder/prompt/.*'" in str(error.value)
    assert str(len(jax.tree.leaves(shapes))) in str(error.value)


def test_one_pattern_without_a_match_is_an_error_beside_others_that_match(params):
    with pytest.raises(UserError, match="'encoder/promt/"):
        state.split(params, ["encoder/promt/.*", "decoder/.*"])


def test_a_prompt_is_put_among_the_parameters_of_a_model_without(params):
    plain, table = tiny_model().param_shapes(), np.ones((2, 3, 32), np.float32)
    prompted = state.with_prompt(plain, table)
    assert set(state.flatten(prompted)) == set(state.flatten(params))
    assert prompted["encoder"]["prompt"]["prompt"] is table
    assert "prompt" not in plain["encoder"]
    again = state.with_prompt(params, table)
    assert again["encoder"]["prompt"]["prompt"] is table
    assert params["encoder"]["prompt"]["prompt"].shape == (1, 4, 32)


def test_adafactors_slots_lie_with_their_parameters_or_everywhere(model, params, partitioner):
    trainable, _ = state.split(params, EVERYTHING)
    shardings = partitioner.shard_tree(model.param_axes(), trainable)
    slots = state.opt_state_shardings(small_adafactor(0.1), trainable, shardings, partitioner)
    shapes = jax.eval_shape(small_adafactor(0.1).init, trainable)
    where, sizes = state.flatten(shardings), state.flatten(trainable)
    assert slots.count == partitioner.replicated
    whole = factored = 0
    for path, parameter in sizes.items():
        v, v_row, v_col = (
            state.flatten(getattr(slots, name))[path] for name in ("v", "v_row", "v_col")
        )
        if state.flatten(shapes.v)[path].shape == parameter.shape:
            assert v == where[path], path
            whole += 1
        else:
            assert v == partitioner.replicated, path
            factored += 1
            if len(set(parameter.shape)) == 2:
                # Each side is split as it is in the parameter; the row is the shorter one.
                sides = sorted(zip(parameter.shape, where[path].spec, strict=True))
                assert [v_row.spec[0], v_col.spec[0]] == [axis for _, axis in sides], path
            else:
                assert v_row == v_col == partitioner.replicated, path
    assert whole > 5
    assert factored > 5
    bias = state.flatten(slots.v)["encoder/relpos_bias/rel_embedding"]
    assert bias.spec == PartitionSpec("model", None)


@pytest.mark.parametrize("frozen_dtype", ["float32", "bfloat16", "int8"])
def test_a_new_state_is_laid_out_and_frozen_weights_are_stored_as_asked(
    model, params, partitioner, frozen_dtype
):
    optimizer = small_adafactor(0.1)
    made = state.create(
        params, model.param_axes(), ONLY_PROMPT, optimizer, partitioner, frozen_dtype
    )
    assert int(made.step) == 0
    assert made.step.dtype == jnp.int32
    assert flat(made.trainable)[PROMPT_PATH].tobytes() == flat(params)[PROMPT_PATH].tobytes()
    assert made.trainable["encoder"]["prompt"]["prompt"].dtype == jnp.float32
    frozen = {path: leaf for path, leaf in flat(params).items() if path != PROMPT_PATH}
    stored = quantization.cast(frozen, quantization.stored_shapes(frozen, frozen_dtype))
    assert flat(made.frozen).keys() == stored.keys()
    kept = {"float32", "int8"} if frozen_dtype == "int8" else {frozen_dtype}
    assert {leaf.dtype.name for leaf in flat(made.frozen).values()} == kept
    for path, leaf in flat(made.frozen).items():
        np.testing.assert_array_equal(leaf, stored[path], path)
    mlp = made.frozen["encoder"]["layers_0"]["mlp"]["wi_0"]
    assert mlp["kernel"].sharding.spec == PartitionSpec("data", "model")
    assert mlp["kernel"].sharding.shard_shape(mlp["kernel"].shape) == (8, 32)
    if frozen_dtype == "int8":  # a scale lies with its column
        assert mlp["kernel_scale"].sharding.spec == PartitionSpec("model")
        again = state.create(
            made.params, model.param_axes(), ONLY_PROMPT, optimizer, partitioner, frozen_dtype
        )
        both = map(jax.tree.leaves, (again.frozen, made.frozen))
        assert all(one is other for one, other in zip(*both, strict=True))
    assert set(state.flatten(made.opt_state.v)) == {PROMPT_PATH}
    assert set(state.flatten(state.only(made.params, params))) == stored.keys() | {PROMPT_PATH}


def test_slots_of_a_chain_of_transformations_are_found_in_it(model, params, partitioner):
    trainable, _ = state.split(params, ALL_BUT_PROMPT)
    axes = state.flatten(model.param_axes())
    shardings = partitioner.shard_tree(
        state.unflatten({path: axes[path] for path in state.flatten(trainable)}), trainable
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    slots = state.opt_state_shardings(optimizer, trainable, shardings, partitioner)
    adam = slots[1][0]
    assert state.flatten(adam.mu) == state.flatten(adam.nu) == state.flatten(shardings)
    assert adam.count == partitioner.replicated


def test_a_fresh_optimizer_may_count_from_elsewhere(model, params, partitioner):
    for optimizer in (small_adafactor(0.1), optax.chain(optax.clip(1.0), optax.adam(0.1))):
        fresh = optimizer.init(params)
        late = state.started_at(1_100_000, fresh)
        assert jax.tree.structure(late) == jax.tree.structure(fresh)
        changed = [
            (path, int(b))
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(fresh), jax.tree.leaves(late), strict=True
            )
            if not np.array_equal(a, b)
        ]
        assert [count for _, count in changed] == [1_100_000]
        assert "count" in str(changed[0][0][-1])
    with pytest.raises(UserError, match="optimizer_step = 5, but this optimizer keeps no count"):
        state.started_at(5, optax.sgd(0.1).init(params))
