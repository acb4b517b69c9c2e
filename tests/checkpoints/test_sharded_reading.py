"""Weights go from the checkpoint to the shards that need them, and nowhere else."""

import functools
import gc

import engine_helpers as lab
import jax
import numpy as np
import pytest
from etils import epath
from scan_helpers import scan_params

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.t5x import T5xLegacyCheckpoint
from promot_t5x.checkpoints.formats.t5x_writing import write_inline
from promot_t5x.checkpoints.sharded_reading import read_sharded
from promot_t5x.distributed.partitioning import Partitioner, standard_logical_axis_rules
from promot_t5x.errors import UserError
from promot_t5x.network import quantization
from promot_t5x.runs.weights import Weights
from promot_t5x.training import state


class Stored:
    """A source in memory that notes what is asked of it."""

    def __init__(self, arrays):
        self.arrays = arrays
        self.shapes = {p: jax.ShapeDtypeStruct(a.shape, a.dtype) for p, a in arrays.items()}
        self.asked = []

    def read(self, wanted):
        self.asked.append(list(wanted))
        return read_arrays.read(self.arrays, wanted)


@pytest.fixture(scope="module")
def partitioner():
    rules = standard_logical_axis_rules(parameter_partitioning_dims=2)
    return Partitioner(num_partitions=2, logical_axis_rules=rules)


@pytest.fixture(scope="module")
def stored():
    """A model with single layers, as every public checkpoint has them."""
    return lab.flat(lab.random_params(lab.tiny_model()))


def wanted(model, partitioner, dtype=None):
    shapes, axes = model.param_shapes(), model.param_axes()
    return state.flatten(state.laid_out(shapes, axes, partitioner, dtype))


@pytest.mark.parametrize("scanned", [False, True])
def test_every_device_holds_its_part_in_the_dtype_asked_for(stored, partitioner, scanned):
    model = lab.tiny_model(scan_layers=scanned)
    like = wanted(model, partitioner, "bfloat16")
    found = read_sharded(Stored(stored), like)
    whole = state.unflatten(stored)
    if scanned:
        whole = scan_params(whole)
    assert found.keys() == like.keys()
    for path, array in state.flatten(whole).items():
        assert found[path].sharding == like[path].sharding, path
        assert found[path].dtype == "bfloat16"
        np.testing.assert_array_equal(found[path], array.astype("bfloat16"), path)


def test_reading_takes_a_bounded_portion_at_a_time(stored, partitioner, monkeypatch):
    monkeypatch.setattr(read_arrays, "PORTION_BYTES", 20_000)
    source = Stored(stored)
    like = wanted(lab.tiny_model(scan_layers=True), partitioner)
    read_sharded(source, like)
    largest = max(array.nbytes for array in stored.values())
    assert len(source.asked) > 20
    assert largest > 20_000
    for paths in source.asked:
        sizes = [stored[path].nbytes for path in paths]
        assert sum(sizes) <= 20_000 or len(sizes) == 1
    assert sorted(path for paths in source.asked for path in paths) == sorted(stored)


@pytest.mark.parametrize("scanned", [False, True])
def test_what_is_wanted_in_int8_is_quantized_a_portion_at_a_time(
    stored, partitioner, monkeypatch, scanned
):
    monkeypatch.setattr(read_arrays, "PORTION_BYTES", 20_000)
    like = wanted(lab.tiny_model(scan_layers=scanned), partitioner, "int8")
    source, there = Stored(stored), []
    monkeypatch.setattr(source, "read", lambda wanted: there.append(weighed()) or read(wanted))
    read = functools.partial(Stored.read, source)

    def weighed():
        """Bytes of the devices' kernels and embeddings that are not int8."""
        arrays = [a for a in jax.live_arrays() if a.ndim > 1 and a.dtype == np.float32]
        return sum(a.nbytes for a in arrays)

    gc.collect()
    before = weighed()
    found = read_sharded(source, like)
    # Biases, and a stack's norms and scales, are all that stays.
    assert max(there) - before < 20_000 < sum(array.nbytes for array in stored.values()) / 10
    assert sorted(path for paths in source.asked for path in paths) == sorted(stored)
    exact = quantization.cast(stored, quantization.stored_shapes(stored, "int8"))
    whole = state.flatten(scan_params(state.unflatten(exact))) if scanned else exact
    assert found.keys() == like.keys() == whole.keys()
    for path, array in whole.items():
        assert (found[path].dtype, found[path].sharding) == (array.dtype, like[path].sharding), path
        np.testing.assert_array_equal(found[path], array, path)


def test_a_number_that_is_not_finite_is_found_in_int8_too(stored, partitioner, tmp_path):
    path, layer = "encoder/encoder/mlp/wo/kernel", "encoder/layers_1/mlp/wo/kernel"
    kernel = stored[layer].copy()
    kernel[3, 5] = np.nan
    write_inline(epath.Path(tmp_path), state.unflatten({**stored, layer: kernel}), 0)
    model = lab.tiny_model(scan_layers=True)
    with pytest.raises(UserError, match=f"not finite.* in 1 of .* arrays: {path}"):
        Weights(model).read(str(tmp_path), wanted(model, partitioner, "int8"), seed=0)


def test_what_a_host_needs_of_an_array_is_counted(partitioner):
    split = jax.ShapeDtypeStruct((64, 32), np.float32, sharding=partitioner.sharding(("mlp", "kv")))
    assert read_arrays.local_bytes(split) == 64 * 32 * 4  # one process holds all shards
    assert read_arrays.local_bytes(jax.ShapeDtypeStruct((3,), np.int16)) == 6


def test_only_what_is_asked_for_is_read(stored, partitioner, monkeypatch, tmp_path):
    write_inline(epath.Path(tmp_path), state.unflatten(stored), 0)
    asked, inner = [], T5xLegacyCheckpoint.read

    def noted(self, wanted):
        asked.append(list(wanted))
        return inner(self, wanted)

    monkeypatch.setattr(T5xLegacyCheckpoint, "read", noted)
    one = "encoder/layers_1/mlp/wo/kernel"
    like = {one: wanted(lab.tiny_model(), partitioner)[one]}
    loaded = Weights(lab.tiny_model()).read(str(tmp_path), like, seed=0)
    assert [paths for paths in asked if paths] == [[one]]
    np.testing.assert_array_equal(loaded.arrays[one], stored[one])
    assert loaded.summary() == [f"1 arrays, 2,048 parameters from the base {tmp_path}"]


def test_random_parameters_do_not_depend_on_the_mesh(partitioner):
    weights, model = Weights(lab.tiny_model()), lab.tiny_model()
    spread = weights.read(None, wanted(model, partitioner), seed=3).arrays
    here = weights.read(None, state.flatten(model.param_shapes()), seed=3).arrays
    assert all(isinstance(array, np.ndarray) for array in here.values())
    for path, array in here.items():
        np.testing.assert_allclose(spread[path], array, rtol=1e-6, err_msg=path)
