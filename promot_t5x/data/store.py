"""The tokenised examples of one (task, split): made once, read at random.

Kept as two flat int32 arrays of tokens and the offsets of the examples in them: 4 bytes a token
and 16 bytes an example. With a cache directory they live on disk, are mapped into memory, and
the next run finds them by a hash of what defines them (see `fingerprint`). A store appears in
the directory by one rename, so a killed build leaves no half store and builders that run side
by side do no harm.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from promot_t5x.data.fingerprint import digest, task_definition
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.tokenise import FEATURES, LOSSES, depends_on_lengths, tokenised
from promot_t5x.errors import UserError

_META = "store.json"
_ABANDONED_SEC = 24 * 3600
_SILENT_SEC = 5.0


@dataclass(frozen=True, kw_only=True)
class TokenisingProgress:
    """How far the tokenising of a split has come.

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


ProgressFn = Callable[[TokenisingProgress], None]


class StderrProgress:
    """Report on stderr, at most every five seconds; a quick build is never mentioned."""

    def __init__(self):
        self._next_sec = _SILENT_SEC

    def __call__(self, progress: TokenisingProgress) -> None:
        spoken = self._next_sec > _SILENT_SEC
        if progress.elapsed_sec < self._next_sec and not (progress.done and spoken):
            return
        self._next_sec = progress.elapsed_sec + _SILENT_SEC
        of = f" of {progress.total:,}" if progress.total and not progress.done else ""
        rate = progress.examples / progress.elapsed_sec
        print(
            f"tokenising {progress.name}: {progress.examples:,}{of} examples, {rate:,.0f}/s",
            file=sys.stderr,
            flush=True,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleStore:
    """Token ids of the examples of one split, in the order of the source.

    Attributes:
        name: task and split, as in `rte/train`.
        tokens: all tokens of a feature ('inputs', 'targets'), example after example.
        offsets: where each example starts in `tokens`, and at last where the last one ends.
        eos_ids: by feature, the end-of-sequence id, or None if the vocabulary has none.
        max_token: the largest id of all.
        content_hash: SHA-256 of the tokens: equal on hosts that hold equal data.
        lost: how many examples lost what of their prompts, as in `{"articles cut": 12}`.
    """

    name: str
    tokens: Mapping[str, Int32[np.ndarray, " tokens"]]
    offsets: Mapping[str, Int64[np.ndarray, " examples_and_end"]]
    eos_ids: Mapping[str, int | None]
    max_token: int
    content_hash: str
    lost: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets["inputs"]) - 1

    def lengths(self, feature: str) -> Int64[np.ndarray, " examples"]:
        """Tokens of each example's `feature`, its EOS counted."""
        return np.diff(self.offsets[feature])

    def example(
        self, index: int
    ) -> tuple[Int32[np.ndarray, " inputs"], Int32[np.ndarray, " targets"]]:
        """Inputs and targets of one example, untrimmed."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, so none numbered {index}")
        starts = ((name, self.offsets[name][index : index + 2]) for name in FEATURES)
        inputs, targets = (np.array(self.tokens[name][a:b]) for name, (a, b) in starts)
        return inputs, targets


def open_store(
    bound: BoundTask,
    split: str,
    *,
    cache_dir: str | os.PathLike | None = None,
    text_lengths: Mapping[str, int] | None = None,
    progress: ProgressFn | None = None,
) -> ExampleStore:
    """The examples of a task's split, from the cache or tokenised now.

    Args:
        bound: the task.
        split: the name of one of its splits.
        cache_dir: a local directory for stores; None keeps the examples in memory only.
        text_lengths: room for text by feature, the prompt taken off; needed only by tasks with
            a preprocessor that asks for `sequence_length`.
        progress: called after every few hundred examples; None reports on stderr.

    Raises `UserError` for a split that the task does not have, one without examples, a task
    that yields no token ids, and a cache directory that is not local.
    """
    bound.check_split(split)
    lengths = _lengths_if_needed(bound, text_lengths)
    progress = progress or StderrProgress()
    if cache_dir is None:
        return _build(bound, split, lengths, progress)
    if "://" in str(cache_dir):
        raise UserError(
            f"The token cache {str(cache_dir)!r} must be a local directory, because the tokens "
            "are mapped into memory: give a path on this host's disk."
        )
    definition = task_definition(bound.task, split, lengths)
    folder = Path(cache_dir) / f"{_file_name(bound.name)}-{split}-{digest(definition)}"
    store = _load(folder)
    if store is None:
        store = _build(bound, split, lengths, progress)
        _save(store, folder)
        # The mapped files rather than the arrays just built, which can then be freed.
        store = _load(folder) or store
    return store


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
    bound: BoundTask, split: str, lengths: Mapping[str, int] | None, progress: ProgressFn
) -> ExampleStore:
    parts: dict[str, list] = {name: [] for name in FEATURES}
    lost: dict[str, int] = {}
    name, total = f"{bound.name}/{split}", bound.num_input_examples(split)
    start, examples = time.monotonic(), 0

    def report(done: bool) -> None:
        elapsed = max(time.monotonic() - start, 1e-9)
        progress(
            TokenisingProgress(
                name=name, examples=examples, total=total, elapsed_sec=elapsed, done=done
            )
        )

    for chunk in tokenised(bound.task, split, lengths):
        for feature in FEATURES:
            parts[feature].append(chunk[feature])
        for loss in LOSSES.keys() & chunk.keys():
            count = int(np.count_nonzero(chunk[loss].tokens))
            lost[LOSSES[loss]] = lost.get(LOSSES[loss], 0) + count
        examples += len(chunk["inputs"].lengths)
        report(False)
    report(True)
    if examples == 0:
        raise UserError(
            f"Split {split!r} of task {bound.name!r} has no examples after preprocessing."
        )
    return _store_of(bound, name, parts, lost)


def _store_of(
    bound: BoundTask, name: str, parts: Mapping[str, list], lost: Mapping[str, int]
) -> ExampleStore:
    tokens = {
        feature: np.concatenate([part.tokens for part in parts[feature]]) for feature in FEATURES
    }
    lengths = {
        feature: np.concatenate([part.lengths for part in parts[feature]]) for feature in FEATURES
    }
    offsets = {
        feature: np.concatenate([[0], np.cumsum(lengths[feature])]).astype(np.int64)
        for feature in FEATURES
    }
    features = bound.task.output_features
    return ExampleStore(
        name=name,
        tokens=tokens,
        offsets=offsets,
        eos_ids={feature: features[feature].vocabulary.eos_id for feature in FEATURES},
        max_token=int(max(array.max(initial=0) for array in tokens.values())),
        content_hash=_content_hash(tokens, offsets),
        lost=lost,
    )


def _content_hash(tokens: Mapping[str, np.ndarray], offsets: Mapping[str, np.ndarray]) -> str:
    content = hashlib.sha256()
    for feature in FEATURES:
        content.update(np.ascontiguousarray(offsets[feature]).data)
        content.update(np.ascontiguousarray(tokens[feature]).data)
    return content.hexdigest()


def _save(store: ExampleStore, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    building = folder.parent / f".building-{uuid.uuid4().hex}"
    building.mkdir()  # with the user's umask, as everything else
    for feature in FEATURES:
        _write(building / f"{feature}.npy", store.tokens[feature])
        _write(building / f"{feature}_offsets.npy", store.offsets[feature])
    meta = {
        "name": store.name,
        "examples": len(store),
        "tokens": {feature: len(store.tokens[feature]) for feature in FEATURES},
        "eos_ids": dict(store.eos_ids),
        "max_token": store.max_token,
        "content_hash": store.content_hash,
        "lost": dict(store.lost),
    }
    with open(building / _META, "w") as file:
        json.dump(meta, file, indent=2)
        _settle(file)
    try:
        building.rename(folder)
    except OSError:
        # Another builder of the same store was quicker: its files are the same.
        shutil.rmtree(building)


def _write(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
        _settle(file)


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _load(folder: Path) -> ExampleStore | None:
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / _META).read_text())
        tokens = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FEATURES}
        offsets = {name: np.load(folder / f"{name}_offsets.npy") for name in FEATURES}
        sound = all(
            len(offsets[name]) == meta["examples"] + 1
            and offsets[name][-1] == len(tokens[name]) == meta["tokens"][name]
            for name in FEATURES
        )
    except (OSError, ValueError, KeyError, EOFError):
        sound = False
    if not sound:
        _set_aside(folder)
        return None
    return ExampleStore(
        name=meta["name"],
        tokens=tokens,
        offsets=offsets,
        eos_ids=meta["eos_ids"],
        max_token=meta["max_token"],
        content_hash=meta["content_hash"],
        lost=meta.get("lost", {}),
    )


def _set_aside(folder: Path) -> None:
    print(f"the token cache {folder} is damaged and is made anew", file=sys.stderr, flush=True)
    aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        folder.rename(aside / folder.name)
    except FileNotFoundError:
        # Another process has just done the same.
        pass
    shutil.rmtree(aside)


def _remove_abandoned(directory: Path) -> None:
    for path in directory.glob(".building-*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SEC
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)


def _file_name(task_name: str) -> str:
    # SeqIO allows colons in task names; file systems and shells like them less.
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in task_name)
