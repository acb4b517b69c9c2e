"""Files of rows, whatever they hold: read rightly, or refused with file, line and field."""

import gzip
import json

import pytest

from promot_t5x.errors import UserError
from promot_t5x.runs.infer import read_rows
from promot_t5x.tasks import csv, files, jsonl, parquet, text_task, tsv

HUGE = "x" * 200_000
ROWS = [{"q": "größe 東京", "a": "1"}, {"q": "b", "a": "2"}]
TSV = "q\ta\ngröße 東京\t1\nb\t2\n"
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'q,a\ngröße 東京,1\n"b",2\n'


def zstd(data):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def examples(source, **changes):
    import seqio

    settings = {"name": "files", "inputs": "{q}", "target": "{a}", **changes}
    task = text_task(source=source, **settings).build(seqio.ByteVocabulary())
    data = task.get_dataset(None, "train", shuffle=False)
    return [
        (row["id"].decode(), row["inputs_pretokenized"].decode(), row["answer"].decode())
        for row in data.as_numpy_iterator()
    ]


READ = [("data-1", "größe 東京", "1"), ("data-2", "b", "2")]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "no last"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_text_is_read_with_any_line_end_a_byte_order_mark_and_compressed(
    ends, mark, pack, tmp_path
):
    for name, text, source in (
        ("data.tsv", TSV, tsv),
        ("data.JSONL", JSONL, jsonl),
        ("data.csv", CSV, csv),
    ):
        ended = text.removesuffix("\n") if ends == "no last" else text.replace("\n", ends)
        path = tmp_path / (name if pack is bytes else f"{name}.gz")
        path.write_bytes(pack(mark + ended.encode()))
        rows = source(path).rows("train").rows
        assert [{k: row[k] for k in ("q", "a")} for row in rows] == ROWS
        assert [row["row_id"] for row in rows] == ["data-1", "data-2"]


def test_every_source_makes_the_same_examples(tmp_path):
    import pyarrow
    from pyarrow import parquet as arrow_parquet

    for name, text in (("data.tsv", TSV), ("data.jsonl", JSONL), ("data.csv", CSV)):
        (tmp_path / name).write_text(text)
    (tmp_path / "data.json").write_text(json.dumps(ROWS, indent=1))
    arrow_parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "data.parquet")
    for make, name in (
        (tsv, "data.tsv"),
        (jsonl, "data.jsonl"),
        (csv, "data.csv"),
        (jsonl, "data.json"),
        (parquet, "data.parquet"),
    ):
        assert examples(make(tmp_path / name)) == READ


def test_parquet_keeps_numbers_lists_and_structs(tmp_path):
    import datetime

    import pyarrow
    from pyarrow import parquet as arrow_parquet

    row = {
        "n": 3,
        "x": 2.5,
        "l": ["a", "b"],
        "s": {"t": [{"u": "v"}]},
        "d": datetime.date(2026, 1, 1),
    }
    arrow_parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    source = parquet(tmp_path / "a.parquet")
    found = examples(source, inputs="{n} {x} {l.1} {s.t.0.u}", target="{l.0}")
    assert found == [("a-1", "3 2.5 b v", "a")]
    with pytest.raises(UserError, match="'d' holds a date in .*a.parquet, row 1"):
        examples(source, inputs="{d}", target="{n}")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="b.parquet cannot be read as Parquet"):
        examples(parquet(tmp_path / "b.parquet"))


def test_a_cell_may_be_of_any_length_and_hold_a_quote(tmp_path):
    (tmp_path / "data.tsv").write_text(f'q\ta\n"{HUGE}\t1\n')
    assert examples(tsv(tmp_path / "data.tsv")) == [("data-1", f'"{HUGE}', "1")]
    (tmp_path / "data.csv").write_text(f'q,a\n"a, ""b""\nand {HUGE}",1\n')
    assert examples(csv(tmp_path / "data.csv")) == [("data-1", f'a, "b"\nand {HUGE}', "1")]


def test_integer_labels_of_text_files(tmp_path):
    (tmp_path / "data.csv").write_text("q,y\na,1\nb,0\nc,1.0\n")
    labeled = {"target": "{y}", "labels": ("no", "yes")}
    assert [a for _, _, a in examples(csv(tmp_path / "data.csv"), **labeled)] == [
        "yes",
        "no",
        "yes",
    ]
    # A label that is a number is the label of that text.
    labeled["labels"] = ("1", "0", "1.0")
    assert [a for _, _, a in examples(csv(tmp_path / "data.csv"), **labeled)] == ["1", "0", "1.0"]


