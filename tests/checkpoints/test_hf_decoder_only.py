"""Decoder-only models of `transformers` through the command line, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params

from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import hf_decoder_only, peft_lora, safetensors
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import main
from promot_t5x.errors import UserError
from promot_t5x.network import T5Config
from promot_t5x.network.gemma import DecoderOnlyConfig
from promot_t5x.network.lora import LoRA
from promot_t5x.network.parameters import param_shapes

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_decoder_only"
PATH = epath.Path("config.json")


def tensors(directory):
    found = safetensors.open_file(epath.Path(directory) / "model.safetensors")
    return {name: found[name][...] for name in found}


def settings(directory):
    return json.loads((Path(directory) / "config.json").read_text())


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN / "gemma2", tmp_path / "gemma2"))


@pytest.mark.parametrize("kind", hf_decoder_only.MODEL_TYPES)
def test_there_and_back_is_the_same(kind, tmp_path, capsys):
    """Hugging Face -> this project -> Hugging Face: tensors, shape and settings."""
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main.main(["convert", str(GOLDEN / kind), str(ours), "--to", "promot"]) == 0
    assert main.main(["convert", str(ours), str(back), "--to", "hf"]) == 0
    first, again = tensors(GOLDEN / kind), tensors(back)
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert open_stored(back).shape == open_stored(GOLDEN / kind).shape
    theirs, written = settings(GOLDEN / kind), settings(back)
    assert not {name for name, value in theirs.items() if written.get(name, value) != value}
    capsys.readouterr()


def test_the_shape_as_macros(capsys):
    assert main.main(["convert", str(GOLDEN / "gemma3_text"), "--gin"]) == 0
    printed = capsys.readouterr().out
    assert "NUM_ENCODER_LAYERS" not in printed
    assert "NUM_DECODER_LAYERS = 4\n" in printed
    assert "QK_NORM = True\nQKV_BIAS = False\nSLIDING_ROPE_THETA = 500.0\nROPE_FACTOR = 4.0\n" in (
        printed
    )


# What released files of transformers 4 say, without what only later versions write.
GEMMA_2 = {
    "model_type": "gemma2",
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 4096,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
}
GEMMA_3 = {
    **{name: value for name, value in GEMMA_2.items() if name != "hidden_act"},
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000,
    "rope_local_base_freq": 10000,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}


def test_files_of_transformers_4():
    second, third = (hf_decoder_only.read(PATH, raw) for raw in (GEMMA_2, GEMMA_3))
    assert (second.full_attention_period, second.sliding_window) == (2, 4096)
    assert (second.attention_soft_cap, second.logits_soft_cap) == (50.0, 30.0)
    assert (second.rope_theta, second.sliding_rope_theta) == (10000.0, None)
    assert second.logits_via_embedding
    assert (third.full_attention_period, third.attention_soft_cap) == (6, 0.0)
    assert (third.rope_theta, third.rope_factor, third.sliding_rope_theta) == (1e6, 8.0, 1e4)
    llama = {n: v for n, v in GEMMA_2.items() if n not in ("hidden_activation", "head_dim")}
    read = hf_decoder_only.read(PATH, {**llama, "model_type": "llama", "hidden_act": "silu"})
    assert (read.head_dim, read.query_scale, read.sliding_window) == (288, 288, 0)
    assert not read.logits_via_embedding


def test_scanned_bases_hold_the_same_numbers():
    config = open_stored(GOLDEN / "qwen2").shape.config()
    plain = open_checkpoint(GOLDEN / "qwen2", config).read_tree()
    opened = open_checkpoint(GOLDEN / "qwen2", config.replace(scan_layers=True))
    wanted = flatten_dict(param_shapes(config.replace(scan_layers=True)), sep="/")
    scanned = flatten_dict(scan_params(plain), sep="/")
    for path, array in opened.read(wanted).items():
        np.testing.assert_array_equal(array, scanned[path], err_msg=path)


def test_a_tied_head_of_its_own_is_refused(copy):
    stored = tensors(copy)
    stored[hf_decoder_only.HEAD] = stored[hf_decoder_only.TABLE] + 1
    writer = safetensors.FileWriter(epath.Path(copy) / "model.safetensors", stored)
    for name, array in stored.items():
        writer.add(name, array)
    writer.close()
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        open_stored(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"hidden_activation": "silu"}, "activation is 'silu'; here a gemma2 has gelu_pytorch"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "positions are scaled by"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10.0}},
            "scaled in layers that slide",
        ),
        ({"attention_bias": True}, "attention_bias is True; this network has none of it"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"head_dim": 4}, "which is not what config.json says"),
        ({"model_type": "gemma3"}, "is of a model of type 'gemma3'; those of t5, mt5, umt5"),
    ],
)
def test_another_network_is_refused(copy, changes, message):
    (copy / "config.json").write_text(json.dumps({**settings(copy), **changes}))
    with pytest.raises(UserError, match=message):
        open_stored(copy)


def test_a_cap_that_transformers_ignores_is_refused():
    with pytest.raises(UserError, match="attn_logit_softcapping is 50.0, which transformers does"):
        hf_decoder_only.read(PATH, {**GEMMA_3, "attn_logit_softcapping": 50.0})


def test_a_network_that_transformers_has_not_is_refused():
    shape = open_stored(GOLDEN / "llama").shape
    with pytest.raises(UserError, match="no model like this one; llama comes nearest"):
        hf_decoder_only.write(dataclasses.replace(shape, logits_soft_cap=30.0), "float32", {})


def test_a_model_of_another_family_is_refused():
    with pytest.raises(UserError, match="it is a decoder-only model, and the configuration a T5"):
        open_checkpoint(GOLDEN / "gemma", T5Config(vocab_size=48))
    config = open_stored(GOLDEN / "gemma3_text").shape.config()
    with pytest.raises(UserError, match=r"ROPE_FACTOR is 1.0, there 4.0"):
        open_checkpoint(GOLDEN / "gemma3_text", config.replace(rope_factor=1.0))


def test_t5x_has_no_such_network(tmp_path, capsys):
    source = str(GOLDEN / "gemma")
    assert main.main(["convert", source, str(tmp_path / "x"), "--to", "t5x"]) == 2
    assert "T5X has no decoder-only model" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_adapters_have_the_names_of_causal_models(tmp_path):
    config = open_stored(GOLDEN / "qwen3").shape.config()
    assert isinstance(config, DecoderOnlyConfig)
    lora = LoRA(rank=2, kernels=[".*attention/query/kernel"])
    adapted = flatten_dict(param_shapes(config.replace(lora=lora)), sep="/")
    arrays = {p: np.ones(leaf.shape, np.float32) for p, leaf in adapted.items() if "lora" in p}
    peft_lora.save(tmp_path, lora, arrays, config=config)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert said["task_type"] == "CAUSAL_LM"
    assert said["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    _, again = peft_lora.load(epath.Path(tmp_path), config)
    assert again.keys() == arrays.keys()
