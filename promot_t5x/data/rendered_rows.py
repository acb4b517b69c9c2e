"""The rendered rows of a split, held in memory, whose prompts are put together when asked for."""

import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from promot_t5x.data.ragged import FEATURES, joined_texts
from promot_t5x.data.rows import Rows
from promot_t5x.data.tokenization import EXAMPLES_AT_ONCE, Pipeline, Tokens, rendered
from promot_t5x.tasks.encoding import RENDERED


class RenderedRows:
    """Tokens of any rows of a split in any epoch, for tasks whose demonstrations change with it."""

    def __init__(self, pipeline: Pipeline, rows: Rows | None):
        """Read nothing yet.

        **Arguments:**

        - `pipeline`: of the task whose split it is.
        - `rows`: of the split, where they can be had without its source, which is slower.
        """
        self._pipeline, self._rows = pipeline, rows

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        parts = list(rendered(self._pipeline, self._rows))
        if not parts:
            return {name: np.zeros(0, object) for name in RENDERED}
        return {name: np.concatenate([part[name] for part in parts]) for name in RENDERED}

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __call__(self, numbers: Int64[np.ndarray, " numbers"]) -> Tokens:
        """Return the features of some rows; row n of epoch e is number e * rows + n."""
        parts = list(self.chunks(numbers))
        return {name: joined_texts([part[name] for part in parts]) for name in FEATURES}

    def first_epoch(self) -> Iterator[Tokens]:
        """Yield the features of all rows in the first epoch."""
        return self.chunks(np.arange(len(self)))

    def chunks(self, numbers: Int64[np.ndarray, " numbers"]) -> Iterator[Tokens]:
        """Yield the same some hundred at a time, as `tokenization.tokenized` does."""
        for start in range(0, len(numbers), EXAMPLES_AT_ONCE):
            epochs, places = np.divmod(numbers[start : start + EXAMPLES_AT_ONCE], len(self))
            rows = {name: column[places] for name, column in self._columns.items()}
            yield self._pipeline.encoded(rows, epochs)
