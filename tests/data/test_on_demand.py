"""Splits too large to be tokenized whole: the same batches, from the rows that they need alone."""

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from promot_t5x.bench.data import write_tfds
from promot_t5x.data import line_rows
from promot_t5x.data import store as store_module
from promot_t5x.data.batches import Batches
from promot_t5x.data.example_store import ExampleStore
from promot_t5x.data.on_demand import OnDemandStore
from promot_t5x.data.row_tokenizer import RowTokenizer
from promot_t5x.data.rows import open_rows
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.store import open_store
from promot_t5x.errors import UserError

ROWS = [{"q": f"what is {n} plus {n * n}?", "a": str(n + n * n)} for n in range(300)]
STEPS = (0, 1, 7, 40)
# Of these batches, made when every split was tokenized whole.
RECORDED = {
    False: "5f6abc34aa9b6e0f269f5e52a0cfb60cc425ef65e59a67061f28e844bc44ee34",
    True: "465dff412472a817cba24003884bfc013349c6226d9325528695eabaa84b7c46",
}
CONTENT = "68ec3b6f6d8e2f28fdd98295e74d1d66d24777427009ba2667efcc02df73aba8"


@pytest.fixture
def sums(tmp_path):
    """Makes the task `sums` of a file of rows."""
    import seqio

    from promot_t5x.tasks import jsonl, text_task

    def made(rows=ROWS, **settings):
        file = tmp_path / "train.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        definition = text_task(
            name="sums", source=jsonl(file), inputs="{q} answer:", target="{a}", **settings
        )
        task = definition.build(seqio.ByteVocabulary())
        return BoundTask(name="sums", task=task, splits=("train",), definition=definition)

    return made


@pytest.fixture
def on_demand(monkeypatch):
    """Splits of more than ten rows are tokenized on demand; the number of rows tokenized."""
    monkeypatch.setattr(store_module, "_MOST_ROWS", 10)
    monkeypatch.setattr(store_module, "_SAMPLE", 20)
    counted = [0]
    chunk = RowTokenizer._chunk

    def counting(self, rows):
        counted[0] += len(rows)
        return chunk(self, rows)

    monkeypatch.setattr(RowTokenizer, "_chunk", counting)
    return counted


def opened(bound, cache_dir=None):
    lengths = {"inputs": 60, "targets": 12}
    return open_store(bound, "train", cache_dir=cache_dir, text_lengths=lengths)


def batches(bound, store, pack):
    return Batches(
        [bound],
        [store],
        batch_size=8,
        lengths={"inputs": 64, "targets": 12},
        pack=pack,
        seed=3,
        vocab_size=384,
        prompt_length=4,
        use_prompts=True,
    )


def digest(data, steps=STEPS):
    content = hashlib.sha256()
    for step in steps:
        for name, array in sorted(data.batch(step).items()):
            content.update(name.encode())
            content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


@pytest.mark.parametrize("pack", [False, True])
def test_batches_are_those_that_were_made_of_whole_splits(sums, on_demand, monkeypatch, pack):
    bound = sums()
    store = opened(bound)
    assert isinstance(store, OnDemandStore)
    if pack:
        # How long windows are is decided by all rows of a small split, and by a sample's of others.
        monkeypatch.setattr(store_module, "_SAMPLE", len(ROWS))
        store = opened(bound)
    assert digest(batches(bound, store, pack)) == RECORDED[pack]
    monkeypatch.setattr(store_module, "_MOST_ROWS", len(ROWS))
    whole = opened(bound)
    assert isinstance(whole, ExampleStore)
    assert whole.content_hash == CONTENT
    assert digest(batches(bound, whole, pack)) == RECORDED[pack]
    for number in (0, 299):
        one = np.array([number])
        for name, text in store.texts(one).items():
            np.testing.assert_array_equal(text.tokens, whole.texts(one)[name].tokens)
            assert store.lengths(one)[name] == whole.lengths(one)[name] == text.lengths


@pytest.mark.parametrize("split", ["train[10%:60%]", "train[-20:]"])
def test_a_slice_is_read_in_any_order_too(sums, on_demand, split):
    bound = sums()
    lengths = {"inputs": 60, "targets": 12}
    store = open_store(bound, split, text_lengths=lengths)
    assert isinstance(store, OnDemandStore)
    start = {"train[10%:60%]": 30, "train[-20:]": 280}[split]
    assert len(store) == {30: 150, 280: 20}[start]
    some = np.array([19, 0])
    expected = opened(bound).texts(start + some)
    for name, text in store.texts(some).items():
        np.testing.assert_array_equal(text.tokens, expected[name].tokens)
    assert store.content_hash != open_store(bound, "train[:20]", text_lengths=lengths).content_hash