def test_shards_of_a_directory_a_glob_and_a_list(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for n, row in enumerate(ROWS):
        line = json.dumps(row).encode()
        (shards / f"part-{n}.jsonl.gz").write_bytes(gzip.compress(line, mtime=0))
    for other in ("_SUCCESS", ".hidden.jsonl", "notes.md"):
        (shards / other).write_text("no rows")
    wanted = [("part-0-1", "größe 東京", "1"), ("part-1-1", "b", "2")]
    assert examples(jsonl(shards)) == wanted
    assert examples(jsonl(shards / "part-*.jsonl.gz")) == wanted
    assert examples(jsonl([shards / "part-0.jsonl.gz", shards / "part-1.jsonl.gz"])) == wanted
    with pytest.raises(UserError, match="no file matches .*part-9"):
        jsonl(shards / "part-9*")()
    with pytest.raises(UserError, match="holds no file ending in .tsv"):
        tsv(shards)()
    # Equal names in two directories make ids that differ all the same.
    (tmp_path / "part-0.jsonl").write_text(json.dumps(ROWS[1]))
    both = examples(jsonl([shards / "part-0.jsonl.gz", tmp_path / "part-0.jsonl"]))
    assert [row_id for row_id, _, _ in both] == ["0-part-0-1", "1-part-0-1"]


LATIN_1 = "q\ta\ngröße\t1\n".encode("latin-1")


@pytest.mark.parametrize(
    ("make", "name", "data", "said"),
    [
        (tsv, "a.tsv", LATIN_1, "a.tsv: line 2 is not UTF-8 (the byte 0xf6 at place 3). If the"),
        (jsonl, "a.jsonl", b'{"q": "\xe9"}\n', "a.jsonl: line 1 is not UTF-8"),
        (csv, "a.csv", b"q,a\n\xe9,1\n", "a.csv: line 2 is not UTF-8"),
        (tsv, "a.tsv", "q\ta\n".encode("utf-16"), "a.tsv is UTF-16 text: save it as UTF-8"),
        (tsv, "a.tsv", b"q\tq\n1\t2\n", "a.tsv: line 1 names the column 'q' twice"),
        (csv, "a.csv", b"q,q\n1,2\n", "a.csv: line 1 names the column 'q' twice"),
        (tsv, "a.tsv", b"q\ta\n\n1\n", "a.tsv: line 3 has 1 columns, the first line names 2"),
        (csv, "a.csv", b"q,a\n1,2,3\n", "a.csv: CSV parse error: Expected 2 columns, got 3"),
        (tsv, "a.tsv", b"", "a split has no rows: train, read from"),
        (jsonl, "a.jsonl", b"\n\n", "a split has no rows: train, read from"),
        (csv, "a.csv", b"", "a split has no rows: train"),
        (tsv, "a.tsv", b"q\ta\n", "a split has no rows: train"),
        (jsonl, "a.jsonl.gz", b"\x1f\x8b no", "a.jsonl.gz cannot be decompressed"),
        (jsonl, "a.jsonl.zst", b"\x28\xb5\x2f\xfd no", "a.jsonl.zst cannot be decompressed"),
        (jsonl, "a.jsonl", b'{"q": 1}\n{"q": }\n', "a.jsonl: line 2 is not JSON"),
        (jsonl, "a.json", b'[{"q": 1}, 2]', "a.json: line 1 is not a JSON object"),
    ],
)
def test_what_cannot_be_read_is_refused_with_file_and_line(make, name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        examples(make(tmp_path / name))
    assert said in str(caught.value)


FIELDS = [
    ({"z": "\ud83d"}, "half a character, \\ud83d, in {file}, line 2"),
    ({}, "row 2 has no field 'z', which other rows have ({file}, line 2)"),
    ({"z": None}, "the field 'z' is null in {file}, line 2"),
    ({"z": "three"}, "'z' holds int in some rows and str in others: int in {file}, line 1"),
    ({"z": True}, "'z' holds bool in some rows and int in others"),
    ({"z": [1]}, "'z' holds int in some rows and list in others"),
    ({"z": {"y": 1}}, "'z' holds dict in some rows and int in others"),
]


@pytest.mark.parametrize(("second", "said"), FIELDS)
def test_only_fields_that_are_used_must_be_of_one_kind(second, said, tmp_path):
    path = tmp_path / "a.jsonl"
    first = {"q": "a", "a": "1", "z": "x" if "half" in said else 1}
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in (first, {"q": "b", "a": "2", **second}))
    )
    assert [a for _, _, a in examples(jsonl(path))] == ["1", "2"]
    with pytest.raises(UserError) as caught:
        examples(jsonl(path), target="{z}")
    assert "task 'files' needs the field z of its rows, which have a, q, row_id" in str(
        caught.value
    )
    assert said.format(file=path) in str(caught.value)


