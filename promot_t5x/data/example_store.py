"""The tokenized examples of one (task, split), all of them at hand.

Kept as two flat int32 arrays of tokens and the offsets of the examples in them: 4 bytes a token
and 16 bytes an example. On disk they are mapped into memory.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from promot_t5x.data import cache_folder
from promot_t5x.data.ragged import FEATURES, Ragged, spans

_META = "store.json"


@runtime_checkable
class Store(Protocol):
    """What batches are made of: the examples of a split by number, however they come about.

    **Attributes:**

    - `name`: task and split, as in `rte/train`.
    - `eos_ids`: by feature, the end-of-sequence id, or None if the vocabulary has none.
    - `sample`: the examples that stand for all where all would have to be read.
    - `max_token`: the largest id in the sample.
    - `content_hash`: equal on hosts that hold equal data.
    - `truncation_counts`: how many examples of the sample lost what of their prompts.
    - `is_redrawn`: whether each epoch has other demonstrations: example n of epoch e has the number
      e * size + n, where size is the length of the store.
    """

    @property
    def name(self) -> str:
        """The task and split, for messages."""
        ...

    @property
    def eos_ids(self) -> Mapping[str, int | None]:
        """The id that ends the texts of each feature, if there is one."""
        ...

    @property
    def sample(self) -> Int64[np.ndarray, " sample"]:
        """The examples that were tokenized to look at."""
        ...

    @property
    def max_token(self) -> int:
        """The largest id among the tokens looked at."""
        ...

    @property
    def content_hash(self) -> str:
        """A hash of what the examples are made from."""
        ...

    @property
    def truncation_counts(self) -> Mapping[str, int]:
        """How many examples of the sample lost what of their prompts."""
        ...

    @property
    def is_redrawn(self) -> bool:
        """Whether each epoch has other demonstrations."""
        ...

    def __len__(self) -> int: ...

    def lengths(
        self, examples: Int64[np.ndarray, " examples"]
    ) -> dict[str, Int64[np.ndarray, " examples"]]:
        """Tokens of some examples by feature, EOS counted."""
        ...

    def texts(self, examples: Int64[np.ndarray, " examples"]) -> dict[str, Ragged]:
        """Tokens of some examples by feature, untrimmed, in the order given."""
        ...


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
        truncation_counts: how many examples lost what of their prompts: `{"articles cut": 12}`.

    """

    name: str
    tokens: Mapping[str, Int32[np.ndarray, " tokens"]]
    offsets: Mapping[str, Int64[np.ndarray, " examples_and_end"]]
    eos_ids: Mapping[str, int | None]
    max_token: int
    content_hash: str
    truncation_counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets["inputs"]) - 1

    @property
    def is_redrawn(self) -> bool:
        """Whether each epoch has other demonstrations: here, none has."""
        return False

    @property
    def sample(self) -> Int64[np.ndarray, " examples"]:
        """The examples that stand for all: here, all."""
        return np.arange(len(self))

    def lengths(
        self, examples: Int64[np.ndarray, " examples"]
    ) -> dict[str, Int64[np.ndarray, " examples"]]:
        """Tokens of some examples by feature, EOS counted."""
        return {
            name: offsets[examples + 1] - offsets[examples]
            for name, offsets in self.offsets.items()
        }

    def texts(self, examples: Int64[np.ndarray, " examples"]) -> dict[str, Ragged]:
        """Tokens of some examples by feature, untrimmed, in the order given."""
        return {
            name: Ragged(self.tokens[name][spans(self.offsets[name][examples], lengths)], lengths)
            for name, lengths in self.lengths(examples).items()
        }

    def example(
        self, index: int
    ) -> tuple[Int32[np.ndarray, " inputs"], Int32[np.ndarray, " targets"]]:
        """Return inputs and targets of one example, untrimmed."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} examples, so none numbered {index}")
        starts = ((name, self.offsets[name][index : index + 2]) for name in FEATURES)
        inputs, targets = (np.array(self.tokens[name][a:b]) for name, (a, b) in starts)
        return inputs, targets


class GrowingTexts(contextlib.ExitStack):
    """Texts that come in parts; their tokens lie in a file without a name, until it is closed."""

    def __init__(self, directory: Path | None):
        """Hold no text yet.

        **Arguments:**

        - `directory`: where the file is; None keeps the tokens in memory.
        """
        super().__init__()
        self._memory = io.BytesIO() if directory is None else None
        file = TemporaryFile(dir=directory) if self._memory is None else self._memory  # noqa: SIM115
        self._file: Any = self.enter_context(file)
        self._lengths = [np.zeros(0, np.int64)]

    def add(self, texts: Ragged) -> None:
        """Put texts behind those that are there."""
        self._file.write(np.ascontiguousarray(texts.tokens, np.int32).data)
        self._lengths.append(texts.lengths)

    def texts(self) -> Ragged:
        """Return all texts, which last when this is closed."""
        lengths = np.concatenate(self._lengths)
        if self._memory is not None:
            return Ragged(np.frombuffer(self._memory.getvalue(), np.int32), lengths)
        self._file.flush()
        # Nothing cannot be mapped.
        tokens = np.memmap(self._file, np.int32, "r") if lengths.any() else np.zeros(0, np.int32)
        return Ragged(tokens, lengths)


def store_of(
    name: str,
    joined: Mapping[str, Ragged],
    eos_ids: Mapping[str, int | None],
    truncation_counts: Mapping[str, int],
) -> ExampleStore:
    """Return a store of examples.

    **Arguments:**

    - `name`, `eos_ids`, `truncation_counts`: of the store.
    - `joined`: by feature, the texts of the examples.
    """
    tokens = {feature: texts.tokens for feature, texts in joined.items()}
    offsets = {
        feature: np.concatenate([[0], np.cumsum(texts.lengths)]).astype(np.int64)
        for feature, texts in joined.items()
    }
    return ExampleStore(
        name=name,
        tokens=tokens,
        offsets=offsets,
        eos_ids=eos_ids,
        max_token=int(max(array.max(initial=0) for array in tokens.values())),
        content_hash=_content_hash(tokens, offsets),
        truncation_counts=truncation_counts,
    )


def save(store: ExampleStore, folder: Path) -> None:
    """Put a store into a folder of the token cache."""
    cache_folder.publish(folder, lambda building: _write(store, building))


def load(folder: Path) -> ExampleStore | None:
    """Return the store in a folder; None where there is none, or a damaged one, which goes."""
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
        cache_folder.discard(folder)
        return None
    return ExampleStore(
        name=meta["name"],
        tokens=tokens,
        offsets=offsets,
        eos_ids=meta["eos_ids"],
        max_token=meta["max_token"],
        content_hash=meta["content_hash"],
        truncation_counts=meta.get("lost", {}),
    )


def _write(store: ExampleStore, folder: Path) -> None:
    for feature in FEATURES:
        cache_folder.write_array(folder / f"{feature}.npy", store.tokens[feature])
        cache_folder.write_array(folder / f"{feature}_offsets.npy", store.offsets[feature])
    meta = {
        "name": store.name,
        "examples": len(store),
        "tokens": {feature: len(store.tokens[feature]) for feature in FEATURES},
        "eos_ids": dict(store.eos_ids),
        "max_token": store.max_token,
        "content_hash": store.content_hash,
        "lost": dict(store.truncation_counts),
    }
    cache_folder.write_text(folder / _META, json.dumps(meta, indent=2))


def _content_hash(tokens: Mapping[str, np.ndarray], offsets: Mapping[str, np.ndarray]) -> str:
    content = hashlib.sha256()
    for feature in FEATURES:
        content.update(np.ascontiguousarray(offsets[feature]).data)
        content.update(np.ascontiguousarray(tokens[feature]).data)
    return content.hexdigest()
