"""Hugging Face checkpoints as bases: the golden ones' numbers, and what is refused and why."""

import functools
import json
import shutil
from pathlib import Path

import engine_helpers as lab
import jax
import ml_dtypes
import numpy as np
import pytest
from checkpoint_helpers import read_params
from etils import epath
from flax.traverse_util import flatten_dict

from promot_t5x import decoding
from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import hf_config, hugging_face, safetensors, shape
from promot_t5x.checkpoints.formats.layouts import Layout
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import main
from promot_t5x.decoding import decoder
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.network.transformer import T5Config, Transformer
from promot_t5x.runs.weights import Weights
from promot_t5x.training import state

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = {
    "hf_mt5": {"mlp_activations": ("gelu", "linear"), "logits_via_embedding": False},
    "hf_t5_1_0": {"mlp_activations": ("relu",), "logits_via_embedding": True},
}


def config_of(name):
    return T5Config(
        vocab_size=384,
        emb_dim=32,
        num_heads=4,
        head_dim=8,
        mlp_dim=64,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.0,
        **VARIANTS[name],
    )


@pytest.fixture(scope="module", params=VARIANTS)
def golden(request):
    with np.load(GOLDEN / request.param / "expected.npz") as arrays:
        return request.param, config_of(request.param), dict(arrays)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN / "hf_mt5", tmp_path / "hf"))


def edit(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_golden_logits(golden):
    name, config, expected = golden
    config = config.replace(scan_layers=True)
    params = read_params(GOLDEN / name, layout=Layout(scanned=True))
    inputs = expected["input_ids"] * expected["attention_mask"]
    targets = np.maximum(expected["labels"], 0)
    shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
    # transformers masks no decoder position here, so none may count as padding.
    everything = np.where(targets == 0, 3, targets)

    @jax.jit
    def logits(params):
        return Transformer(config).apply(
            {"params": params}, inputs, shifted, everything, enable_dropout=False
        )

    found = np.asarray(logits(params))
    error = np.abs(found - expected["logits"]).max() / np.abs(expected["logits"]).max()
    assert error <= 2e-5


def test_golden_greedy_ids(golden):
    name, config, expected = golden
    params = read_params(GOLDEN / name)
    inputs = expected["input_ids"] * expected["attention_mask"]
    decode = functools.partial(
        decoder.decode, Transformer(config), max_decode_length=10, method=decoding.Greedy()
    )
    found = jax.jit(lambda params, inputs: decode(params, inputs).ids)(params, inputs)
    np.testing.assert_array_equal(np.asarray(found)[:, 0], expected["greedy"][:, 1:])


def test_golden_arrays_are_the_files(golden):
    name, _config, _ = golden
    found = flatten_dict(read_params(GOLDEN / name), sep="/")
    tensors = safetensors.open_file(epath.Path(GOLDEN / name / "model.safetensors"))
    assert found.keys() == shape.parameters(open_stored(GOLDEN / name).shape).keys()
    for path, array in found.items():
        tensor, transposed = hugging_face.tensor_name(path)
        stored = tensors["shared.weight" if tensor == "lm_head.weight" else tensor][...]
        np.testing.assert_array_equal(array, stored.T if transposed else stored, err_msg=path)


def test_casting_and_reading_a_part(golden):
    name, _, _ = golden
    whole = flatten_dict(read_params(GOLDEN / name), sep="/")
    half = read_params(GOLDEN / name, dtype="bfloat16", only="encoder/layers_1/.*")
    for path, array in flatten_dict(half, sep="/").items():
        assert path.startswith("encoder/layers_1/")
        assert array.dtype == "bfloat16"
        np.testing.assert_array_equal(array, whole[path].astype(ml_dtypes.bfloat16))


def test_a_configuration_that_differs_is_refused_with_the_difference():
    config = config_of("hf_mt5").replace(num_encoder_layers=3, mlp_activations=("relu",))
    with pytest.raises(UserError) as error:
        open_checkpoint(GOLDEN / "hf_mt5", config)
    for part in (
        "NUM_ENCODER_LAYERS is 3, there 2",
        "MLP_ACTIVATIONS is ('relu',), there ('gelu', 'linear')",
        "set NUM_ENCODER_LAYERS = 2, MLP_ACTIVATIONS = ('gelu', 'linear').",
    ):
        assert part in str(error.value)
    assert "EMBED_DIM" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "bart"}, "of type 'bart'; those of t5, mt5, umt5"),
        ({"relative_attention_num_buckets": 16}, "num_buckets is 16; this network has 32"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'; there are relu"),
        (
            {"feed_forward_proj": "relu", "dense_act_fn": "relu", "is_gated_act": False},
            "lacks .*DenseReluDense.wi.weight, which its config",
        ),
        ({"dense_act_fn": "relu"}, "dense_act_fn is 'relu' and feed_forward_proj 'gated-gelu'"),
        ({"dense_act_fn": "gelu"}, "'gated-gelu', with which it is 'gelu_new'"),
        (
            {"feed_forward_proj": "gated-silu"},
            "dense_act_fn is 'gelu_new'.* with which it is 'silu'",
        ),
        ({"is_gated_act": False}, "is_gated_act is False"),
        ({"num_layers": 3}, r"lacks encoder.block.2"),
        ({"num_layers": 1}, "tensors that are no part of a mt5 model.*: encoder.block.1"),
        ({"d_ff": 60}, r"wi_0.weight is \[64, 32\].*would be \[32, 60\]"),
        ({"vocab_size": 400}, r"shared.weight is \[384, 32\].*would be \[32, 400\]"),
    ],
)
def test_configs_that_do_not_fit_the_arrays(copy, changes, message):
    edit(copy, **changes)
    with pytest.raises(UserError, match=message):
        open_checkpoint(copy)


