"""Reading base weights: both T5X formats, our own, and what to say when there is none."""

import dataclasses
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import tensorstore as ts
from checkpoint_helpers import read_params, unpack
from flax import serialization, traverse_util
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import check_shapes, open_checkpoint
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.errors import UserError
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.transformer import T5Config

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "t5x_t5_1_1.npz") as arrays:
        return {
            name.removeprefix("params/"): arrays[name]
            for name in arrays.files
            if name.startswith("params/")
        }


@pytest.fixture(scope="module", params=["legacy", "orbax"])
def t5x_checkpoint(request, tmp_path_factory):
    """checkpoint_7 as T5X wrote it in one of its formats; not to be changed."""
    return unpacked(request.param, tmp_path_factory.mktemp(request.param))


def unpacked(kind, directory):
    unpack(f"t5x_checkpoint_{kind}", directory)
    return directory / "checkpoint_7"


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def assert_same(found, expected):
    found = flat(found)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == array.dtype, path
        assert np.asarray(found[path]).tobytes() == array.tobytes(), path


def save_own(directory, params, *steps, **metadata):
    with Checkpoints(directory, keep=None) as saver:
        for step in steps:
            opt_state = optax.sgd(0.1, momentum=0.9).init(params)
            saver.save(step, trainable=params, opt_state=opt_state, metadata=metadata)


def test_t5x_parameters_come_out_bit_for_bit(t5x_checkpoint, golden):
    assert_same(read_params(t5x_checkpoint), golden)
    shapes = open_checkpoint(str(t5x_checkpoint)).shapes
    assert {p: s.shape for p, s in shapes.items()} == {p: a.shape for p, a in golden.items()}


def test_parts_of_a_path_that_name_the_same_checkpoint(t5x_checkpoint, golden):
    inner = "checkpoint" if (t5x_checkpoint / "checkpoint").exists() else "state"
    assert_same(read_params(t5x_checkpoint / inner), golden)


def test_optimizer_slots_are_not_read(golden, tmp_path):
    checkpoint = unpacked("legacy", tmp_path)
    for slot in checkpoint.glob("state.*"):
        shutil.rmtree(slot)
    assert_same(read_params(checkpoint), golden)


def test_some_parameters_only(t5x_checkpoint, golden):
    found = flat(read_params(t5x_checkpoint, only="token_embedder/.*"))
    assert list(found) == [EMBEDDING]
    with pytest.raises(UserError, match="no parameter .* matches 'embedding'; it has decoder"):
        read_params(t5x_checkpoint, only="embedding")


def test_casting_rounds_to_nearest_even(t5x_checkpoint, golden):
    found = read_params(t5x_checkpoint, dtype="bfloat16")
    assert_same(found, {p: a.astype(ml_dtypes.bfloat16) for p, a in golden.items()})


def test_reading_onto_a_mesh(t5x_checkpoint, golden):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = {
        p: NamedSharding(mesh, P("data") if a.ndim == 2 and a.shape[0] % 8 == 0 else P())
        for p, a in golden.items()
    }
    shardings = traverse_util.unflatten_dict(rows, sep="/")
    found = read_params(t5x_checkpoint, shardings=shardings)
    assert_same(found, golden)
    embedding = found["token_embedder"]["embedding"]
    assert embedding.sharding == rows[EMBEDDING]
    assert embedding.addressable_shards[0].data.shape[0] == golden[EMBEDDING].shape[0] // 8
    assert hashing.content_hash(found) == hashing.content_hash(read_params(t5x_checkpoint))

    everywhere = NamedSharding(mesh, P())
    half = flat(read_params(t5x_checkpoint, dtype=jnp.bfloat16, shardings=everywhere))
    assert {x.sharding for x in half.values()} == {everywhere}
    assert half[EMBEDDING].dtype == jnp.bfloat16

    del shardings["token_embedder"]
    with pytest.raises(ValueError, match=f"no sharding for {EMBEDDING}"):
        read_params(t5x_checkpoint, shardings=shardings)


def test_damage_is_an_error_and_not_zeros(t5x_checkpoint, tmp_path):
    copy = shutil.copytree(t5x_checkpoint, tmp_path / "checkpoint_7")
    for file in [*copy.glob(f"target.{EMBEDDING.replace('/', '.')}/0*"), *copy.rglob("d/*")]:
        file.unlink()
    with pytest.raises(UserError, match="checkpoint_7.* is damaged"):
        read_params(copy)