def test_only_what_a_step_needs_is_tokenized(sums, on_demand):
    bound = sums()
    store = opened(bound)
    assert on_demand == [20]
    data = batches(bound, store, pack=False)
    data.batch(0)
    assert on_demand[0] <= 28
    data.batch(0, slice(0, 4))
    assert on_demand[0] <= 32


def test_a_packed_run_that_resumes_tokenizes_the_windows_it_is_in(sums, on_demand, tmp_path):
    bound = sums()
    walked = batches(bound, opened(bound, tmp_path / "cache"), pack=True)
    expected = [digest(walked, [step]) for step in range(12)]
    on_demand[0] = 0
    resumed = batches(bound, opened(bound, tmp_path / "cache"), pack=True)
    assert digest(resumed, [11]) == expected[11]
    # The sample, and the rows of a batch of eight rows with a few examples each.
    assert on_demand[0] <= 20 + 8 * 5
    # Without the lengths, all before is tokenized again and the batch is the same.
    afresh = batches(bound, opened(bound), pack=True)
    assert digest(afresh, [11]) == expected[11]


@pytest.mark.parametrize(
    "name", ["csv", "tsv", "parquet", "json", "jsonl.gz", "jsonl.zst", "shards"]
)
def test_rows_of_files_that_are_decoded_once_are_read_in_any_order(
    name, on_demand, monkeypatch, tmp_path, capsys
):
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet
    import seqio

    from promot_t5x.tasks import csv, jsonl, parquet, text_task, tsv

    monkeypatch.setattr(line_rows, "_SMALL_BYTES", 0)
    table = pyarrow.Table.from_pylist([row | {"q": f'{row["q"]} "ß"'} for row in ROWS])
    lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
    # A blank line is no row, but counts as a line.
    text = "".join([*lines[:100], "\n", *lines[100:]]).encode()
    path = tmp_path / f"train.{name}"
    if name == "csv":
        pyarrow.csv.write_csv(table, path)
    elif name == "parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=70)
    elif name == "tsv":
        rows = ["q\ta", *(f"{row['q']}\t{row['a']}" for row in table.to_pylist())]
        path.write_text("\n".join(rows), encoding="utf-8")
    elif name == "shards":
        # One that is read where it lies beside two that are decoded.
        (tmp_path / "part-0.jsonl").write_text("".join(lines[:120]))
        for number, some in ((1, lines[120:200]), (2, lines[200:])):
            packed = gzip.compress("".join(some).encode())
            (tmp_path / f"part-{number}.jsonl.gz").write_bytes(packed)
        path = tmp_path / "part-*"
    elif name == "json":
        path.write_text(json.dumps(table.to_pylist()))
    elif name == "jsonl.gz":
        path.write_bytes(gzip.compress(text))
    else:
        with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(text)
    kinds = {"csv": csv, "tsv": tsv, "parquet": parquet}
    definition = text_task(
        name="sums", source=kinds.get(name, jsonl)(path), inputs="{q} answer:", target="{a}"
    )
    bound = BoundTask(name="sums", task=definition.build(seqio.ByteVocabulary()), splits=("train",))
    store = opened(bound, tmp_path / "cache")
    assert isinstance(store, OnDemandStore)
    assert "decoding" in capsys.readouterr().err
    # The reading of whole files, from the first row to the last.
    whole = opened(bound)
    assert len(store) == len(whole) == len(ROWS)
    chosen = np.array([299, 0, 150, 99, 100, 119, 120])
    for feature, texts in store.texts(chosen).items():
        np.testing.assert_array_equal(texts.tokens, whole.texts(chosen)[feature].tokens)
    rows = open_rows(bound.task.source, "train", tmp_path / "cache")
    assert not capsys.readouterr().err
    read = bound.task.source.files.rows("train")
    ids = [row["row_id"] for row in read.rows]
    assert rows.columns(chosen)["row_id"].numpy().tolist() == [ids[n].encode() for n in chosen]
    assert [rows._name(n) for n in chosen.tolist()] == [read.name_row(n) for n in chosen.tolist()]


def test_the_content_hash_knows_rows_that_no_sample_has_seen(sums, on_demand, tmp_path):
    first = opened(sums(), tmp_path / "cache").content_hash
    assert opened(sums(), tmp_path / "elsewhere").content_hash == first
    assert opened(sums(), None).content_hash == first
    changed = [*ROWS]
    changed[1] = {"q": "what is 1 plus 2?", "a": "3"}
    assert 1 not in opened(sums(), None).sample
    assert opened(sums(changed), tmp_path / "cache").content_hash != first


def test_a_task_that_gives_other_tokens_another_time_is_refused(sums, on_demand):
    store = opened(sums())
    one = np.array([7])
    assert store.lengths(one)["targets"].tolist() == [len(ROWS[7]["a"]) + 1]
    store._lengths[7, 1] += 1
    with pytest.raises(
        UserError, match="Example 7 of sums/train is not as long as the token cache"
    ):
        store.texts(one)