def test_files_that_cannot_be_read(copy):
    weights = copy / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-100])
    with pytest.raises(UserError, match="is damaged: .*ends 100 bytes too early"):
        read_params(copy)
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_params(copy)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read.*save_pretrained"):
        read_params(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(UserError, match="config.json is not a model's configuration"):
        read_params(copy)


def write(path, arrays):
    file = safetensors.FileWriter(epath.Path(path), arrays)
    for name in sorted(arrays, reverse=True):
        file.add(name, arrays[name])
    file.close()


def tensors_of(directory):
    found = safetensors.open_file(epath.Path(directory / "model.safetensors"))
    return {name: tensor[...] for name, tensor in found.items()}


def test_shards(copy):
    expected = flatten_dict(read_params(copy), sep="/")
    tensors = tensors_of(copy)
    names = sorted(tensors)
    parts = {"a.safetensors": names[:20], "b.safetensors": names[20:]}
    for file, held in parts.items():
        write(copy / file, {name: tensors[name] for name in held})
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    found = flatten_dict(read_params(copy), sep="/")
    assert {p: a.tobytes() for p, a in found.items()} == {
        p: a.tobytes() for p, a in expected.items()
    }
    (copy / "b.safetensors").unlink()
    with pytest.raises(UserError, match="lacks b.safetensors, which model.safetensors.index.json"):
        read_params(copy)
    shutil.copy(copy / "a.safetensors", copy / "b.safetensors")
    with pytest.raises(UserError, match="b.safetensors lacks .* which model.safetensors.index"):
        read_params(copy)


def test_two_sets_of_weights_are_ambiguous(copy):
    tensors = tensors_of(copy)
    names = sorted(tensors)
    other = {name: tensors[name] + 1 for name in names}
    shards = {
        "model-00001-of-00002.safetensors": names[:20],
        "model-00002-of-00002.safetensors": names[20:],
    }
    for file, held in shards.items():
        write(copy / file, {name: other[name] for name in held})
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match=r"two sets of weights: model.safetensors, and model-00001"
    ) as e:
        read_params(copy)
    assert "Remove the set that is not meant" in str(e.value)
    (copy / "model.safetensors").unlink()
    assert open_stored(copy).files == sorted(shards)
    # A tensor that the index gives to the other file, and one that it does not know.
    first, second = shards
    write(copy / second, {name: other[name] for name in [names[0], *names[20:]]})
    with pytest.raises(
        UserError, match=f"{second} holds {names[0]} too, which .* gives to {first}"
    ):
        read_params(copy)
    write(copy / second, {"x": other[names[0]], **{name: other[name] for name in names[20:]}})
    with pytest.raises(UserError, match="holds x too, which .* gives to no file"):
        read_params(copy)
    # An index may name the single file.
    for file in shards:
        (copy / file).unlink()
    write(copy / "model.safetensors", tensors)
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_stored(copy).files == ["model.safetensors"]


def test_an_encoder_alone_is_named(copy):
    tensors = {n: a for n, a in tensors_of(copy).items() if not n.startswith("decoder")}
    write(copy / "model.safetensors", tensors)
    edit(copy, architectures=["MT5EncoderModel"])
    with pytest.raises(UserError, match=r"hf holds an encoder alone \(MT5EncoderModel\)"):
        read_params(copy)