def write_legacy(directory, arrays, *, driver="file", version=3, spec_style="new"):
    """A legacy checkpoint as older or other writers made it; arrays of rank 1 are inline."""
    tree = {}
    for path, array in arrays.items():
        if array.ndim < 2:
            tree[path] = array
            continue
        name = "target." + path.replace("/", ".")
        store = ts.open(
            {"driver": "zarr", "kvstore": {"driver": "file", "path": str(directory / name) + "/"}},
            create=True,
            dtype=array.dtype.name,
            shape=array.shape,
            chunk_layout=ts.ChunkLayout(read_chunk_shape=[5, 3]),
        ).result()
        store.write(array).result()
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": driver},
            "metadata": {"shape": list(array.shape), "chunks": [5, 3]},
        }
        (spec["kvstore"] if spec_style == "new" else spec)["path"] = name
        if driver == "gcs":
            spec["kvstore"]["bucket"] = "t5x-dummy-bucket"
        tree[path] = spec
    target = traverse_util.unflatten_dict(tree, sep="/")
    state = {"step": np.int32(3), "param_states": {"a": None}}
    contents = {"version": version, "optimizer": {"target": target, "state": state}}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "checkpoint").write_bytes(serialization.msgpack_serialize(contents))


ARRAYS = {
    "a/kernel": np.arange(143, dtype=np.float32).reshape(11, 13),
    "b/kernel": np.arange(143).reshape(13, 11).astype(ml_dtypes.bfloat16),
    "zero": np.zeros((6, 6), np.float32),
    "scale": np.linspace(0, 1, 7, dtype=np.float32),
}


@pytest.mark.parametrize("spec_style", ["new", "old"])
@pytest.mark.parametrize("driver", ["file", "gfile", "gcs"])
def test_legacy_specs_of_all_times(tmp_path, driver, spec_style):
    write_legacy(tmp_path / "checkpoint_3", ARRAYS, driver=driver, spec_style=spec_style)
    assert_same(read_params(tmp_path / "checkpoint_3"), ARRAYS)


def test_large_inline_arrays_are_stored_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    write_legacy(tmp_path, {"scale": ARRAYS["a/kernel"].reshape(-1)})
    assert b"__msgpack_chunked_array__" in (tmp_path / "checkpoint").read_bytes()
    assert_same(read_params(tmp_path), {"scale": ARRAYS["a/kernel"].reshape(-1)})


def test_version_2_with_its_disguised_bfloat16_is_refused(tmp_path):
    write_legacy(tmp_path, {"a": np.ones((2, 2), np.uint16)}, version=2)
    with pytest.raises(UserError, match="version 2"):
        read_params(tmp_path)


def test_own_checkpoint_of_a_whole_model(tmp_path, golden):
    params = traverse_util.unflatten_dict(golden, sep="/")
    newer = jax.tree.map(lambda x: x + 1, params)
    save_own(tmp_path, params, 10)
    save_own(tmp_path, newer, 20)
    assert_same(read_params(tmp_path / "checkpoint_10"), golden)
    assert_same(read_params(tmp_path), flat(newer))
    half = read_params(tmp_path, dtype="bfloat16", only=EMBEDDING)
    assert_same(half, {EMBEDDING: (golden[EMBEDDING] + 1).astype(ml_dtypes.bfloat16)})


def test_own_checkpoint_is_verified(tmp_path, golden):
    save_own(tmp_path, traverse_util.unflatten_dict(golden, sep="/"), 1)
    for file in (tmp_path / "checkpoint_1" / "state").rglob("d/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(UserError, match="checkpoint_1 is damaged"):
        read_params(tmp_path)


def test_prompt_checkpoint_is_no_base_and_names_its_own(tmp_path):
    prompt = {"encoder": {"prompt": {"prompt": np.ones((1, 3, 4), np.float32)}}}
    save_own(tmp_path / "prompt", prompt, 5, base_path="gs://models/t5/checkpoint_1000000")
    with pytest.raises(UserError) as error:
        read_params(tmp_path / "prompt")
    assert "only what its stage trained (encoder/prompt/prompt)" in str(error.value)
    assert "gs://models/t5/checkpoint_1000000" in str(error.value)


def test_unfinished_own_checkpoint_is_refused(tmp_path, golden):
    save_own(tmp_path, traverse_util.unflatten_dict(golden, sep="/"), 4)
    (tmp_path / "pending_4").mkdir()
    (tmp_path / "checkpoint_4" / "manifest.json").unlink()
    with pytest.raises(UserError, match="still being written, or its run was cut short"):
        read_params(tmp_path / "checkpoint_4")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("t5", "is not a checkpoint: it holds checkpoint_1000, checkpoint_200, config.gin"),
        ("t5", "Did you mean {root}/t5/checkpoint_1000?"),
        (".", "is not a checkpoint: it holds other, t5. Did you mean {root}/t5/checkpoint_1000?"),
        ("t5/checkpoint_20", "does not exist. Did you mean {root}/t5/checkpoint_200?"),
        ("t6/checkpoint_20", "does not exist. Nor does {root}/t6."),
        ("t5/config.gin", "is a file, not a checkpoint directory"),
        ("other/empty", "is an empty directory."),
    ],
)
def test_what_is_no_checkpoint(tmp_path, asked, message):
    for step in (200, 1000):
        write_legacy(tmp_path / "t5" / f"checkpoint_{step}", {"scale": ARRAYS["scale"]})
    (tmp_path / "t5" / "config.gin").write_text("")
    (tmp_path / "other" / "empty").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        read_params(tmp_path / asked)
    assert str(tmp_path / asked) in str(error.value)
    assert message.format(root=tmp_path) in str(error.value)


