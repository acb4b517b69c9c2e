"""T5Gemma of `transformers` through the command line, both ways, and what is refused and why."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params

from promot_t5x.checkpoints.finding import open_stored
from promot_t5x.checkpoints.formats import hf_t5gemma, safetensors
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import main
from promot_t5x.errors import UserError
from promot_t5x.network import T5Config
from promot_t5x.network.parameters import param_shapes

GOLDEN = Path(__file__).parents[1] / "golden" / "hf_t5gemma"


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN, tmp_path / "t5gemma"))


def tensors(directory):
    found = safetensors.open_file(epath.Path(directory) / "model.safetensors")
    return {name: found[name][...] for name in found}


def edit(directory, side, **changes):
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    raw[side] |= changes
    path.write_text(json.dumps(raw))


def test_there_and_back_is_the_same_bytes(tmp_path, capsys):
    """Hugging Face -> this project -> Hugging Face: tensors, shape and special tokens."""
    assert main.main(["convert", str(GOLDEN), str(tmp_path / "ours"), "--to", "promot"]) == 0
    assert main.main(["convert", str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "hf"]) == 0
    first, again = tensors(GOLDEN), tensors(tmp_path / "back")
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)
    assert open_stored(tmp_path / "back").shape == open_stored(GOLDEN).shape
    theirs, ours = (
        json.loads((d / "config.json").read_text()) for d in (GOLDEN, tmp_path / "back")
    )
    for side in ("encoder", "decoder"):
        different = {k for k, v in theirs[side].items() if ours[side].get(k, v) != v}
        assert not different
    ids = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    capsys.readouterr()
    assert main.main(["convert", str(GOLDEN), "--gin"]) == 0
    printed = capsys.readouterr().out
    assert "NUM_KV_HEADS = 2\nDECODER_EMBED_DIM = 20\n" in printed
    assert "SLIDING_WINDOW = 5\n" in printed


def test_scanned_bases_hold_the_same_numbers():
    config = open_stored(GOLDEN).shape.config()
    plain = open_checkpoint(GOLDEN, config).read_tree()
    opened = open_checkpoint(GOLDEN, config.replace(scan_layers=True))
    wanted = flatten_dict(param_shapes(config.replace(scan_layers=True)), sep="/")
    scanned = flatten_dict(scan_params(plain), sep="/")
    for path, array in opened.read(wanted).items():
        np.testing.assert_array_equal(array, scanned[path], err_msg=path)


def test_a_head_of_its_own_is_refused(copy):
    stored = tensors(copy)
    head = stored["model.decoder.embed_tokens.weight"] + 1
    stored[hf_t5gemma.HEADS[0]] = head
    writer = safetensors.FileWriter(epath.Path(copy) / "model.safetensors", stored)
    for name, array in stored.items():
        writer.add(name, array)
    writer.close()
    with pytest.raises(
        UserError, match=r"lm_head.out_proj.weight differs from model.decoder.embed"
    ):
        open_stored(copy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sliding_window": 7}, "sliding_window is 5 in the encoder and 7 in the decoder"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "decoder.layer_types is"),
        ({"hidden_activation": "silu"}, "decoder.hidden_activation is 'silu'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}, "positions are scaled by"),
        ({"head_dim": 4}, "which is not what config.json says"),
    ],
)
def test_another_network_is_refused(copy, changes, message):
    edit(copy, "decoder", **changes)
    with pytest.raises(UserError, match=message):
        open_stored(copy)


def test_a_model_of_another_family_is_refused():
    with pytest.raises(UserError, match="it is a T5Gemma, and the configuration a T5Config"):
        open_checkpoint(GOLDEN, T5Config(vocab_size=96))
    config = open_stored(GOLDEN).shape.config()
    with pytest.raises(UserError, match="QUERY_SCALE is 256, there 6"):
        open_checkpoint(GOLDEN, config.replace(query_scale=256))


def test_t5x_has_no_such_network(tmp_path, capsys):
    assert main.main(["convert", str(GOLDEN), str(tmp_path / "x"), "--to", "t5x"]) == 2
    assert "T5X has no T5Gemma" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
