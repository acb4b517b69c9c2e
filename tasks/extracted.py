"""Exact match of what regular expressions find in an answer, as of GSM8K's final numbers."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from promot_t5x.tasks.metrics import MeanOfExamples, References, references


@dataclasses.dataclass(frozen=True)
class Extracted(MeanOfExamples):
    """A metric: for each filter, the share of answers of which it finds what the target says.

    The answer is what a filter finds, with `ignored` taken out of it; the target the reference
    with `ignored` taken out. Case does not count.

    **Attributes:**

    - `filters`: (name of the score, regular expression, which of its matches: 0 is the first, -1
      the last), the primary score first. Of an expression with groups, the match is the first
      group that found something. Where nothing matches, the answer is wrong.
    - `ignored`: regular expressions that are taken out, one after the other.
    """

    filters: Sequence[Sequence[Any]]
    ignored: Sequence[str] = ()
    registered = "extracted"

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", tuple((n, p, k) for n, p, k in self.filters))
        object.__setattr__(self, "ignored", tuple(self.ignored))
        if not self.filters:
            raise ValueError("no filters: name one or more")

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the filters."""
        return tuple(name for name, _, _ in self.filters)

    def shares(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Iterable[Sequence[float]]:
        """Whether each filter finds a right answer."""
        for target, prediction in zip(targets, predictions, strict=True):
            wanted = {self._bare(reference) for reference in references(target)}
            found = (_found(pattern, which, prediction) for _, pattern, which in self.filters)
            yield tuple(each is not None and self._bare(each) in wanted for each in found)

    def _bare(self, text: str) -> str:
        for pattern in self.ignored:
            text = re.sub(pattern, "", text)
        return text.lower()


def _found(pattern: str, which: int, text: str) -> str | None:
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    match = matches[which]
    groups = match.groups() or (match[0],)
    return next((group.strip() for group in groups if group), "")