def test_quantized_tensors_are_named(copy):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    header[name]["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(UserError, match=f"{name} is stored as F8_E4M3.* cannot be read"):
        read_params(copy)
    write(path, {**tensors_of(GOLDEN / "hf_mt5"), name: np.ones((32, 32), np.int8)})
    with pytest.raises(UserError, match=r"attention/query/kernel \(int8\)"):
        read_params(copy)


def test_the_embedding_under_its_other_names(copy):
    tensors = tensors_of(copy)
    embedding = tensors.pop("shared.weight")
    head = np.random.default_rng(0).normal(size=embedding.shape).astype(np.float32)
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    tensors |= {
        "encoder.embed_tokens.weight": embedding,
        "decoder.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        unused: np.ones((32, 4), np.float32),
    }
    write(copy / "model.safetensors", tensors)
    found = flatten_dict(read_params(copy), sep="/")
    np.testing.assert_array_equal(found["token_embedder/embedding"], embedding)
    np.testing.assert_array_equal(found["decoder/logits_dense/kernel"], head.T)

    # Scaled outputs (T5 1.0) share the table: a head of its own does not fit.
    edit(copy, scale_decoder_outputs=True)
    with pytest.raises(UserError, match="lm_head.weight differs from encoder.embed_tokens"):
        read_params(copy)
    write(copy / "model.safetensors", {**tensors, "lm_head.weight": embedding})
    assert "decoder/logits_dense/kernel" not in open_checkpoint(copy).shapes
    write(copy / "model.safetensors", {**tensors, "decoder.embed_tokens.weight": head})
    with pytest.raises(UserError, match="decoder.embed_tokens.weight differs"):
        read_params(copy)


@pytest.mark.parametrize(
    ("kind", "told", "scaled"),
    [
        ("t5", {}, True),
        ("t5", {"tie_word_embeddings": False}, False),  # T5 1.1 and Flan-T5, as published
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("mt5", {"tie_word_embeddings": False, "transformers_version": "4.10.0"}, False),
        ("mt5", {"tie_word_embeddings": True, "transformers_version": "4.49.0"}, True),
        ("mt5", {"tie_word_embeddings": True, "transformers_version": "5.23.0"}, False),
        ("umt5", {"tie_word_embeddings": False}, False),
    ],
)
def test_which_outputs_are_scaled(tmp_path, kind, told, scaled):
    raw = json.loads((GOLDEN / "hf_mt5" / "config.json").read_text())
    for name in ("tie_word_embeddings", "transformers_version"):
        del raw[name]
    (tmp_path / "config.json").write_text(json.dumps({**raw, "model_type": kind, **told}))
    found = hf_config.read(epath.Path(tmp_path))
    assert found.shape.logits_via_embedding == scaled
    assert found.shape.relative_bias_per_layer == (kind == "umt5")


@pytest.fixture(scope="module")
def scalable(tmp_path_factory):
    """hf_mt5 as a checkpoint of T5X's scalable networks."""
    place = tmp_path_factory.mktemp("scalable") / "checkpoint_1"
    words = [str(GOLDEN / "hf_mt5"), str(place), "--to", "t5x", "--scanned"]
    assert main.main(["convert", *words]) == 0
    return place


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("stored", ["hf", "scalable"])
def test_bases_of_others_fill_every_network(scalable, stored, scanned, per_layer):
    """As a run reads them: onto a mesh, in the network's layout and the dtype asked for."""
    config = config_of("hf_mt5").replace(scan_layers=scanned, relative_bias_per_layer=per_layer)
    model = lab.model_of(config)
    shapes, axes = model.param_shapes(), model.param_axes()
    wanted = state.flatten(state.laid_out(shapes, axes, Partitioner(num_partitions=2), "bfloat16"))
    reference = str(scalable if stored == "scalable" else GOLDEN / "hf_mt5")
    weights = Weights(model)
    weights.check(reference, {}, "base")
    found = weights.read(reference, wanted, seed=0)
    assert set(found.origins.values()) == {f"the base {reference}"}
    layout = Layout(scanned=scanned, bias_per_layer=per_layer)
    expected = flatten_dict(read_params(GOLDEN / "hf_mt5", layout=layout), sep="/")
    assert found.arrays.keys() == expected.keys() == wanted.keys()
    for path, array in expected.items():
        assert found.arrays[path].sharding == wanted[path].sharding, path
        np.testing.assert_array_equal(
            np.asarray(found.arrays[path]), array.astype("bfloat16"), err_msg=path
        )


def test_a_run_on_another_model_is_refused_before_it_starts():
    weights = Weights(lab.model_of(config_of("hf_mt5").replace(vocab_size=512)))
    with pytest.raises(UserError) as error:
        weights.check(str(GOLDEN / "hf_mt5"), {}, "base")
    assert "NUM_EMBEDDINGS is 512, there 384" in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'mt5_xl"):
        weights.check("mt5_xll", {}, "base")
