"""LoRA adapters in peft's files, by their names and numbers; `make test-hf` asks peft itself."""

import dataclasses
import json

import numpy as np
import pytest
from engine_helpers import tiny_config

from promot_t5x.checkpoints.adapters import open_adapter
from promot_t5x.checkpoints.formats import peft_lora, safetensors
from promot_t5x.errors import UserError
from promot_t5x.network.lora import LoRA, merged

CONFIG = tiny_config(vocab_size=64)
QUERY = "base_model.model.encoder.block.1.layer.0.SelfAttention.q"
VALUE = "base_model.model.encoder.block.0.layer.0.SelfAttention.v"
OUT = "base_model.model.decoder.block.1.layer.2.DenseReluDense.wo"


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


# peft's layout: A is [rank, in], B is [out, rank].
TENSORS = {
    f"{QUERY}.lora_A.weight": draw(2, 32),
    f"{QUERY}.lora_B.weight": draw(32, 2),
    f"{OUT}.lora_A.weight": draw(2, 64),
    f"{OUT}.lora_B.weight": draw(32, 2),
}
SAID = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "lora_dropout": 0.1, "bias": "none"}


def write(directory, tensors=TENSORS, **said):
    directory.mkdir(exist_ok=True)
    writer = safetensors.FileWriter(directory / "adapter_model.safetensors", tensors)
    for name, array in tensors.items():
        writer.add(name, array)
    writer.close()
    (directory / "adapter_config.json").write_text(json.dumps({**SAID, **said}))
    return directory


def delta(found, layer):
    """What an adapter adds to a layer's kernel of the encoder's queries."""
    a, b = (found.arrays[f"encoder/layers_{layer}/attention/query/lora_{part}"] for part in "ab")
    return merged(np.zeros((32, 32), np.float32), a, b, found.lora.scale)


def test_an_adapter_of_peft_is_read_into_the_layers_that_it_is_of(tmp_path):
    found = open_adapter(write(tmp_path / "adapter"), CONFIG)
    assert (found.lora.rank, found.lora.scale, found.lora.dropout_rate) == (2, 1.5, 0.1)
    expected = 1.5 * (TENSORS[f"{QUERY}.lora_B.weight"] @ TENSORS[f"{QUERY}.lora_A.weight"]).T
    np.testing.assert_allclose(delta(found, 1), expected, rtol=1e-5, atol=1e-6)
    assert not delta(found, 0).any()  # the layer that it leaves alone
    scanned = open_adapter(tmp_path / "adapter", dataclasses.replace(CONFIG, scan_layers=True))
    stacked = scanned.arrays["encoder/encoder/attention/query/lora_a"]
    assert stacked.shape == (32, 2, 2)
    np.testing.assert_array_equal(stacked[:, 1], TENSORS[f"{QUERY}.lora_A.weight"].T)


def test_ranks_and_alphas_of_modules_become_one_scale(tmp_path):
    more = {f"{VALUE}.lora_A.weight": draw(5, 32), f"{VALUE}.lora_B.weight": draw(32, 5)}
    said = {"rank_pattern": {"v": 5}, "alpha_pattern": {"SelfAttention.q": 7}, "use_rslora": True}
    found = open_adapter(write(tmp_path / "adapter", {**TENSORS, **more}, **said), CONFIG)
    assert found.lora.rank == 5
    expected = (TENSORS[f"{QUERY}.lora_B.weight"] @ TENSORS[f"{QUERY}.lora_A.weight"]).T
    np.testing.assert_allclose(delta(found, 1), 7 / np.sqrt(2) * expected, rtol=1e-4, atol=1e-5)


def test_what_is_written_is_pefts(tmp_path):
    found = open_adapter(write(tmp_path / "adapter"), CONFIG)
    kept = {p: a for p, a in found.arrays.items() if "layers_1" in p}
    peft_lora.save(tmp_path / "again", found.lora, kept, config=CONFIG, base_model="t5")
    tensors = safetensors.open_file(tmp_path / "again" / "adapter_model.safetensors")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor[...].tobytes() == TENSORS[name].tobytes(), name
    said = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["lora_dropout"]) == (2, 3.0, 0.1)
    assert said["target_modules"] == [
        "decoder.block.1.layer.2.DenseReluDense.wo",
        "encoder.block.1.layer.0.SelfAttention.q",
    ]
    with pytest.raises(UserError, match="holds an adapter already"):
        peft_lora.save(tmp_path / "again", LoRA(), kept, config=CONFIG)


@pytest.mark.parametrize(
    ("tensors", "said", "message"),
    [
        (TENSORS, {"peft_type": "PROMPT_TUNING"}, "only LORA adapters are adapters of kernels"),
        (TENSORS, {"use_dora": True}, "has use_dora = True"),
        (TENSORS, {"bias": "all"}, "has bias = 'all'"),
        (TENSORS, {"modules_to_save": ["lm_head"]}, "has modules_to_save"),
        ({**TENSORS, "base_model.model.x.lora_A.weight": draw(2, 2)}, {}, "which belong to no"),
        ({**TENSORS, f"{OUT}.lora_A.weight": draw(2, 48)}, {}, "does not fit the model"),
        ({**TENSORS, f"{OUT}.lora_B.weight": draw(32, 2) * np.nan}, {}, "that are not finite"),
    ],
)
def test_what_has_no_counterpart_here_is_refused(tmp_path, tensors, said, message):
    with pytest.raises(UserError, match=message):
        open_adapter(write(tmp_path / "adapter", tensors, **said), CONFIG)
