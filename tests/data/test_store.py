"""Stores: tokens as SeqIO makes them, the cache on disk, and kills and races around it."""

import json
import multiprocessing
import os

import numpy as np
import pytest

from promot_t5x.data import cache_folder, example_store
from promot_t5x.data import store as store_module
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.data.store import StderrProgress, TokenizingProgress, open_store
from promot_t5x.errors import UserError


@pytest.fixture(scope="module")
def vocabulary():
    import seqio

    return seqio.ByteVocabulary(extra_ids=5)


def task(vocabulary, name):
    return resolve_tasks(name, vocabulary, module="data_tasks")[0]


def contents(store):
    return [tuple(side.tolist() for side in store.example(i)) for i in range(len(store))]


def test_tokens_are_those_of_seqio(vocabulary):
    cubes = task(vocabulary, "cubes")
    store = open_store(cubes, "train")
    dataset = cubes.task.get_dataset(None, split="train", shuffle=False).as_numpy_iterator()
    expected = [(row["inputs"].tolist(), row["targets"].tolist()) for row in dataset]
    assert contents(store) == expected
    assert len(store) == 30
    assert vocabulary.decode(expected[7][0][:-1]) == "say 343"
    assert expected[7][0][-1] == 1
    lengths = store.lengths(np.array([7, 3]))["inputs"].tolist()
    assert lengths == [len(expected[7][0]), len(expected[3][0])]
    assert store.max_token == max(max(map(max, row)) for row in expected)
    assert store.eos_ids == {"inputs": 1, "targets": 1}
    with pytest.raises(IndexError, match="cubes/train has 30 examples"):
        store.example(30)


def test_a_store_comes_back_from_disk_without_tokenizing(vocabulary, tmp_path, monkeypatch):
    made = open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path)
    monkeypatch.setattr(store_module, "tokenized", None)
    found = open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path)
    assert contents(found) == contents(made)
    assert found.content_hash == made.content_hash
    assert isinstance(found.tokens["inputs"], np.memmap)
    assert len(list(tmp_path.iterdir())) == 1


def test_whom_a_store_is_open_to_is_up_to_the_umask(vocabulary, tmp_path):
    """A file system that groups share needs 0o002, a private one 0o077."""
    for umask, mode in [(0o002, 0o775), (0o077, 0o700)]:
        before = os.umask(umask)
        try:
            open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path / str(mode))
        finally:
            os.umask(before)
        (folder,) = (tmp_path / str(mode)).iterdir()
        assert folder.stat().st_mode & 0o777 == mode
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode & 0o666}


def test_task_names_make_harmless_file_names(vocabulary, tmp_path):
    open_store(task(vocabulary, "cubes:odd#name"), "train", cache_dir=tmp_path)
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("cubes_odd_name-train-")


def test_what_defines_the_tokens_decides_the_file(vocabulary, tmp_path, monkeypatch):
    import data_tasks

    def folders():
        return {path.name for path in tmp_path.iterdir()}

    first = open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path)
    open_store(task(vocabulary, "cubes"), "validation", cache_dir=tmp_path)
    open_store(task(vocabulary, "cubes_again"), "train", cache_dir=tmp_path)
    assert len(folders()) == 3
    monkeypatch.setattr(data_tasks, "TEMPLATE", "tell {}")
    changed = open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path)
    assert len(folders()) == 4
    assert contents(changed) != contents(first)
    monkeypatch.setattr(data_tasks, "TEMPLATE", "say {}")
    again = open_store(task(vocabulary, "cubes"), "train", cache_dir=tmp_path)
    assert len(folders()) == 4
    assert contents(again) == contents(first)


def test_a_changed_data_file_is_read_anew(vocabulary, tmp_path):
    import seqio

    lines = tmp_path / "lines.txt"
    lines.write_text("one\ntwo\n")
    feature = seqio.Feature(vocabulary=vocabulary)
    seqio.TaskRegistry.add(
        "lines",
        source=seqio.TextLineDataSource({"train": str(lines)}),
        preprocessors=[both, seqio.preprocessors.tokenize],
        output_features={"inputs": feature, "targets": feature},
    )
    assert len(open_store(task(vocabulary, "lines"), "train", cache_dir=tmp_path / "c")) == 2
    lines.write_text("one\ntwo\nthree\n")
    assert len(open_store(task(vocabulary, "lines"), "train", cache_dir=tmp_path / "c")) == 3


def both(dataset):
    return dataset.map(lambda line: {"inputs": line, "targets": line})


def test_random_preprocessors_give_every_host_the_same(vocabulary):
    stores = [open_store(task(vocabulary, "cubes_noisy"), "train") for _ in range(2)]
    assert contents(stores[0]) == contents(stores[1])
    assert len({tuple(inputs[:3]) for inputs, _ in contents(stores[0])}) > 20