def test_orbax_checkpoint_without_parameters(tmp_path):
    copy = unpacked("orbax", tmp_path)
    file = copy / "state" / "_METADATA"
    text = file.read_text()
    file.write_text(text.replace('"target"', '"goal"'))
    with pytest.raises(UserError, match=r"no parameters.*only \['goal', 'state'\]"):
        read_params(copy)
    for harmed in ("{}", "[]", text[:-100]):
        file.write_text(harmed)
        with pytest.raises(UserError, match="is damaged"):
            read_params(copy)


def test_other_checkpoint_files(tmp_path):
    file = tmp_path / "checkpoint"
    file.write_text('model_checkpoint_path: "model.ckpt-1000"\n')
    with pytest.raises(UserError, match="TensorFlow"):
        read_params(tmp_path)
    for contents in (serialization.msgpack_serialize({"params": {}}), b"\xc1junk", b""):
        file.write_bytes(contents)
        with pytest.raises(UserError, match="is not a T5X checkpoint"):
            read_params(tmp_path)


def test_check_tree_counts_and_names(golden):
    params = traverse_util.unflatten_dict(golden, sep="/")
    shapes = {p: a.shape for p, a in golden.items()}
    check_shapes(params, shapes)
    check_shapes(params, params)

    wanted = {**shapes, EMBEDDING: (1, 2), **{f"more/{i}": (3,) for i in range(9)}}
    del wanted["decoder/decoder_norm/scale"]
    with pytest.raises(UserError) as error:
        check_shapes(params, wanted, source="/base")
    rows, columns = shapes[EMBEDDING]
    for part in (
        "/base does not fit",
        "9 missing: more/0, more/1, more/2, more/3, more/4 and 4 more",
        "1 unexpected: decoder/decoder_norm/scale",
        f"1 of another shape: {EMBEDDING} is [{rows}, {columns}], the model has [1, 2]",
    ):
        assert part in str(error.value)


def test_content_hash_is_of_paths_types_shapes_and_bytes(monkeypatch):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    params = {"a": {"b": x, "c": np.float32(1)}, "d": np.ones(3, ml_dtypes.bfloat16)}
    value = hashing.content_hash(params)
    assert len(value) == 32
    same = {"d": jnp.ones(3, jnp.bfloat16), "a": {"c": jnp.float32(1), "b": np.asfortranarray(x)}}
    assert hashing.content_hash(same) == value

    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("x", "y"))
    same["a"]["b"] = jax.device_put(x, NamedSharding(mesh, P("x", "y")))
    assert hashing.content_hash(same) == value

    flipped = x.copy()
    flipped.view(np.uint8)[0, 0] ^= 1
    others = [flipped, x.reshape(6, 4), x.view(np.float16), x.view(np.int32)]
    hashes = {hashing.content_hash({**params, "a": {**params["a"], "b": y}}) for y in others}
    hashes.add(hashing.content_hash({"a": {"b2": x, "c": params["a"]["c"]}, "d": params["d"]}))
    swapped = x.copy()
    swapped[0, 0], swapped[3, 5] = x[3, 5], x[0, 0]
    hashes.add(hashing.content_hash({**params, "a": {**params["a"], "b": swapped}}))
    assert len(hashes) == 6
    assert value not in hashes
    with pytest.raises(TypeError, match="float64"):
        hashing.content_hash({"a": x.astype(np.float64)})


def test_content_hash_of_stacked_layers_is_that_of_single_ones():
    layers = {f"layers_{i}": {"k": np.full((2, 3), i, np.float32)} for i in range(11)}
    stacked = np.stack([layers[f"layers_{i}"]["k"] for i in range(11)], axis=1)
    value = hashing.content_hash({"encoder": {"encoder": {"k": stacked}}})
    assert value == hashing.content_hash({"encoder": layers})
    assert value != hashing.content_hash({"encoder": {"encoder": {"k": stacked[:, ::-1]}}})