def test_lists_of_objects_are_reached_into(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [
        {"q": "a", "as": [{"text": "x", "n": 1}, {"text": "y", "n": 0.5}], "deep": [[1]]},
        {"q": "b", "as": [{"text": "z", "n": 2.0}], "deep": [[2, 3]]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = examples(jsonl(path), inputs="{q} {as.0.n}", target="{as.0.text}", references="as.text")
    assert found == [("a-1", "a 1", "x"), ("a-2", "b 2.0", "z")]
    assert examples(jsonl(path), target="{as.text.0}") == [("a-1", "a", "x"), ("a-2", "b", "z")]
    with pytest.raises(UserError, match="'deep' holds lists within lists"):
        examples(jsonl(path), target="{deep.0}")


def test_what_a_file_was_found_to_hold_changes_no_fingerprint(tmp_path):
    """A token store is recognized by what its task reads, before it is opened and after."""
    import seqio

    from promot_t5x.data.fingerprint import digest, task_definition

    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "a", "a": "1", "z": 1}\n{"q": "b", "a": "2"}\n')
    task = text_task(name="marked", source=jsonl(tmp_path), inputs="{q}", target="{a}")
    built = task.build(seqio.ByteVocabulary())
    before = digest(task_definition(built, "train", None))
    list(built.get_dataset(None, "train", shuffle=False))
    assert list(built.source.left_out.reasons) == ["z"]
    assert digest(task_definition(built, "train", None)) == before
    path.write_text('{"q": "a", "a": "other", "z": 1}\n')
    again = task.build(seqio.ByteVocabulary())
    assert digest(task_definition(again, "train", None)) != before


# -------------------------------------------------------------------------------- infer


@pytest.mark.parametrize(
    ("name", "data", "texts"),
    [
        ("a.txt", b"one\ntwo\n\n", ["one", "two"]),
        ("a.txt", b"\xef\xbb\xbfone\r\ntwo", ["one", "two"]),
        ("a.txt", b"one\rtwo\r", ["one", "two"]),
        ("a.JSONL", b'{"inputs": "one"}\n\n{"inputs": "two"}\n\n', ["one", "two"]),
        ("a.json", b'[{"inputs": "one"},\n {"inputs": "two"}]', ["one", "two"]),
        ("a.json", b'{"inputs": "one"}\n', ["one"]),
        ("a.jsonl.gz", gzip.compress(b'{"inputs": "one"}\n', mtime=0), ["one"]),
    ],
)
def test_inputs_of_infer_are_read_from_files_of_every_kind(name, data, texts, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert [row["inputs"] for row in read_rows(str(tmp_path / name))] == texts


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"one\n\ntwo\n", "a.txt, line 2 is blank"),
        ("a.txt", b"\n\n", "holds no inputs"),
        ("a.txt", b"", "holds no inputs"),
        ("a.txt", "größe".encode("latin-1"), "a.txt: line 1 is not UTF-8"),
        (
            "a.jsonl",
            b'{"inputs": "a"}\n{"inputs": "b", "note": ["\\ud83d"]}\n',
            "a.jsonl, line 2 holds half a character, \\ud83d, in its field 'note'",
        ),
        ("a.jsonl", b'{"inputs": "\\ude00x"}\n', "line 1 holds half a character, \\ude00"),
        ("a.json", b'[{"inputs": 1}]', "a.json, item 1 is no object with a text field 'inputs'"),
        ("a.jsonl", b'{"question": "a"}\n', "line 1 is no object with a text field 'inputs'"),
    ],
)
def test_inputs_that_could_not_be_written_back_are_refused_before_decoding(
    name, data, said, tmp_path
):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_rows(str(tmp_path / name))
    assert said in str(caught.value)


def test_stems():
    assert files.stem("/x/a.b.jsonl.gz") == "a.b"
    assert files.stem("a.tsv") == "a"
