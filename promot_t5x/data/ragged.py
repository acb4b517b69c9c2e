"""Sequences of different lengths as flat arrays, and the features that every example has."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

FEATURES = ("inputs", "targets")


class Ragged(NamedTuple):
    """Sequences of different lengths: their tokens in a row, and the length of each."""

    tokens: Int32[np.ndarray, " tokens"]
    lengths: Int64[np.ndarray, " sequences"]

    @property
    def starts(self) -> Int64[np.ndarray, " sequences"]:
        """Where each sequence starts in `tokens`."""
        return np.cumsum(self.lengths) - self.lengths  # type: ignore[no-any-return]

    def take(self, chosen: Int64[np.ndarray, " chosen"]) -> "Ragged":
        """Return the chosen sequences, in the order given."""
        lengths = self.lengths[chosen]
        return Ragged(self.tokens[spans(self.starts[chosen], lengths)], lengths)


def joined_texts(parts: Sequence[Ragged]) -> Ragged:
    """Return the sequences of all parts, in their order."""
    if not parts:
        return Ragged(np.zeros(0, np.int32), np.zeros(0, np.int64))
    return Ragged(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def spans(
    starts: Int64[np.ndarray, " spans"], lengths: Int64[np.ndarray, " spans"]
) -> Int64[np.ndarray, " places"]:
    """start, start + 1, ..., start + length - 1 of each span, one span after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
