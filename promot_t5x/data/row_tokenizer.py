"""Tokens of any rows of a split by themselves, for pipelines that look at each row by itself."""

import concurrent.futures
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.data import row_functions
from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.data.ragged import FEATURES, joined_texts
from promot_t5x.data.rows import Rows, type_of_columns
from promot_t5x.data.tokenization import EXAMPLES_AT_ONCE, Pipeline, Tokens

_THREADS = min(8, os.cpu_count() or 1)


class RowTokenizer:
    """Tokenizes rows of a split in any order, several hundred at a time on every core.

    **Attributes:**

    - `looks_at_each`: whether the pipeline looks at each row by itself, whatever the others are;
      otherwise this is not to be called. It does where nothing but maps and filters stand between
      the rows and the examples, and their functions do not remember anything.
    - `keeps_each`: whether it makes one example of each row besides: there are no filters.
    """

    def __init__(self, pipeline: Pipeline, rows: Rows):
        """Trace the pipeline.

        **Arguments:**

        - `pipeline`: of the task whose split it is.
        - `rows`: of the split.
        """
        self._pipeline, self._rows = pipeline, rows

        # Of one row, outside of the function: a data set within it would be made at each call.
        source = rows.dataset(rows.columns(np.arange(1)))
        data = pipeline.dataset(source)
        steps = row_functions.steps_between(source, data)
        self.keeps_each = steps is not None and not any(step.is_filter for step in steps)
        many = steps if steps is not None and row_functions.can_take_many(steps, source) else None
        self._takes_many = many is not None
        self.looks_at_each = self.keeps_each or self._takes_many

        def run(columns: Any) -> Any:
            source = rows.dataset(columns)
            if many is not None:
                return row_functions.of_many(many, data.element_spec, source)
            return pipeline.dataset(source).ragged_batch(EXAMPLES_AT_ONCE).get_single_element()

        signature = [type_of_columns(rows)]
        function = import_tensorflow().function
        self._run = function(run, input_signature=signature, autograph=False)
        if self.looks_at_each:
            self._run.get_concrete_function()

    def __call__(self, rows: Int64[np.ndarray, " rows"]) -> Tokens:
        """Return the features of rows, by their places in the split, in the order given.

        Where epochs have demonstrations of their own, row n of epoch e is number e * rows + n.
        """
        parts = list(self.chunks(rows))
        return {name: joined_texts([part[name] for part in parts]) for name in FEATURES}

    def chunks(self, rows: Int64[np.ndarray, " rows"]) -> Iterator[Tokens]:
        """Return the same a chunk of rows at a time, as `tokenization.tokenized` gives them."""
        chunks = -(-len(rows) // EXAMPLES_AT_ONCE)
        parts = iter(np.array_split(rows, chunks) if chunks else [])
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
            waiting: deque[concurrent.futures.Future[Tokens]] = deque()
            for part in parts:
                waiting.append(threads.submit(self._chunk, part))
                if len(waiting) > _THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _chunk(self, rows: Int64[np.ndarray, " rows"]) -> Tokens:
        with self._pipeline.explained():
            epochs, places = np.divmod(rows, len(self._rows))
            columns = self._rows.columns(places)
            try:
                return self._pipeline.tokens(self._run(columns), epochs)
            except import_tensorflow().errors.OpError:
                if not self._takes_many:
                    raise
            # One after the other, they say which of them it is.
            data = self._pipeline.dataset(self._rows.dataset(columns))
            for batch in data.ragged_batch(len(rows)):
                return self._pipeline.tokens(batch, epochs)
            return {name: joined_texts([]) for name in FEATURES}
