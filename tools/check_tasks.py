"""What `promot-t5x tasks check` says of the shipped tasks with several vocabularies, as a table.

    python -m tools.check_tasks --tfds_data_dir DIR [--t5 FILE] [--mt5 FILE]

reads every task whose TFDS data set is prepared in DIR. Where no vocabulary file is given, one is
trained on the tasks' own text: T5's kind lacks rare characters, mT5's falls back to bytes.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

_PIECES = 16_000
_SENTINELS = 100
_ROWS = 1000
# What a check says that depends on the vocabulary, and how a cell says it.
_TOLD = (
    (r"(\w+) ([\d.]+) for its (?:own|right)", r"\1 \2"),
    (r"cannot write .*? right answers \(([\d.]+%)\)", r"\1 cannot be written"),
    (r"without a fault would score ([\d.]*\d)", r"at best \1"),
    (r"output_length (?:is only )?(\d+),?.* cuts .*? answers \(([\d.]+%)\)", r"\2 longer than \1"),
)


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tfds_data_dir", required=True)
    parser.add_argument("--t5", help="T5's SentencePiece model")
    parser.add_argument("--mt5", help="mT5's SentencePiece model")
    arguments = parser.parse_args(argv)
    # tensorflow-datasets reads it when it is imported.
    os.environ["TFDS_DATA_DIR"] = str(Path(arguments.tfds_data_dir).resolve())
    from promot_t5x.cli.tasks_check import check_task
    from promot_t5x.data.lazy import import_seqio

    seqio = import_seqio()
    names = [name for name in _shipped() if _is_prepared(name)]
    byte_level = seqio.ByteVocabulary(extra_ids=125)
    with tempfile.TemporaryDirectory() as directory:
        texts = list(_texts(names, byte_level))
        t5 = arguments.t5 or _trained(f"{directory}/t5", texts, byte_fallback=False)
        mt5 = arguments.mt5 or _trained(f"{directory}/mt5", texts, byte_fallback=True)
        sentencepiece = [seqio.SentencePieceVocabulary(file, _SENTINELS) for file in (t5, mt5)]
        vocabularies = [*sentencepiece, byte_level]
        print("| task | rows | T5's kind | mT5's kind | bytes |", "|---|---|---|---|---|", sep="\n")
        for name in names:
            # Warnings of metrics, which are no part of the table.
            with contextlib.redirect_stdout(sys.stderr):
                found = [check_task(_asking(each), name, _ROWS) for each in vocabularies]
            rows = found[0].facts[0].removesuffix(" examples read")
            cells = [_cell(report) for report in found]
            print("|", " | ".join([f"`{name}`", rows, *cells]), "|", flush=True)


def _cell(report: Any) -> str:
    said = [*report.facts, *report.problems]
    found = [
        match.expand(short)
        for pattern, short in _TOLD
        for sentence in said
        if (match := re.search(pattern, sentence))
    ]
    told = [text for text in report.problems if not any(re.search(p, text) for p, _ in _TOLD)]
    return "; ".join([*found, *told]).replace("|", r"\|").replace("\n", " ")


def _shipped() -> list[str]:
    from promot_t5x.tasks import registry

    tasks = [name for name in registry.names() if registry.is_task(name)]
    return [name for name in tasks if not (name.startswith("tiny_") or name.endswith("shot"))]


def _is_prepared(name: str) -> bool:
    from promot_t5x.data.prepared import data_sets, is_prepared
    from promot_t5x.tasks import registry

    found = data_sets(registry.get_task(name).source())
    return bool(found) and all(is_prepared(each.builder()) for each in found)


def _asking(vocabulary: Any) -> Any:
    from promot_t5x.cli.tasks_questions import Asking
    from promot_t5x.tasks.dialects import Dialect
    from promot_t5x.tasks.format import Format

    dialect = Dialect(kind="span_corruption", sentinel="both")
    return Asking(
        vocabulary=vocabulary, dialect=dialect, format=Format(), token_budget=1 << 20, unit="tokens"
    )


def _texts(names: Iterable[str], vocabulary: Any) -> Iterator[str]:
    """Yield the questions and answers of the tasks, some of each split."""
    from promot_t5x.data.questions import answer_text

    how = _asking(vocabulary)
    for name in names:
        (task,) = how.tasks(name, shots=None, module=None)
        for split in task.splits:
            for question in how.questions(task, split, _ROWS):
                yield from (question.text, answer_text(question))


def _trained(prefix: str, texts: Iterable[str], *, byte_fallback: bool) -> str:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=prefix,
        vocab_size=_PIECES,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=byte_fallback,
        character_coverage=0.99999 if byte_fallback else 0.9995,
        hard_vocab_limit=False,
        max_sentence_length=100_000,
        num_threads=2,
        minloglevel=2,
    )
    return f"{prefix}.model"


if __name__ == "__main__":
    main(sys.argv[1:])
