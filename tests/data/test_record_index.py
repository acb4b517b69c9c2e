"""Where records lie: lines and TFRecords, the order of several files, and the index on disk."""

import io
import random

import numpy as np
import pytest

from promot_t5x.data import record_index
from promot_t5x.errors import UserError


def read(tmp_path, content, scan=record_index.lines):
    (tmp_path / "file").write_bytes(content)
    index = record_index.open_index([str(tmp_path / "file")], scan, None)
    return index.read(np.arange(len(index)))


@pytest.mark.parametrize("at_once", [1, 3, 1 << 24])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a", [b"a"]),
        (b"a\nbc\n", [b"a", b"bc"]),
        (b"a\n\n \t\nbc\r\n\r\n d", [b"a", b"bc\r", b" d"]),
    ],
)
def test_lines_are_found_and_blank_ones_left_out(tmp_path, monkeypatch, content, expected, at_once):
    monkeypatch.setattr(record_index, "_BYTES_AT_ONCE", at_once)
    assert read(tmp_path, content) == expected


@pytest.mark.parametrize("at_once", [1, 50, 1 << 24])
def test_tfrecords_are_found_by_their_headers(tmp_path, monkeypatch, at_once):
    import tensorflow as tf

    monkeypatch.setattr(record_index, "_BYTES_AT_ONCE", at_once)
    records = [bytes([n]) * (7 * n % 40) for n in range(50)]
    with tf.io.TFRecordWriter(str(tmp_path / "written")) as writer:
        for record in records:
            writer.write(record)
    content = (tmp_path / "written").read_bytes()
    assert read(tmp_path, content, record_index.tfrecords) == records
    with pytest.raises(UserError, match="file cannot be read: the record at byte .* is cut short"):
        read(tmp_path, content[:-1], record_index.tfrecords)


def test_files_are_read_in_the_turns_that_tensorflow_takes():
    import tensorflow as tf

    draw = random.Random(0)
    for count in (1, 3, 16, 40):
        counts = [draw.choice([0, 1, 3, 15, 16, 17, 32, 50]) for _ in range(count)] + [1]
        files = tf.data.Dataset.from_tensor_slices((np.arange(len(counts)), np.array(counts)))
        data = files.interleave(
            lambda file, size: tf.data.Dataset.range(size).map(lambda n: (file, n)),  # noqa: B023
            cycle_length=16,
            block_length=16,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        expected = [(int(file), int(n)) for file, n in data.as_numpy_iterator()]
        found = record_index.interleaved(counts, cycle=16, block=16)
        assert list(zip(*(each.tolist() for each in found), strict=True)) == expected


def test_an_index_is_made_once_for_a_file(tmp_path):
    file, cache = tmp_path / "file", tmp_path / "cache"
    scans = []

    def lines(opened: io.BufferedReader) -> record_index.Scanned:
        scans.append(opened.name)
        return record_index.lines(opened)

    def index():
        return record_index.open_index([str(file)], lines, cache)

    file.write_text("a\nb\n")
    first, again = index(), index()
    assert len(scans) == 1
    assert first.read(np.array([1, 0])) == again.read(np.array([1, 0])) == [b"b", b"a"]
    assert first.content_hash == again.content_hash
    (folder,) = cache.iterdir()
    (folder / "places.npy").write_bytes(b"damaged")
    assert index().content_hash == first.content_hash
    assert len(scans) == 2
    # Of the same size, and of the same second perhaps.
    file.write_text("a\nc\n")
    assert index().content_hash != first.content_hash
    assert index().read(np.array([1])) == [b"c"]


def test_equal_files_under_other_names_have_one_hash(tmp_path):
    hashes = set()
    for name in ("one", "two"):
        (tmp_path / name).write_text("a\nb\n")
        hashes.add(
            record_index.open_index([str(tmp_path / name)], record_index.lines, None).content_hash
        )
    assert len(hashes) == 1
