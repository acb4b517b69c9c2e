"""Layouts of T5X's networks: every change of them is exact, and none is made up."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scan_helpers import scan_params

from promot_t5x.checkpoints.formats import layouts, shape
from promot_t5x.checkpoints.formats.layouts import BIAS, Layout, Relaid
from promot_t5x.checkpoints.formats.source import ParamSource, as_stored, nbytes
from promot_t5x.errors import UserError
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.transformer import T5Config

CONFIG = T5Config(
    vocab_size=16,
    emb_dim=8,
    num_heads=2,
    head_dim=3,
    mlp_dim=12,
    num_encoder_layers=11,
    num_decoder_layers=3,
    mlp_activations=("gelu", "linear"),
)


class Held:
    """Arrays in memory as a source, which counts what is read of it."""

    def __init__(self, params):
        self.arrays = flatten_dict(params, sep="/")
        self.shapes = {p: jax.ShapeDtypeStruct(a.shape, a.dtype) for p, a in self.arrays.items()}
        self.reads = []

    def read(self, wanted):
        self.reads += wanted
        return {p: self.arrays[p].astype(w.dtype) for p, w in wanted.items()}


def random(config, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), param_shapes(config)
    )


def read(source):
    found = source.read(as_stored(source))
    assert {p: (a.shape, a.dtype) for p, a in found.items()} == {
        p: (s.shape, s.dtype) for p, s in source.shapes.items()
    }
    return found


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.fixture(scope="module")
def shared():
    return random(CONFIG)


@pytest.fixture(scope="module")
def per_layer():
    return random(CONFIG.replace(relative_bias_per_layer=True))


def scalable(params):
    """What T5X's scalable network has: made here by hand."""
    flat = flatten_dict(scan_params(params), sep="/")
    for path, leaf in flat.items():
        if "attention/" in path and path.endswith("kernel"):
            if path.endswith("out/kernel"):  # [joined, layers, embed]
                heads = leaf.reshape(2, 3, *leaf.shape[1:])
                flat[path] = heads.transpose(0, 2, 1, 3)
            else:
                flat[path] = leaf.reshape(*leaf.shape[:2], 2, 3)
    return flat


def test_as_stored_is_the_source_itself(shared):
    source = Held(shared)
    laid = Relaid(source, Layout())
    assert isinstance(laid, ParamSource)
    assert_equal(read(laid), source.arrays)
    assert sorted(source.reads) == sorted(source.arrays)


def test_stacking_and_splitting_are_those_of_scan(shared):
    scanned = scan_params(shared)
    assert_equal(read(Relaid(Held(shared), Layout(scanned=True))), flatten_dict(scanned, sep="/"))
    source = Held(scanned)
    found = read(Relaid(source, Layout(scanned=False)))
    assert_equal(found, flatten_dict(shared, sep="/"))
    assert len(source.reads) == len(set(source.reads))  # a stack of layers is read once
    back = read(Relaid(Held(scanned), Layout(scanned=True, bias_per_layer=False)))
    assert_equal(back, source.arrays)


def test_scalable_t5_both_ways(per_layer):
    theirs = scalable(per_layer)
    assert theirs["encoder/encoder/attention/query/kernel"].shape == (8, 11, 2, 3)
    assert theirs["decoder/decoder/self_attention/out/kernel"].shape == (2, 3, 3, 8)
    assert theirs[f"encoder/encoder/{BIAS}"].shape == (2, 11, 32)
    assert_equal(read(Relaid(Held(per_layer), layouts.SCALABLE_T5)), theirs)

    source = Held(unflatten_dict(theirs, sep="/"))
    assert_equal(read(Relaid(source, Layout(scanned=False))), flatten_dict(per_layer, sep="/"))
    ours = flatten_dict(scan_params(per_layer), sep="/")
    assert_equal(read(Relaid(source, Layout(scanned=True, bias_per_layer=True))), ours)
    assert_equal(read(Relaid(source, Layout())), ours)
    assert_equal(read(Relaid(source, layouts.SCALABLE_T5)), theirs)