def test_large_arrays_are_hashed_in_pieces(monkeypatch):
    monkeypatch.setattr(hashing, "PIECE_BYTES", 64)
    x = np.arange(100, dtype=np.float32)
    value = hashing.digest(x)
    for i in (0, 15, 16, 99):
        other = x.copy()
        other[i] += 1
        assert hashing.digest(other) != value
    assert hashing.digest(np.concatenate([x[16:32], x[:16], x[32:]])) != value


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["legacy", "own"])
def test_numbers_that_are_not_finite_are_blamed_on_their_checkpoint(
    tmp_path, golden, number, kind, monkeypatch
):
    arrays = {path: array.copy() for path, array in golden.items()}
    arrays["encoder/layers_1/mlp/wo/kernel"][3, 2] = number
    if kind == "legacy":
        write_legacy(tmp_path / "checkpoint_3", arrays)
    else:
        monkeypatch.setattr("promot_t5x.checkpoints.saving.non_finite_state", lambda leaves: [])
        save_own(tmp_path, traverse_util.unflatten_dict(arrays, sep="/"), 3)
    with pytest.raises(UserError) as error:
        read_params(tmp_path / "checkpoint_3")
    for part in (
        f"{tmp_path / 'checkpoint_3'} holds numbers that are not finite",
        f"1 of {len(golden)} arrays: encoder/layers_1/mlp/wo/kernel",
    ):
        assert part in str(error.value)
    # What is not read does no harm.
    read_params(tmp_path / "checkpoint_3", only="decoder/.*")
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), P())
    with pytest.raises(UserError, match="not finite"):
        read_params(tmp_path / "checkpoint_3", shardings=everywhere)


def test_numbers_too_large_for_a_type_are_blamed_too(tmp_path):
    write_legacy(tmp_path, {"a/kernel": np.full((2, 2), 3e38, np.float32)})
    assert read_params(tmp_path)["a"]["kernel"][0, 0] == np.float32(3e38)
    message = "not finite, read as float16, in 1 of 1 arrays: a/kernel"
    with np.errstate(over="ignore"), pytest.raises(UserError, match=message):
        read_params(tmp_path, dtype="float16")


def test_integers_are_no_parameters(tmp_path):
    write_legacy(tmp_path, {**ARRAYS, "a/kernel": np.ones((11, 13), np.int64)})
    with pytest.raises(UserError, match=r"not floating-point numbers: a/kernel \(int64\)"):
        read_params(tmp_path)


def test_a_model_of_another_network_is_refused_when_it_is_opened(t5x_checkpoint):
    config = T5Config(
        vocab_size=384, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2,
        num_decoder_layers=3, mlp_activations=("gelu", "linear"),
    )  # fmt: skip
    with pytest.raises(
        UserError, match="checkpoint_7.* does not fit the model.* missing: decoder/"
    ):
        open_checkpoint(t5x_checkpoint, config)
    fitting = dataclasses.replace(config, num_decoder_layers=2, scan_layers=True)
    parameters = open_checkpoint(t5x_checkpoint, fitting)
    wanted = traverse_util.flatten_dict(param_shapes(fitting), sep="/")
    found = parameters.read(wanted)
    query = "encoder/layers_1/attention/query/kernel"
    np.testing.assert_array_equal(
        found["encoder/encoder/attention/query/kernel"][:, 1],
        flat(read_params(t5x_checkpoint))[query],
    )


def test_files_that_only_stand_for_others_are_named(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    hub = Path(shutil.copytree(GOLDEN / "hf_mt5", tmp_path / "hub"))
    weights = (hub / "model.safetensors").read_bytes()
    (hub / "model.safetensors").write_bytes(pointer)
    with pytest.raises(UserError, match="model.safetensors is a Git LFS pointer.*git lfs pull"):
        read_params(hub)
    (hub / "model.safetensors").unlink()
    (hub / "model.safetensors").symlink_to("../../blobs/4d7a")
    with pytest.raises(UserError, match="a link to ../../blobs/4d7a, which does not exist"):
        read_params(hub)
    (hub / "model.safetensors").unlink()
    (hub / "model.safetensors").write_bytes(weights)
    (hub / "config.json").unlink()
    (hub / "config.json").symlink_to("../../blobs/77aa")
    with pytest.raises(UserError, match="config.json is a link to ../../blobs/77aa"):
        read_params(hub)
    (tmp_path / "checkpoint").write_bytes(pointer)
    with pytest.raises(UserError, match="checkpoint is a Git LFS pointer"):
        read_params(tmp_path / "checkpoint")


def test_two_formats_in_one_directory_are_ambiguous(tmp_path):
    hub = Path(shutil.copytree(GOLDEN / "hf_mt5", tmp_path / "hub"))
    write_legacy(hub, {"scale": ARRAYS["scale"]})
    with pytest.raises(UserError, match="hub holds checkpoints of several formats"):
        read_params(hub)


def test_an_own_checkpoint_without_its_manifest_is_damaged(tmp_path, golden):
    save_own(tmp_path, traverse_util.unflatten_dict(golden, sep="/"), 4)
    (tmp_path / "checkpoint_4" / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="its manifest.json is missing"):
        read_params(tmp_path / "checkpoint_4")