def test_a_task_that_asks_for_lengths_gets_them_and_is_kept_apart(vocabulary, tmp_path):
    cut = task(vocabulary, "cubes_cut")
    for room, folders in ((4, 1), (6, 2)):
        lengths = {"inputs": room, "targets": 8}
        store = open_store(cut, "train", cache_dir=tmp_path, text_lengths=lengths)
        # The EOS is on top: trimming to the room, and counting it, is left to the batches.
        assert store.lengths(store.sample)["inputs"].max() == room + 1
        assert len(list(tmp_path.iterdir())) == folders
    with pytest.raises(UserError, match="'cubes_cut' asks for `sequence_length`"):
        open_store(cut, "train", cache_dir=tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_a_damaged_store_is_made_anew(vocabulary, tmp_path, damage, capsys):
    cubes = task(vocabulary, "cubes")
    expected = contents(open_store(cubes, "train", cache_dir=tmp_path))
    (folder,) = tmp_path.iterdir()
    if damage == "truncate":
        file = folder / "inputs.npy"
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "remove":
        (folder / "targets_offsets.npy").unlink()
    else:
        (folder / "store.json").write_text("{")
    assert contents(open_store(cubes, "train", cache_dir=tmp_path)) == expected
    assert "damaged and is made anew" in capsys.readouterr().err
    assert json.loads((folder / "store.json").read_text())["examples"] == 30
    assert len(list(tmp_path.iterdir())) == 1


def test_a_build_that_dies_leaves_no_store(vocabulary, tmp_path, monkeypatch):
    cubes = task(vocabulary, "cubes")

    def dies(path, array):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache_folder, "write_array", dies)
        with pytest.raises(KeyboardInterrupt):
            open_store(cubes, "train", cache_dir=tmp_path)
    assert all(path.name.startswith(".building-") for path in tmp_path.iterdir())
    assert len(open_store(cubes, "train", cache_dir=tmp_path)) == 30
    # What the dead build left is swept away a day later.
    monkeypatch.setattr(cache_folder, "_ABANDONED_SEC", -1)
    open_store(cubes, "validation", cache_dir=tmp_path)
    assert not list(tmp_path.glob(".building-*"))


def test_builders_side_by_side_agree_on_one_store(vocabulary, tmp_path):
    store = open_store(task(vocabulary, "cubes"), "train")
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "cubes-train-0"
    builders = [context.Process(target=save_often, args=(store, folder)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert contents(example_store.load(folder)) == contents(store)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def save_often(store, folder):
    for _ in range(20):
        example_store.save(store, folder)
        assert example_store.load(folder) is not None


def test_errors_name_task_and_split(vocabulary, tmp_path):
    with pytest.raises(UserError, match="'cubes_none' has no examples"):
        open_store(task(vocabulary, "cubes_none"), "train")
    with pytest.raises(UserError, match="'cubes' has no split 'test'"):
        open_store(task(vocabulary, "cubes"), "test")
    with pytest.raises(UserError, match="'gs://bucket/tokens' must be a local directory"):
        open_store(task(vocabulary, "cubes"), "train", cache_dir="gs://bucket/tokens")


def test_data_that_cannot_be_read_are_explained(vocabulary, tmp_path):
    import seqio

    feature = seqio.Feature(vocabulary=vocabulary)
    seqio.TaskRegistry.add(
        "gone",
        source=seqio.TextLineDataSource({"train": str(tmp_path / "gone.txt")}),
        preprocessors=[both, seqio.preprocessors.tokenize],
        output_features={"inputs": feature, "targets": feature},
    )
    with pytest.raises(UserError, match="'gone', split 'train', cannot be read: .*gone.txt"):
        open_store(task(vocabulary, "gone"), "train", cache_dir=tmp_path / "cache")


def test_tasks_that_yield_no_token_ids_are_refused(vocabulary):
    import data_tasks
    import seqio

    feature = seqio.Feature(vocabulary=vocabulary, add_eos=False)
    for name, step, message in (
        ("text_only", lambda data: data, "yields 'inputs' as .* not as a list of token ids"),
        (
            "no_targets",
            lambda data: data.map(lambda row: {"inputs": row["inputs"]}),
            "no 'targets'",
        ),
        ("needs_cache", seqio.CacheDatasetPlaceholder(required=True), "SeqIO's offline cache"),
    ):
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(data_tasks.rows, splits=["train"]),
            preprocessors=[step],
            output_features={"inputs": feature, "targets": feature},
        )
        with pytest.raises(UserError, match=message):
            open_store(task(vocabulary, name), "train")


def test_progress_is_reported_and_quick_builds_are_silent(vocabulary, capsys, monkeypatch):
    monkeypatch.setattr(store_module, "_SILENT_SEC", 3600.0)
    reports = []
    open_store(task(vocabulary, "cubes"), "train", progress=reports.append)
    assert [report.examples for report in reports] == [30, 30]
    assert reports[-1].done
    assert reports[0].name == "cubes/train"
    open_store(task(vocabulary, "cubes"), "train")
    assert "tokenizing" not in capsys.readouterr().err


def test_long_builds_are_spoken_of_now_and_then(capsys):
    speak = StderrProgress()
    for second in range(12):
        report = {
            "name": "rte/train",
            "examples": 1000 * second,
            "total": 60_000,
            "done": second == 11,
        }
        speak(TokenizingProgress(**report, elapsed_sec=float(second)))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "tokenizing rte/train: 5,000 of 60,000 examples, 1,000/s",
        "tokenizing rte/train: 10,000 of 60,000 examples, 1,000/s",
        "tokenizing rte/train: 11,000 examples, 1,000/s",
    ]