def test_a_shared_bias_is_repeated_and_equal_ones_are_joined(shared, per_layer):
    source = Held(shared)
    repeated = Relaid(source, Layout(bias_per_layer=True))
    found = read(repeated)
    expected = flatten_dict(param_shapes(CONFIG.replace(relative_bias_per_layer=True)), sep="/")
    assert found.keys() == expected.keys()
    for layer in range(11):
        bias = found[f"encoder/layers_{layer}/{BIAS}"]
        np.testing.assert_array_equal(bias, source.arrays[f"encoder/{BIAS}"])
    for layout in (Layout(bias_per_layer=True), layouts.SCALABLE_T5):
        there = Relaid(Held(shared), layout)
        back = Relaid(there, Layout(scanned=False, bias_per_layer=False))
        assert_equal(read(back), source.arrays)

    with pytest.raises(UserError, match="differ.*RELATIVE_BIAS_PER_LAYER = True"):
        Relaid(Held(per_layer), Layout(bias_per_layer=False))
    # -0.0 equals 0.0 but is another number to a sign bit: not joined.
    signed = flatten_dict(per_layer, sep="/")
    for path in [p for p in signed if p.endswith(BIAS)]:
        signed[path] = np.zeros_like(signed[path])
    signed[f"decoder/layers_2/{BIAS}"] = -signed[f"decoder/layers_2/{BIAS}"]
    with pytest.raises(UserError, match="decoder/layers_2"):
        Relaid(Held(unflatten_dict(signed, sep="/")), Layout(bias_per_layer=False))


def test_types_and_shardings_are_those_asked_for(shared):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    laid = Relaid(Held(shared), Layout(scanned=True))
    path = "encoder/encoder/attention/query/kernel"
    rows = NamedSharding(mesh, P("data"))
    shape_ = laid.shapes[path].shape
    found = laid.read({path: jax.ShapeDtypeStruct(shape_, "bfloat16", sharding=rows)})[path]
    assert (found.sharding, found.dtype) == (rows, "bfloat16")
    expected = flatten_dict(scan_params(shared), sep="/")[path]
    np.testing.assert_array_equal(np.asarray(found), expected.astype("bfloat16"))


def test_prompts_of_prompt_tuning_become_ours(shared):
    table = np.ones((5, 8), np.float32)
    tree = unflatten_dict(
        {**flatten_dict(shared, sep="/"), "encoder/prompt/prompt/prompt": table}, sep="/"
    )
    laid = Relaid(Held(tree), Layout(scanned=True))
    assert laid.shapes["encoder/prompt/prompt"].shape == (1, 5, 8)
    np.testing.assert_array_equal(read(laid)["encoder/prompt/prompt"], table[None])


def test_batches_are_bounded_and_keep_a_stored_array_together(shared):
    laid = Relaid(Held(scan_params(shared)), Layout(scanned=False))
    limit = 4096
    parts = layouts.batches(laid, laid.shapes, limit)
    assert sorted(p for part in parts for p in part) == sorted(laid.shapes)
    for part in parts:
        size = sum(nbytes(laid.shapes[p]) for p in part)
        assert size <= limit or len({laid.together(p) for p in part}) == 1
    homes = {}
    for number, part in enumerate(parts):
        for path in part:
            assert homes.setdefault(laid.together(path), number) == number
    assert len(parts) > 5
    assert len(layouts.batches(laid, laid.shapes)) == 1


def test_layers_that_do_not_stack_are_named(shared):
    broken = flatten_dict(shared, sep="/")
    del broken["decoder/layers_1/mlp/wo/kernel"]
    with pytest.raises(UserError, match=r"decoder/decoder/mlp/wo/kernel.* are \[0, 2\]"):
        Relaid(Held(unflatten_dict(broken, sep="/")), Layout(scanned=True))


@pytest.mark.parametrize("bias_per_layer", [False, True])
@pytest.mark.parametrize("activations", [("relu",), ("gelu", "linear")])
@pytest.mark.parametrize("tied", [False, True])
def test_the_shape_is_in_the_arrays(bias_per_layer, activations, tied):
    config = CONFIG.replace(
        relative_bias_per_layer=bias_per_layer,
        mlp_activations=activations,
        logits_via_embedding=tied,
    )
    shapes = flatten_dict(param_shapes(config), sep="/")
    found = shape.infer(shapes, source="it")
    found.check(config, "it")
    assert found.relative_bias_per_layer == bias_per_layer
    assert shape.parameters(found) == shapes
    assert f"MLP_ACTIVATIONS = {activations!r}" in found.macros()


def test_what_is_no_t5_has_no_shape():
    shapes = flatten_dict(param_shapes(CONFIG), sep="/")
    for path in ("decoder/layers_1/mlp/wo/kernel", f"encoder/{BIAS}", "token_embedder/embedding"):
        with pytest.raises(UserError, match="/data/x is not a T5-family model"):
            shape.infer({p: s for p, s in shapes.items() if p != path}, source="/data/x")
    with pytest.raises(UserError, match="HEAD_DIM is 3, there 6.*set NUM_HEADS = 1, HEAD_DIM = 6"):
        found = shape.infer(shapes, source="it")
        other = flatten_dict(param_shapes(CONFIG.replace(num_heads=1, head_dim=6)), sep="/")
        shape.infer(other, source="it").check(CONFIG, "it")
    assert found.num_heads == 2
