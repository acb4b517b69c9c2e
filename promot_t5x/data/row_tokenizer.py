"""Tokens of any rows of a split by themselves, for pipelines that look at each row by itself."""

import concurrent.futures
import itertools
import os
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.data.ragged import FEATURES, joined_texts
from promot_t5x.data.rows import Rows, type_of_columns
from promot_t5x.data.tokenise import EXAMPLES_AT_ONCE, Pipeline, Tokens

_THREADS = min(8, os.cpu_count() or 1)
# Data sets of `tf.data` that have an element for each of another one, in their order.
_ELEMENT_BY_ELEMENT = {"_MapDataset", "_ParallelMapDataset", "_OptionsDataset", "_PrefetchDataset"}
# Operations that may do something else for the same input another time.
_REMEMBERING = {
    "PyFunc", "EagerPyFunc", "Multinomial", "RandomGamma", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
}  # fmt: skip


class RowTokenizer:
    """Tokenizes rows of a split in any order, several hundred at a time on every core.

    **Attributes:**

    - `looks_at_each`: whether the pipeline makes one example of each row, whatever the others are;
      otherwise this is not to be called. It does where nothing but maps stand between the rows and
      the examples, and what is mapped does not remember anything.
    """

    def __init__(self, pipeline: Pipeline, rows: Rows):
        """Trace the pipeline.

        **Arguments:**

        - `pipeline`: of the task whose split it is.
        - `rows`: of the split.
        """
        self._pipeline, self._rows = pipeline, rows
        self.looks_at_each = False

        def run(columns: Any) -> Any:
            source = rows.dataset(columns)
            data = pipeline.dataset(source)
            self.looks_at_each = _looks_at_each(data, source)
            return data.ragged_batch(EXAMPLES_AT_ONCE).get_single_element()

        signature = [type_of_columns(rows)]
        function = import_tensorflow().function
        self._run = function(run, input_signature=signature, autograph=False)
        self._run.get_concrete_function()

    def __call__(self, rows: Int64[np.ndarray, " rows"]) -> Tokens:
        """The features of rows, by their places in the split, in the order given."""
        parts = list(self.chunks(rows))
        return {name: joined_texts([part[name] for part in parts]) for name in FEATURES}

    def chunks(self, rows: Int64[np.ndarray, " rows"]) -> Iterator[Tokens]:
        """The same a chunk of rows at a time, as `tokenise.tokenised` gives them."""
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
            return self._pipeline.tokens(self._run(self._rows.columns(rows)))


def _looks_at_each(data: Any, source: Any) -> bool:
    while data is not source:
        inputs = data._inputs()
        known = type(data).__name__ in _ELEMENT_BY_ELEMENT
        if not known or len(inputs) != 1 or not _REMEMBERING.isdisjoint(_operations(data)):
            return False
        (data,) = inputs
    return True


def _operations(data: Any) -> Iterator[str]:
    """What the function of a map does, and the functions within it."""
    mapped = getattr(data, "_map_func", None)
    if mapped is None:
        return iter(())
    graph = mapped.function.graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(each.node_def for each in graph.library.function))
    return (node.op for node in nodes)