def leaves_out(dataset):
    return dataset.filter(lambda row: row["a"] != "0")


def shuffles(dataset):
    return dataset.shuffle(5, seed=0)


@pytest.mark.parametrize("step", [leaves_out, shuffles])
def test_preprocessors_that_look_beyond_a_row_read_the_split_whole(
    sums, on_demand, monkeypatch, tmp_path, step
):
    bound = sums(preprocessors=[step])
    # Rows are taken many at once where only some of them are left out; with a cache, by way of it.
    found = [opened(bound), opened(bound, tmp_path / "cache")]
    assert on_demand[0] == (2 * len(ROWS) if step is leaves_out else 0)
    monkeypatch.setattr(store_module, "_MOST_ROWS", len(ROWS))
    found.append(opened(bound))
    assert {type(store) for store in found} == {ExampleStore}
    assert {len(store) for store in found} == {299 if step is leaves_out else 300}
    assert len({store.content_hash for store in found}) == 1
    folder = tmp_path / "cache"
    assert {path.name[:4] for path in folder.iterdir()} == {"inde", "sums"}


def test_numbers_lists_and_objects_are_those_of_the_whole_file(sums, on_demand, monkeypatch):
    rows = [
        {"q": None if n == 3 else f"é{n}", "n": n, "f": n / 4, "l": [str(n)] * (n % 3 + 1)}
        | {"o": {"t": n % 2 == 0}, "a": "x"}
        for n in range(50)
    ]
    texts = []
    for most in (10, 50):
        monkeypatch.setattr(store_module, "_MOST_ROWS", most)
        bound = sums(rows)
        template = dataclasses.replace(
            bound.definition.template, question="{q} {n} {f} {l.0} {o.t}"
        )
        definition = dataclasses.replace(bound.definition, template=template)
        task = definition.build(bound.task.output_features["inputs"].vocabulary)
        store = opened(dataclasses.replace(bound, task=task))
        texts.append(
            {name: each.tokens.tolist() for name, each in store.texts(np.arange(50)).items()}
        )
    assert texts[0] == texts[1]
    ids = np.array(texts[0]["inputs"])
    first = bytes((ids[: list(ids).index(1)] - 3).tolist()).decode()
    assert first == "é0 0 0.0 0 True"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"train.jsonl: line 13 is not JSON"),
        ("[1]", r"train.jsonl: line 13 is not a JSON object: b'\[1\]'"),
        ('{"q": "x"}', r"train.jsonl, line 13: the field 'a' is missing"),
        ('{"q": ["x"], "a": "y"}', r"line 13: the field 'q' holds \['x'\], but text in other rows"),
        ('{"q": "\\ud83d", "a": "y"}', r"line 13: the field 'q' holds text that is no Unicode"),
    ],
)
def test_a_row_unlike_the_others_is_named(sums, on_demand, monkeypatch, line, message):
    from promot_t5x.data import line_rows

    monkeypatch.setattr(line_rows, "_ROWS_LOOKED_AT", 4)
    bound = sums()
    file = Path(bound.task.source.files.named_files("train")[0][0])
    lines = file.read_text().splitlines()
    # Blank lines are no rows, but they are lines.
    lines[10:11] = ["", lines[10], line]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        opened(bound).lengths(np.arange(20))


@pytest.mark.parametrize("split", ["train", "train[10%:60%]"])
def test_tfds_rows_are_in_the_order_of_tfds(tmp_path, split):
    import seqio

    from promot_t5x.tasks import tfds

    counts = [3, 40, 0, 17, 16, 33, 1, 20, 5, 5, 5, 5, 5, 5, 5, 5, 5, 30, 2, 31]
    pairs = ({"source": f"s{n}", "target": f"t{n}"} for n in range(sum(counts)))
    write_tfds(tmp_path, counts, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(tmp_path))
        patch.setattr(seqio.utils.LazyTfdsLoader, "_MEMOIZED_BUILDERS", {})
        source = tfds("pairs:1.0.0", {"some": split})()
        source.tfds_dataset.override_data_dir(str(tmp_path))
        rows = open_rows(source, "some", tmp_path / "cache")
        expected = list(source.get_dataset(split="some", shuffle=False).as_numpy_iterator())
        assert len(rows) == len(expected)
        found = list(rows.dataset(rows.columns(np.arange(len(rows)))).as_numpy_iterator())
        assert found == expected
        some = np.array([len(rows) - 1, 2, 2])
        assert list(rows.dataset(rows.columns(some)).as_numpy_iterator()) == [
            expected[n] for n in some
        ]
