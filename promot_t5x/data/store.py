"""The examples of one (task, split): tokenized once, or each when it is asked for.

A small split is tokenized whole; with a cache directory its store is kept there and found again
by a hash of what defines it (see `fingerprint`). Of a large one, whose rows can be read in any
order and become one example each, only what a run asks for is tokenized (`on_demand`): how many
examples there are is known without reading them. A large split that is read only from its first
row to its last, or whose preprocessors leave rows out, is tokenized whole too, into the cache and
not into memory.

Where demonstrations are drawn anew each epoch, as training does, the first epoch stands for all and
the others are tokenized when they are asked for.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promot_t5x.data import example_store
from promot_t5x.data.example_store import ExampleStore, GrowingTexts, Store
from promot_t5x.data.fingerprint import digest, task_definition
from promot_t5x.data.on_demand import OnDemandStore
from promot_t5x.data.ragged import FEATURES
from promot_t5x.data.rendered_rows import RenderedRows
from promot_t5x.data.row_tokenizer import RowTokenizer
from promot_t5x.data.rows import open_rows
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.tokenization import (
    TRUNCATIONS,
    Pipeline,
    Tokens,
    depends_on_lengths,
    shows_demonstrations,
    tokenized,
)
from promot_t5x.errors import UserError

# Splits of more rows than this are tokenized on demand, and looked at by a sample.
_MOST_ROWS = 1 << 15
# Tracing a pipeline for any rows takes longer than reading so few from the first to the last.
_FEW_ROWS = 1 << 11
_SAMPLE = 1 << 13
_SILENT_SEC = 5.0


@dataclass(frozen=True, kw_only=True)
class TokenizingProgress:
    """How far the tokenizing of a split has come.

    Attributes:
        name: task and split.
        examples: examples done.
        total: raw examples of the split, where the source knows; preprocessors may change it.
        elapsed_sec: seconds since the start.
        done: whether this is the last report.

    """

    name: str
    examples: int
    total: int | None
    elapsed_sec: float
    done: bool


ProgressFn = Callable[[TokenizingProgress], None]


class StderrProgress:
    """Report on stderr, at most every five seconds; a quick build is never mentioned."""

    def __init__(self) -> None:
        self._next_sec = _SILENT_SEC

    def __call__(self, progress: TokenizingProgress) -> None:
        """Print a line if it is time to, and one at the end."""
        spoken = self._next_sec > _SILENT_SEC
        if progress.elapsed_sec < self._next_sec and not (progress.done and spoken):
            return
        self._next_sec = progress.elapsed_sec + _SILENT_SEC
        of = f" of {progress.total:,}" if progress.total and not progress.done else ""
        rate = progress.examples / progress.elapsed_sec
        print(
            f"tokenizing {progress.name}: {progress.examples:,}{of} examples, {rate:,.0f}/s",
            file=sys.stderr,
            flush=True,
        )


def open_store(
    bound: BoundTask,
    split: str,
    *,
    cache_dir: str | os.PathLike | None = None,  # type: ignore[type-arg]
    text_lengths: Mapping[str, int] | None = None,
    shot_seed: int | None = None,
    progress: ProgressFn | None = None,
) -> Store:
    """Return the examples of a task's split, from the cache or tokenized now.

    Args:
        bound: the task.
        split: the name of one of its splits.
        cache_dir: a local directory for stores; None keeps the examples in memory only.
        text_lengths: room for text by feature, the prompt taken off; needed only by tasks with
            a preprocessor that asks for `sequence_length`.
        shot_seed: in training, draws other demonstrations each epoch; None shows each example
            those that it has in evaluation.
        progress: called after every few hundred examples; None reports on stderr.

    Raises `UserError` for a split that the task does not have, one without examples, a task
    that yields no token ids, and a cache directory that is not local.

    """
    bound.check_split(split)
    lengths = _lengths_if_needed(bound, text_lengths)
    progress = progress or StderrProgress()
    seed = shot_seed if shows_demonstrations(bound.task) else None
    folder = _folder(bound, split, lengths, seed, cache_dir)
    if seed is None and folder is not None and (store := example_store.load(folder)) is not None:
        return store
    pipeline = Pipeline(bound.task, split, lengths, seed)
    rows = open_rows(bound.task.source, split, folder.parent if folder else None)
    lengths_file = folder.with_name(f"{folder.name}.lengths") if folder else None
    is_redrawn = seed is not None
    tokenize = None
    few = _MOST_ROWS if is_redrawn else min(_FEW_ROWS, _MOST_ROWS)
    if rows is not None and len(rows) > few:
        tokenize = RowTokenizer(pipeline, rows)
        if tokenize.keeps_each and len(rows) > _MOST_ROWS:
            sample = np.arange(_SAMPLE) * len(rows) // _SAMPLE
            return OnDemandStore(
                sample=sample,
                sampled=_build(bound, split, tokenize.chunks(sample), progress),
                size=len(rows),
                rows_hash=rows.content_hash,
                tokenize=tokenize,
                lengths_file=lengths_file,
                is_redrawn=is_redrawn,
            )
    if is_redrawn:
        held = RenderedRows(pipeline, rows)
        first = _kept(bound, split, held.first_epoch, folder, progress)
        return OnDemandStore(
            sample=first.sample,
            sampled=first,
            size=len(first),
            rows_hash="",  # the first epoch's tokens are of all rows
            tokenize=held,
            lengths_file=lengths_file,
            is_redrawn=is_redrawn,
        )

    def chunks() -> Iterator[Tokens]:
        if rows is None or tokenize is None or not tokenize.looks_at_each:
            return tokenized(pipeline, rows)
        return tokenize.chunks(np.arange(len(rows)))

    return _kept(bound, split, chunks, folder, progress)


def _folder(
    bound: BoundTask,
    split: str,
    lengths: Mapping[str, int] | None,
    seed: int | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Path | None:
    """Return where the store is kept in the cache, if there is one."""
    if cache_dir is None:
        return None
    if "://" in str(cache_dir):
        raise UserError(
            f"The token cache {str(cache_dir)!r} must be a local directory, because the tokens "
            "are mapped into memory: give a path on this host's disk."
        )
    definition = task_definition(bound.task, split, lengths)
    if seed is not None:
        definition["shot_seed"] = seed
    return Path(cache_dir) / f"{_file_name(f'{bound.name}-{split}')}-{digest(definition)}"


def _kept(
    bound: BoundTask,
    split: str,
    chunks: Callable[[], Iterator[Tokens]],
    folder: Path | None,
    progress: ProgressFn,
) -> ExampleStore:
    """Return the store in a folder, made and put there where there is none."""
    if folder is None:
        return _build(bound, split, chunks(), progress)
    if (found := example_store.load(folder)) is not None:
        return found
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = _build(bound, split, chunks(), progress, folder.parent)
    example_store.save(made, folder)
    # The mapped files rather than what was just built, which can then go.
    return example_store.load(folder) or made


def _lengths_if_needed(
    bound: BoundTask, text_lengths: Mapping[str, int] | None
) -> Mapping[str, int] | None:
    if not depends_on_lengths(bound.task):
        return None
    if text_lengths is None:
        raise UserError(
            f"A preprocessor of task {bound.name!r} asks for `sequence_length`, and no feature "
            "lengths were given: set TASK_FEATURE_LENGTHS."
        )
    return {name: int(text_lengths[name]) for name in FEATURES}


def _build(
    bound: BoundTask,
    split: str,
    chunks: Iterable[Tokens],
    progress: ProgressFn,
    directory: Path | None = None,
) -> ExampleStore:
    """Return the store of some chunks; its tokens lie in a file without a name, or in memory."""
    truncation_counts: Counter[str] = Counter()
    name, total = f"{bound.name}/{split}", bound.num_input_examples(split)
    start, examples = time.monotonic(), 0

    def report(done: bool) -> None:
        elapsed = max(time.monotonic() - start, 1e-9)
        progress(
            TokenizingProgress(
                name=name, examples=examples, total=total, elapsed_sec=elapsed, done=done
            )
        )

    with GrowingTexts(directory) as inputs, GrowingTexts(directory) as targets:
        parts = dict(zip(FEATURES, (inputs, targets), strict=True))
        for chunk in chunks:
            for feature, part in parts.items():
                part.add(chunk[feature])
            for loss in TRUNCATIONS.keys() & chunk.keys():
                truncation_counts[TRUNCATIONS[loss]] += int(np.count_nonzero(chunk[loss].tokens))
            examples += len(chunk["inputs"].lengths)
            report(False)
        texts = {feature: part.texts() for feature, part in parts.items()}
    report(True)
    if examples == 0:
        raise UserError(
            f"Split {split!r} of task {bound.name!r} has no examples after preprocessing."
        )
    features = bound.task.output_features
    eos_ids = {feature: features[feature].vocabulary.eos_id for feature in FEATURES}
    return example_store.store_of(name, texts, eos_ids, truncation_counts)


def _file_name(task_name: str) -> str:
    # SeqIO allows colons in task names; file systems and shells like them less.
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in task_name)
