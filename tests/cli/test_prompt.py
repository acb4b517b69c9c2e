"""`promot-t5x prompt`: what a prompt file holds, and its other forms."""

import json
from pathlib import Path

import numpy as np
import pytest
import run_helpers
from etils import epath

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats import safetensors
from promot_t5x.checkpoints.prompt_file import PromptInfo
from promot_t5x.cli import prompt_show

INFO = PromptInfo(
    tasks=("a", "b"), base_hash="ab12", base_path="/bases/x", config="X = 1\nY = 2\n", step=30
)


@pytest.fixture
def table():
    """An embedding of 50 words with 8 numbers each."""
    return np.random.default_rng(0).standard_normal((50, 8), np.float32)


@pytest.fixture
def prompts(table):
    """Two prompts: words 3, 7, 11 and words 2, 4, 6, three times as long."""
    return 3 * table[[[3, 7, 11], [2, 4, 6]]]


@pytest.fixture
def file(tmp_path, prompts):
    path = tmp_path / "prompt.npz"
    prompt_file.save_prompt(path, prompts, INFO)
    return path


def test_a_file_says_where_it_comes_from(file, prompts):
    out = run_helpers.succeed(["prompt", "show", str(file)])
    assert f"{file}: prompts 2, length 3, embedding 8" in out
    for part in ("base_path: /bases/x", "base_hash: ab12", "step: 30", "config: 2 lines"):
        assert part in out
    assert "Y = 2" not in out
    assert "Y = 2" in run_helpers.succeed(["prompt", "show", str(file), "--config"])
    norms = np.linalg.norm(prompts[1], axis=-1)
    assert f"b: norms of the vectors {norms.mean():.4g} ± {norms.std():.3g}" in out


def test_vectors_are_placed_among_the_words_of_a_base(file, table, tmp_path):
    base = tmp_path / "checkpoint_0"
    run_helpers.write_t5x_base(base, {"token_embedder": {"embedding": table}})
    words = ["prompt", "show", str(file), "--nearest=2"]
    out = run_helpers.succeed([*words, f"--base={base}"])
    rows = [line.split() for line in out.splitlines() if "#" in line]
    assert [row[:3] for row in rows] == [
        [str(position), f"#{word}", "1.00"]
        for numbers in ((3, 7, 11), (2, 4, 6))
        for position, word in enumerate(numbers)
    ]
    assert all(len(row) == 5 for row in rows)
    assert f"norms of the base's 50 embeddings: {np.linalg.norm(table, axis=-1).mean():.4g}" in out
    run_helpers.Lab(tmp_path)
    model = [f"--gin_search_paths={tmp_path}", "--gin_file=bytes.gin"]
    spoken = run_helpers.succeed([*words, f"--base={base}", *model])
    assert "#" not in spoken

    run_helpers.write_t5x_base(base, {"token_embedder": {"embedding": table[:, :4]}})
    done = run_helpers.here([*words, f"--base={base}"])
    assert done.status == 2
    assert "not the model that they were trained with" in done.err


def test_bytes_that_are_no_character_have_their_number(tmp_path):
    """Ids of the byte vocabulary: 3 special ones, 256 bytes, sentinels."""
    ids = [0, 1, 2, 3 + ord("A"), 3 + ord(" "), 3 + 0xC3, 3 + 0xFF, 383, 384]
    table = np.eye(390, dtype=np.float32)
    file, base = tmp_path / "p.npz", tmp_path / "checkpoint_0"
    prompt_file.save_prompt(file, table[[ids]], PromptInfo(tasks=("a",)))
    run_helpers.write_t5x_base(base, {"token_embedder": {"embedding": table}})
    run_helpers.Lab(tmp_path)
    model = [f"--gin_search_paths={tmp_path}", "--gin_file=bytes.gin"]
    out = run_helpers.succeed(
        ["prompt", "show", str(file), "--nearest=1", f"--base={base}", *model]
    )
    words = [line.split(maxsplit=1)[1] for line in out.splitlines()[-len(ids) :]]
    assert [word.removesuffix(" 1.00") for word in words] == [
        "<pad>", "</s>", "<unk>", "'A'", "' '", "<0xC3>", "<0xFF>", "'<extra_id_0>'", "#384",
    ]  # fmt: skip


