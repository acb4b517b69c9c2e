"""The mesh: rules, shardings, and the errors for what does not divide."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from engine_helpers import flat, random_params, tiny_model
from jax.sharding import PartitionSpec

from promot_t5x.distributed.partitioning import Partitioner, standard_logical_axis_rules
from promot_t5x.errors import UserError
from promot_t5x.training import state


@pytest.mark.parametrize(
    ("dims", "kernel", "embedding"),
    [
        ((1, 1), (None, "model"), ("model", None)),
        ((2, 1), ("model", None), ("model", None)),
        ((1, 2), ("data", "model"), ("model", "data")),
        ((2, 2), ("model", None), ("model", "data")),
    ],
)
def test_rules_of_each_variant(dims, kernel, embedding):
    partitioner = Partitioner(
        num_partitions=2, logical_axis_rules=standard_logical_axis_rules(*dims)
    )
    assert partitioner.sharding(("vocab", "embed")).spec == PartitionSpec(*embedding)
    # One mesh axis splits one dimension: the rule that comes first has it.
    if dims[0] == 1:
        assert partitioner.sharding(("embed", "mlp")).spec == PartitionSpec(*kernel)
    assert partitioner.sharding(("tasks", "prompt", "prompt_embed")).is_fully_replicated
    assert partitioner.sharding(("batch",)).spec == PartitionSpec(("replica", "data"))
    assert partitioner.replicated.is_fully_replicated


def test_additional_rules_name_new_axes_and_do_not_overrule():
    rules = standard_logical_axis_rules(additional_rules=[("experts", "data"), ("mlp", None)])
    partitioner = Partitioner(num_partitions=4, logical_axis_rules=rules)
    assert partitioner.sharding(("experts", "mlp")).spec == PartitionSpec("data", "model")
    own = Partitioner(
        num_partitions=4,
        logical_axis_rules=[("mlp", None), ("vocab", "model"), ("batch", ["replica", "data"])],
    )
    assert own.sharding(("batch",)) == partitioner.sharding(("batch",))
    assert own.sharding(("vocab", "mlp")).spec == PartitionSpec("model", None)


@pytest.mark.parametrize("dims", [(0, 1), (1, 3), (2, 0)])
def test_other_variants_are_refused(dims):
    with pytest.raises(UserError, match="must each be 1 or 2") as error:
        standard_logical_axis_rules(*dims)
    assert str(dims) in str(error.value)


@pytest.mark.parametrize("partitions", [1, 2, 4, 8])
def test_the_mesh_takes_every_device(partitions):
    mesh = Partitioner(num_partitions=partitions).mesh
    assert mesh.shape == {"replica": 1, "data": 8 // partitions, "model": partitions}
    assert set(mesh.devices.ravel()) == set(jax.devices())


@pytest.mark.parametrize(
    ("given", "shape"),
    [
        ({"replica": 2, "data": 2, "model": 2}, (2, 2, 2)),
        ({"model": 2, "replica": 4}, (4, 1, 2)),
        ({"data": 8}, (1, 8, 1)),
        ({"data": 4, "model": 2}, (1, 4, 2)),
        ({"model": 8}, (1, 1, 8)),
        ({}, (1, 8, 1)),
    ],
)
def test_a_mesh_given_by_its_sizes(given, shape):
    partitioner = Partitioner(mesh_shape=given)
    assert tuple(partitioner.mesh.shape.values()) == shape
    assert set(partitioner.mesh.devices.ravel()) == set(jax.devices())
    assert partitioner.batch_ways == shape[0] * shape[1]
    rows = partitioner.sharding(("batch", "embed")).shard_shape((16, 4))
    assert rows == (16 // (shape[0] * shape[1]), 4)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mesh_shape": {"data": 4, "model": 4}}, "does not divide the 8 devices of this run"),
        ({"mesh_shape": {"data": 2, "model": 2}}, "without 'data', it takes what is left"),
        ({"mesh_shape": {"model": 3}}, r"MESH = \{'model': 3\} does not divide"),
        ({"mesh_shape": {"modle": 2}}, "an axis 'modle'.*Did you mean 'model'"),
        ({"mesh_shape": {"model": 2}, "num_partitions": 2}, "give one of them"),
        ({"mesh_shape": {"data": -1}}, "does not divide"),
        ({"logical_axis_rules": [("mlp", "modl")]}, "'modl'.*Did you mean 'model'"),
        ({"logical_axis_rules": [("batch", ("data", "x"))]}, "names a mesh axis 'x'"),
    ],
)
def test_a_mesh_that_cannot_be_is_explained(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        _ = Partitioner(**settings).mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the mesh asks of a TPU device, so that pods can be laid out without one."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v4"


def pod(slices, x, y, z):
    places = itertools.product(range(slices), range(x), range(y), range(z))
    return [Chip(n, slice_, tuple(coords)) for n, (slice_, *coords) in enumerate(places)]


@pytest.mark.parametrize("model", [1, 2, 8, 16, 64])
def test_a_copy_of_the_model_lies_on_neighboring_chips(model):
    devices = pod(1, 4, 4, 4)
    mesh = Partitioner(num_partitions=model, devices=devices[::-1]).mesh
    assert mesh.shape == {"replica": 1, "data": 64 // model, "model": model}
    assert {chip.id for chip in mesh.devices.ravel()} == set(range(64))
    for copy in mesh.devices.reshape(-1, model):
        sides = [len({chip.coords[axis] for chip in copy}) for axis in range(3)]
        assert math.prod(sides) == model  # a box of the torus


def test_slices_are_replicas():
    devices = pod(2, 2, 2, 2)
    mesh = Partitioner(num_partitions=4, devices=devices).mesh
    assert mesh.shape == {"replica": 2, "data": 2, "model": 4}
    for replica, slice_ in enumerate(mesh.devices):
        assert {chip.slice_index for chip in slice_.ravel()} == {replica}
    four = Partitioner(mesh_shape={"replica": 4, "model": 4}, devices=devices).mesh
    assert four.shape == {"replica": 4, "data": 1, "model": 4}
    assert [{chip.slice_index for chip in part.ravel()} for part in four.devices] == [
        {0}, {0}, {1}, {1},
    ]  # fmt: skip
    for wrong, complaint in (
        ({"mesh_shape": {"replica": 3}}, "it must be a multiple of 2"),
        ({"num_partitions": 16}, "16 devices of this run in 2 slices; choose a divisor of 8"),
    ):
        with pytest.raises(UserError, match=complaint):
            _ = Partitioner(devices=devices, **wrong).mesh


@pytest.mark.parametrize("partitions", [0, 3, 16, -2])
def test_partitions_that_do_not_divide_the_devices(partitions):
    with pytest.raises(UserError, match="choose a divisor of 8") as error:
        _ = Partitioner(num_partitions=partitions).mesh
    assert f"num_partitions = {partitions} does not divide the 8 devices" in str(error.value)


def test_the_vocabulary_is_split_over_the_model_axis():
    model = tiny_model(num_prompts=1, prompt_length=4)
    shardings = state.flatten(
        Partitioner(num_partitions=4).shard_tree(model.param_axes(), model.param_shapes())
    )
    assert shardings["token_embedder/embedding"].spec == PartitionSpec("model", None)
    assert shardings["decoder/logits_dense/kernel"].spec == PartitionSpec(None, "model")
    assert shardings["encoder/layers_0/attention/query/kernel"].spec[1] == "model"
    assert shardings["encoder/layers_0/attention/out/kernel"].spec[0] == "model"
    assert shardings["encoder/prompt/prompt"].is_fully_replicated
    assert shardings["encoder/encoder_norm/scale"].is_fully_replicated
    assert set(shardings) == set(state.flatten(model.param_shapes()))


def test_scanned_layers_are_split_as_plain_ones():
    model = tiny_model(scan_layers=True)
    shardings = Partitioner(num_partitions=4).shard_tree(model.param_axes(), model.param_shapes())
    kernel = state.flatten(shardings)["encoder/encoder/mlp/wi_0/kernel"]
    assert kernel.spec == PartitionSpec(None, None, "model")


def test_a_parameter_that_the_mesh_does_not_divide_is_named():
    model = tiny_model(num_heads=4, head_dim=8)
    with pytest.raises(UserError, match="divides 4") as error:
        Partitioner(num_partitions=8).shard_tree(model.param_axes(), model.param_shapes())
    for part in ("relpos_bias/rel_embedding", "8 ways", "'model'", "'heads'", "num_partitions"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("batch_size", "mend"), [(6, "use 8 or 4"), (3, r"use 4\."), (33, "use 36 or 32")]
)
def test_a_batch_that_the_mesh_does_not_divide_is_named(batch_size, mend):
    partitioner = Partitioner(num_partitions=2)
    with pytest.raises(UserError, match=mend) as error:
        partitioner.check_batch(batch_size, "BATCH_SIZE")
    assert f"BATCH_SIZE = {batch_size} is not divisible by the 4 parts" in str(error.value)
    assert "(replica 1 × data 4 × model 2)" in str(error.value)
    for good in (4, 32):
        partitioner.check_batch(good, "BATCH_SIZE")


def test_a_batch_is_split_by_rows_and_keeps_its_values():
    partitioner = Partitioner(num_partitions=2)
    batch = {
        "tokens": np.arange(8 * 5, dtype=np.int32).reshape(8, 5),
        "targets": np.arange(8 * 3, dtype=np.int32).reshape(8, 3),
    }
    placed = partitioner.place_batch(batch)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, batch[name])
        assert array.sharding.spec == PartitionSpec(("replica", "data"))
        assert {shard.data.shape for shard in array.addressable_shards} == {
            (2, batch[name].shape[1])
        }
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, batch[name][shard.index])


@pytest.mark.parametrize("mesh", [{"model": 8}, {"replica": 2, "model": 2}])
def test_one_process_holds_every_row(mesh):
    np.testing.assert_array_equal(Partitioner(mesh_shape=mesh).rows(16), np.arange(16))


def test_placed_parameters_keep_their_values():
    model = tiny_model()
    partitioner = Partitioner(
        num_partitions=2, logical_axis_rules=standard_logical_axis_rules(1, 2)
    )
    params = random_params(model)
    shardings = partitioner.shard_tree(model.param_axes(), params)
    placed = partitioner.place(params, shardings)
    for path, leaf in flat(placed).items():
        np.testing.assert_array_equal(leaf, flat(params)[path], path)
    embedding = placed["token_embedder"]["embedding"]
    assert {s.data.shape for s in embedding.addressable_shards} == {(576, 8)}


def test_an_active_mesh_splits_what_the_model_computes():
    partitioner = Partitioner(num_partitions=2)

    @jax.jit
    def constrained(x):
        return nn.with_logical_constraint(x * 2, ("batch", "length", "vocab"))

    with partitioner.activate():
        out = constrained(np.ones((8, 3, 16), np.float32))
    assert out.sharding.shard_shape(out.shape) == (2, 3, 8)
