"""What training data cost before the first step and afterwards: made-up pairs, JSONL and TFDS.

The pairs are sentences of made-up words (30 and 28 tokens of a SentencePiece model of 8,000
pieces on average). Each row of the table is a process of its own: seconds until the first two
batches are there (TensorFlow's import left out), the peak memory until then, and rows tokenized a
second where every row is needed.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("jsonl", "tfds")
ROWS = 20_000
LENGTHS = {"inputs": 128, "targets": 128}
BATCH_SIZE = 64
_PIECES = 8000
_WORDS = 20_000
_ROWS_A_SHARD = 250_000
_ROWS_AT_ONCE = 10_000
_MOST_TIMED = 100_000


def show(rows: int) -> None:
    """Print the table for splits of so many rows."""
    print(
        f"\n{rows:,} pairs{'':10}{'first batch s':>15}{'second s':>10}{'peak MB':>10}{'rows/s':>10}"
        f"{'CPU us/row':>12}"
    )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), rows)
        for kind in KINDS:
            for packed in (False, True):
                label = f"{kind}, {'packed' if packed else 'unpacked'}"
                found = measured_alone(Path(folder), kind, packed)
                print(
                    f"{label:22}{found['first_seconds']:15.2f}{found['second_seconds']:10.2f}"
                    f"{found['peak_megabytes']:10,.0f}{found['rows_per_second']:10,.0f}"
                    f"{found['microseconds_per_row']:12.0f}",
                    flush=True,
                )


def measured_alone(folder: Path, kind: str, packed: bool) -> dict[str, float]:
    """Measure in a process of its own, whose peak memory is then its alone."""
    command = [sys.executable, "-m", "promot_t5x.bench.data", str(folder), kind]
    ran = subprocess.run(
        [*command, "--packed"] if packed else command, stdout=subprocess.PIPE, check=True, text=True
    )
    measured: dict[str, float] = json.loads(ran.stdout)
    return measured


def measure(folder: Path, kind: str, packed: bool) -> dict[str, float]:
    """Time the first batches of the pairs in `folder`, then tokenizing all of them."""
    from promot_t5x.data.batches import Batches
    from promot_t5x.data.lazy import import_seqio
    from promot_t5x.data.sources import resolve_tasks
    from promot_t5x.data.store import open_store
    from promot_t5x.tasks import jsonl, register, text_task, tfds

    vocabulary = import_seqio().SentencePieceVocabulary(str(folder / "pieces.model"))
    vocabulary.load_model()
    register(
        text_task(
            name="bench_pairs",
            source=jsonl(folder / "train.jsonl")
            if kind == "jsonl"
            else tfds("pairs:1.0.0", ["train"]),
            inputs="Translate: {source} Translation:",
            target="{target}",
        )
    )
    began = time.perf_counter()
    (task,) = resolve_tasks("bench_pairs", vocabulary)
    store = open_store(
        task, "train", cache_dir=folder / f"cache_{kind}_{packed}", text_lengths=LENGTHS
    )
    batches = Batches(
        [task],
        [store],
        batch_size=BATCH_SIZE,
        lengths=LENGTHS,
        pack=packed,
        seed=0,
        vocab_size=_PIECES,
    )
    seconds = []
    for step in range(2):
        batches.batch(step)
        seconds.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rate, cost = _rate(task, min(len(store), _MOST_TIMED))
    return {
        "first_seconds": seconds[0],
        "second_seconds": seconds[1],
        "peak_megabytes": memory,
        "rows_per_second": rate,
        "microseconds_per_row": cost,
    }


def _rate(task: Any, rows: int) -> tuple[float, float]:
    """Rows tokenized a second, and the processor time of all cores that each takes."""
    from promot_t5x.data.row_tokenizer import RowTokenizer
    from promot_t5x.data.rows import open_rows
    from promot_t5x.data.tokenization import Pipeline

    found = open_rows(task.task.source, "train", None)
    assert found is not None  # both kinds of file can be read in any order
    tokenize = RowTokenizer(Pipeline(task.task, "train", LENGTHS), found)
    began, spent = time.perf_counter(), time.process_time()
    for _ in tokenize.chunks(np.arange(rows)):
        pass
    seconds, spent = time.perf_counter() - began, time.process_time() - spent
    return rows / seconds, 1e6 * spent / rows


def write(folder: Path, rows: int) -> None:
    """Write the pairs as `train.jsonl` and as the TFDS data set `pairs`, and train the pieces."""
    _train_pieces(folder)
    with open(folder / "train.jsonl", "w") as file:
        for pairs in _pairs(rows):
            file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    full, rest = divmod(rows, _ROWS_A_SHARD)
    counts = [_ROWS_A_SHARD] * full + [rest] * (rest > 0)
    write_tfds(folder, counts, itertools.chain.from_iterable(_pairs(rows)))


def write_tfds(folder: Path, counts: Sequence[int], pairs: Iterator[dict[str, str]]) -> None:
    """Write the TFDS data set `pairs:1.0.0`, its split `train` in shards of so many rows."""
    from promot_t5x.data.lazy import import_tensorflow

    tf = import_tensorflow()
    import tensorflow_datasets as tfds

    directory = folder / "pairs" / "1.0.0"
    directory.mkdir(parents=True)
    for shard, count in enumerate(counts):
        name = f"pairs-train.tfrecord-{shard:05}-of-{len(counts):05}"
        with tf.io.TFRecordWriter(str(directory / name)) as writer:
            for pair in itertools.islice(pairs, count):
                values = {
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
                    for name, text in pair.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=values))
                writer.write(example.SerializeToString())
    features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=list(counts),
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name="pairs", split="train", filetype_suffix="tfrecord"
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict(features),
        split_infos=[split],
        check_data=False,
    )


def _pairs(rows: int) -> Iterator[list[dict[str, str]]]:
    """Pairs of sentences, some thousand at a time, the same for the same number of rows."""
    words, odds = _words()
    draw = np.random.default_rng(1)
    for start in range(0, rows, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, rows - start)
        sizes = np.clip(draw.lognormal(2.9, 0.5, (count, 2)).astype(int), 3, 60)
        drawn = iter(draw.choice(words, int(sizes.sum()), p=odds).tolist())
        yield [
            {
                "source": " ".join(next(drawn) for _ in range(source)),
                "target": " ".join(next(drawn) for _ in range(target)),
            }
            for source, target in sizes.tolist()
        ]


def _words() -> tuple[np.ndarray, np.ndarray]:
    """Made-up words and how often each occurs, as rank falls (Zipf)."""
    draw = np.random.default_rng(0)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    parts = draw.choice(syllables, (_WORDS, 4))
    lengths = draw.integers(1, 5, _WORDS)
    words = ["".join(row[:length]) for row, length in zip(parts, lengths, strict=True)]
    odds = 1 / np.arange(2, _WORDS + 2)
    return np.array(words), odds / odds.sum()


def _train_pieces(folder: Path) -> None:
    import sentencepiece

    texts = (text for pair in next(_pairs(_ROWS_AT_ONCE)) for text in pair.values())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts,
        model_prefix=str(folder / "pieces"),
        vocab_size=_PIECES,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )


def _main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Print what `measure` finds, as JSON.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--packed", action="store_true")
    flags = parser.parse_args(argv)
    os.environ["TFDS_DATA_DIR"] = str(flags.folder)
    found: dict[str, Any] = measure(flags.folder, flags.kind, flags.packed)
    print(json.dumps(found))


if __name__ == "__main__":
    _main()