def test_an_exported_adapter_is_imported_again(file, prompts, tmp_path):
    words = ["prompt", "export", str(file), str(tmp_path / "adapters"), "--peft"]
    places = run_helpers.succeed(words).split()
    back = tmp_path / "back.npz"
    run_helpers.succeed(["prompt", "import", *places, str(back), "--task=a", "--task=c"])
    array, info = prompt_file.load_prompt(back)
    np.testing.assert_array_equal(array, prompts)
    assert info == PromptInfo(tasks=("a", "c"))


def test_an_import_with_numbers_that_are_not_finite_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([[1.0, np.nan]], np.float32))
    done = run_helpers.here(
        ["prompt", "import", str(tmp_path / "p.npy"), str(tmp_path / "q.npz"), "--task=a"]
    )
    assert done.status == 2
    assert "p.npy holds numbers that are not finite" in done.err
    assert not (tmp_path / "q.npz").exists()


def test_nearest_words_are_found_a_part_of_the_table_at_a_time(table, prompts, monkeypatch):
    whole = prompt_show.nearest(prompts[0], table, 4)
    monkeypatch.setattr(prompt_show, "_ROWS", 7)
    parts = prompt_show.nearest(prompts[0], table, 4)
    np.testing.assert_array_equal(parts[0], whole[0])
    np.testing.assert_allclose(parts[1], whole[1], rtol=1e-6)


def test_export_and_import_are_inverse(file, prompts, tmp_path):
    out = run_helpers.succeed(["prompt", "export", str(file), str(tmp_path / "p.npy")])
    assert out.split() == [str(tmp_path / f"p.{task}.npy") for task in "ab"]
    np.testing.assert_array_equal(np.load(tmp_path / "p.b.npy"), prompts[1])
    back = tmp_path / "back.npz"
    words = ["prompt", "import", *out.split(), str(back), "--base=/bases/y"]
    run_helpers.succeed([*words, "--task=a", "--task=c"])
    array, info = prompt_file.load_prompt(back)
    np.testing.assert_array_equal(array, prompts)
    assert info == PromptInfo(tasks=("a", "c"), base_path="/bases/y")


def test_adapters_of_peft(file, prompts, tmp_path):
    words = ["prompt", "export", str(file), str(tmp_path / "adapters"), "--peft"]
    out = run_helpers.succeed([*words, "--base=google/mt5-small"])
    assert out.split() == [str(tmp_path / "adapters" / task) for task in "ab"]
    for place, vectors in zip(out.split(), prompts, strict=True):
        told = json.loads((Path(place) / "adapter_config.json").read_text())
        assert told["base_model_name_or_path"] == "google/mt5-small"
        assert (told["num_virtual_tokens"], told["token_dim"]) == vectors.shape
        found = safetensors.open_file(epath.Path(place) / "adapter_model.safetensors")
        np.testing.assert_array_equal(found["prompt_embeddings"][...], vectors)
    done = run_helpers.here(words)
    assert done.status == 2
    assert "holds an adapter already" in done.err
    done = run_helpers.here(["prompt", "export", str(file), str(tmp_path / "p.npy"), "--base=x"])
    assert done.status == 2
    assert "add --peft" in done.err


def test_what_is_missing_is_said(file, tmp_path):
    plain = run_helpers.succeed(["prompt", "export", str(file), str(tmp_path / "p.npy")]).split()[0]
    done = run_helpers.here(["prompt", "import", plain, str(tmp_path / "q.npz")])
    assert done.status == 2
    assert "name one task for each" in done.err
    done = run_helpers.here(["prompt", "import", plain, str(tmp_path / "q.npy"), "--task=a"])
    assert done.status == 2
    assert ".npz" in done.err
    assert run_helpers.here(["prompt", "show", str(tmp_path / "none.npz")]).status == 2
