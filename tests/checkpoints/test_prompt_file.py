"""Prompt files: what prompt-tuning reads and writes, and the self-describing form."""

import json

import ml_dtypes
import numpy as np
import pytest

from promot_t5x.checkpoints.formats import peft
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.checkpoints.prompt_file import PromptInfo, load_prompt, save_prompt
from promot_t5x.errors import UserError

INFO = PromptInfo(
    tasks=("rte", "cb"),
    base_hash="ab12",
    base_path="/bases/t5",
    initialiser="sampled vocabulary",
    config="TRAIN_STEPS = 5\n# naïve",
    step=5,
)


def make(tasks=2, length=3, embed=4):
    return np.random.default_rng(0).standard_normal((tasks, length, embed), np.float32)


def test_described_file_round_trips(tmp_path):
    path = tmp_path / "new" / "prompt.npz"
    assert save_prompt(path, make(), INFO) == (path,)
    array, info = load_prompt(path, shape=(2, 3, 4))
    assert array.dtype == np.float32
    assert array.tobytes() == make().tobytes()
    assert info == INFO
    assert [p.name for p in path.parent.iterdir()] == ["prompt.npz"]


def test_a_file_of_version_0_1_is_read(tmp_path):
    """The fields are spelled out here: a name that changes would make older files unreadable."""
    fields = {
        "format": "promot_t5x prompt 1", "length": 3, "tasks": ["rte", "cb"], "base_hash": "ab12",
        "base_path": "/bases/t5", "initialiser": "sampled vocabulary",
        "config": "TRAIN_STEPS = 5\n# naïve", "step": 5,
    }  # fmt: skip
    np.savez(tmp_path / "prompt.npz", prompt=make(), info=np.array(json.dumps(fields)))
    array, info = load_prompt(tmp_path / "prompt.npz")
    assert array.tobytes() == make().tobytes()
    assert info == INFO
    with np.load(save_prompt(tmp_path / "again.npz", make(), INFO)[0]) as written:
        assert json.loads(str(written["info"])) == fields


def test_one_prompt_as_prompt_tuning_writes_it(tmp_path):
    path = tmp_path / "prompt.npy"
    save_prompt(path, np.asfortranarray(make(1)), PromptInfo(tasks=("rte",)))
    stored = np.load(path)
    assert stored.shape == (3, 4)
    assert stored.dtype == np.float32
    assert stored.flags.c_contiguous
    array, info = load_prompt(str(path))
    assert array.tobytes() == make(1).tobytes()
    assert info == PromptInfo()


def test_several_prompts_are_one_file_each(tmp_path):
    paths = save_prompt(tmp_path / "p.npy", make(), INFO)
    assert [p.name for p in paths] == ["p.rte.npy", "p.cb.npy"]
    np.testing.assert_array_equal(np.load(paths[1]), make()[1])
    np.testing.assert_array_equal(load_prompt(list(paths))[0], make())


def test_joined_files_keep_what_they_say_alike(tmp_path):
    for i, task in enumerate(INFO.tasks):
        info = PromptInfo(tasks=(task,), base_hash="ab12", step=i)
        save_prompt(tmp_path / f"{task}.npz", make()[i : i + 1], info)
    array, info = load_prompt([tmp_path / "rte.npz", tmp_path / "cb.npz"])
    np.testing.assert_array_equal(array, make())
    assert info == PromptInfo(tasks=("rte", "cb"), base_hash="ab12")
    save_prompt(tmp_path / "long.npz", make(1, 5), PromptInfo(tasks=("boolq",)))
    with pytest.raises(UserError, match=r"differ in shape.*\[3, 4\].*\[5, 4\]"):
        load_prompt([tmp_path / "rte.npz", tmp_path / "long.npz"])


def test_prompt_tunings_own_dump_has_no_suffix(tmp_path):
    path = tmp_path / "encoder.prompt.prompt.prompt"
    with path.open("wb") as file:
        np.save(file, make()[0])
    np.testing.assert_array_equal(load_prompt(path)[0], make()[:1])


def test_wrong_shape_names_both(tmp_path):
    save_prompt(tmp_path / "p.npz", make(), INFO)
    with pytest.raises(UserError, match=r"\[2, 3, 4\].*needs \[any, 100, 4\]"):
        load_prompt(tmp_path / "p.npz", shape=(None, 100, 4))


def test_what_is_no_prompt(tmp_path):
    with pytest.raises(UserError, match="no prompt file"):
        load_prompt(tmp_path / "gone.npz")
    file = tmp_path / "p.npz"
    save_prompt(file, make(), INFO)
    whole = file.read_bytes()
    for contents in (b"", b"text", whole[:-60], b"\x93NUMPY\x01\x00", b"PK\x03\x04"):
        file.write_bytes(contents)
        with pytest.raises(UserError, match="is not a prompt file"):
            load_prompt(file)
    np.savez(file, weights=make())
    with pytest.raises(UserError, match="is not a prompt file"):
        load_prompt(file)
    np.save(tmp_path / "ints.npy", np.arange(6).reshape(2, 3))
    with pytest.raises(UserError, match=r"int64 \[2, 3\]"):
        load_prompt(tmp_path / "ints.npy")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="2 prompts, but the tasks"):
        save_prompt(tmp_path / "p.npz", make(), PromptInfo(tasks=("rte",)))
    with pytest.raises(UserError, match="ends in .npz"):
        save_prompt(tmp_path / "p.bin", make(), INFO)
    with pytest.raises(UserError, match="not all different"):
        save_prompt(tmp_path / "p.npy", make(), PromptInfo(tasks=("rte", "rte")))
    assert list(tmp_path.iterdir()) == []


def test_a_bfloat16_file_of_prompt_tunings(tmp_path):
    path = tmp_path / "encoder.prompt.prompt.prompt"
    vectors = np.arange(12.0).reshape(3, 4)
    with path.open("wb") as file:
        np.save(file, vectors.astype(ml_dtypes.bfloat16))
    loaded, _ = load_prompt(path)
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, vectors[None])


def test_a_prompt_with_numbers_that_are_not_finite(tmp_path):
    vectors = make()
    vectors[1, 2, 3] = np.inf
    save_prompt(tmp_path / "p.npz", vectors, INFO)
    with pytest.raises(UserError, match="p.npz holds numbers that are not finite"):
        load_prompt(tmp_path / "p.npz")


def test_an_adapter_of_peft_is_a_prompt(tmp_path):
    (place,) = peft.save_adapters(tmp_path / "adapter", make(1), ["rte"])
    for path in (place, place / "adapter_model.safetensors"):
        array, info = load_prompt(path)
        np.testing.assert_array_equal(array, make(1))
        assert info == PromptInfo()
    config = json.loads((place / "adapter_config.json").read_text())
    # peft's default: as many vectors again for the decoder, which it does not use.
    changed = {**config, "num_virtual_tokens": 2, "num_transformer_submodules": 2}
    (place / "adapter_config.json").write_text(json.dumps(changed))
    np.testing.assert_array_equal(load_prompt(place)[0], make(1)[:, :2])
    (place / "adapter_config.json").write_text(json.dumps({**config, "num_virtual_tokens": 9}))
    with pytest.raises(UserError, match=r"prompt_embeddings is \[3, 4\].*num_virtual_tokens = 9"):
        load_prompt(place)
    (place / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(UserError, match="an adapter of type 'LORA'"):
        load_prompt(place)
    with pytest.raises(UserError, match="is an adapter of peft, not a model"):
        open_checkpoint(place)
