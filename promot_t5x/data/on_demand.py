"""The examples of a split that is not tokenized whole: each when it is asked for.

Such are splits that are too large, and those whose examples have other demonstrations each epoch.

Tokens are kept as long as there is room for them. The lengths of all that was ever tokenized are
kept for good, 8 bytes an example, because rows are packed from lengths: a run that resumes finds
those of the steps that it has done.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from promot_t5x.data.example_store import ExampleStore
from promot_t5x.data.ragged import FEATURES, Ragged
from promot_t5x.errors import UserError

_TOKENS_KEPT = 1 << 25  # 128 MB of them
_EXAMPLES_AT_ONCE = 1 << 14

Tokenize = Callable[[Int64[np.ndarray, " examples"]], Mapping[str, Ragged]]


class OnDemandStore:
    """Examples that are tokenized when they are asked for. Safe to share between threads.

    **Attributes:**

    - `name`, `eos_ids`: as of `example_store.Store`.
    - `sample`: the examples, evenly spread, that stand for all where all would have to be read.
    - `max_token`, `truncation_counts`: of the sample.
    - `content_hash`: SHA-256 of the rows' content and of the sample's tokens.
    - `is_redrawn`: whether each epoch has other demonstrations: example n of epoch e has the number
      e * size + n.
    """

    def __init__(
        self,
        *,
        sample: Int64[np.ndarray, " sample"],
        sampled: ExampleStore,
        size: int,
        rows_hash: str,
        tokenize: Tokenize,
        lengths_file: Path | None,
        is_redrawn: bool = False,
    ):
        """Tokenize nothing yet.

        **Arguments:**

        - `sample`: numbers of the examples in `sampled`.
        - `sampled`: their tokens.
        - `size`: how many examples there are in all.
        - `rows_hash`: of the rows that the examples are made of.
        - `tokenize`: gives the features of some examples, in the order given.
        - `lengths_file`: keeps the lengths from run to run, and shares them between the processes
          of a host; None keeps them in memory.
        - `is_redrawn`: see above.
        """
        self.is_redrawn = is_redrawn
        self.name, self.eos_ids, self.sample = sampled.name, sampled.eos_ids, sample
        self.max_token, self.truncation_counts = sampled.max_token, sampled.truncation_counts
        content = f"{size} {rows_hash} {sampled.content_hash}"
        self.content_hash = hashlib.sha256(content.encode()).hexdigest()
        self._tokenize = tokenize
        self._size, self._lengths_file = size, lengths_file
        self._lengths = _open_lengths(lengths_file, size)
        # By example: inputs and targets, the oldest first.
        self._kept: OrderedDict[int, tuple[np.ndarray, ...]] = OrderedDict()
        self._tokens_kept = 0
        self._lock = threading.Lock()
        self._keep(sample, sampled.texts(np.arange(len(sampled))))

    def __len__(self) -> int:
        return self._size

    def lengths(
        self, examples: Int64[np.ndarray, " examples"]
    ) -> dict[str, Int64[np.ndarray, " examples"]]:
        """Tokens of some examples by feature, EOS counted."""
        with self._lock:
            self._make_room(examples)
            unknown = np.unique(examples[self._lengths[examples, 0] == 0])
            for start in range(0, len(unknown), _EXAMPLES_AT_ONCE):
                some = unknown[start : start + _EXAMPLES_AT_ONCE]
                self._keep(some, self._tokenize(some))
            found = self._lengths[examples].astype(np.int64) - 1
        return {name: found[:, column] for column, name in enumerate(FEATURES)}

    def texts(self, examples: Int64[np.ndarray, " examples"]) -> dict[str, Ragged]:
        """Tokens of some examples by feature, untrimmed, in the order given."""
        with self._lock:
            self._make_room(examples)
            numbers = examples.tolist()
            missing = np.array([n for n in set(numbers) if n not in self._kept], np.int64)
            read = dict(zip(missing.tolist(), _separate(self._tokenize(missing)), strict=True))
            parts = [read[n] if n in read else self._kept[n] for n in numbers]
            self._check(examples, parts)
        return {
            name: Ragged(
                np.concatenate([np.zeros(0, np.int32), *(part[column] for part in parts)]),
                np.array([len(part[column]) for part in parts], np.int64),
            )
            for column, name in enumerate(FEATURES)
        }

    def _make_room(self, examples: Int64[np.ndarray, " examples"]) -> None:
        """Let the lengths of the examples' epochs be kept too, of twice as many each time."""
        epochs = int(examples.max(initial=0)) // self._size + 1
        if epochs * self._size <= len(self._lengths):
            return
        room = _open_lengths(self._lengths_file, self._size << (epochs - 1).bit_length())
        if self._lengths_file is None:
            room[: len(self._lengths)] = self._lengths
        self._lengths = room

    def _check(
        self, examples: Int64[np.ndarray, " examples"], parts: list[tuple[np.ndarray, ...]]
    ) -> None:
        """Rows were packed by the lengths on file: other ones would not fit them."""
        known = self._lengths[examples]
        for number, lengths, texts in zip(examples.tolist(), known.tolist(), parts, strict=True):
            if lengths[0] and lengths != [len(text) + 1 for text in texts]:
                raise UserError(
                    f"Example {number} of {self.name} is not as long as the token cache says: its "
                    "task is not the same function of a row each time it is asked (or the cache is "
                    "damaged: remove it)."
                )

    def _keep(self, examples: np.ndarray, read: Mapping[str, Ragged]) -> None:
        for column, name in enumerate(FEATURES):
            self._lengths[examples, column] = read[name].lengths + 1
        for number, texts in zip(examples.tolist(), _separate(read), strict=True):
            self._kept[number] = texts
            self._tokens_kept += sum(map(len, texts))
        while self._tokens_kept > _TOKENS_KEPT:
            _, texts = self._kept.popitem(last=False)
            self._tokens_kept -= sum(map(len, texts))


def _separate(read: Mapping[str, Ragged]) -> list[tuple[np.ndarray, ...]]:
    """Take the examples apart: the features of each."""
    parts = (np.split(read[name].tokens, np.cumsum(read[name].lengths)) for name in FEATURES)
    # What follows the last one is empty.
    return list(zip(*(each[:-1] for each in parts), strict=True))


def _open_lengths(path: Path | None, size: int) -> Int32[np.ndarray, "examples features"]:
    """One more than the length of each feature; 0 where it is not known yet."""
    shape = (size, len(FEATURES))
    if path is None:
        return np.zeros(shape, np.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        # Processes that do this side by side find the same file, as long as it must be.
        missing = 4 * size * len(FEATURES) - os.fstat(file.fileno()).st_size
        file.write(bytes(max(missing, 0)))
    return np.memmap(path, np.int32, "r+", shape=shape)
