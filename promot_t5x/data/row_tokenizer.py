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
from promot_t5x.data.tokenization import EXAMPLES_AT_ONCE, Pipeline, Tokens

_THREADS = min(8, os.cpu_count() or 1)
# Data sets of `tf.data` that have an element for each of another one, in their order.
_ELEMENT_BY_ELEMENT = {"_MapDataset", "_ParallelMapDataset", "_OptionsDataset", "_PrefetchDataset"}
# Operations that may do something else for the same input another time.
_REMEMBERING = {
    "PyFunc", "EagerPyFunc", "Multinomial", "RandomGamma", "RandomPoissonV2", "RandomShuffle",
    "RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal",
}  # fmt: skip
# Operations that make of many rows at once what they make of each.
_OF_TEXT = {"Const", "Identity", "NoOp", "Pack", "Placeholder", "StringJoin"}


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

        # Of one row, outside of the function: a data set within it would be made at each call.
        source = rows.dataset(rows.columns(np.arange(1)))
        data = pipeline.dataset(source)
        maps = _maps(data, source)
        self.looks_at_each = maps is not None
        at_once = maps is not None and _is_of_text(maps, source)

        def run(columns: Any) -> Any:
            source = rows.dataset(columns)
            if at_once:
                return _at_once(maps, data.element_spec, source)
            return _one_by_one(pipeline.dataset(source))

        signature = [type_of_columns(rows)]
        function = import_tensorflow().function
        self._run = function(run, input_signature=signature, autograph=False)
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
            return self._pipeline.tokens(self._run(self._rows.columns(places)), epochs)


def _maps(data: Any, source: Any) -> list[Any] | None:
    """Give the functions that make a data set of another, the first one first.

    None where more than functions of one element each, which remember nothing, stand between them.
    """
    functions: list[Any] = []
    while data is not source:
        inputs = data._inputs()
        if type(data).__name__ not in _ELEMENT_BY_ELEMENT or len(inputs) != 1:
            return None
        if hasattr(data, "_map_func"):
            functions.insert(0, data._map_func.function)
        (data,) = inputs
    operations = set(itertools.chain(*map(_operations, functions)))
    return functions if _REMEMBERING.isdisjoint(operations) else None


def _one_by_one(data: Any) -> Any:
    return data.ragged_batch(EXAMPLES_AT_ONCE).get_single_element()


def _is_of_text(functions: list[Any], source: Any) -> bool:
    """Whether functions only put text together, and the rows have no lists."""
    columns = getattr(source, "_tensors", None)
    if columns is None or any(column.dtype == import_tensorflow().variant for column in columns):
        return False
    return set(itertools.chain(*map(_operations, functions))) <= _OF_TEXT


def _at_once(functions: list[Any], spec: Any, source: Any) -> Any:
    """Apply functions that only put text together to all rows in one go: a tenth of the time."""
    tf = import_tensorflow()

    def composed(values: list[Any]) -> list[Any]:
        for function in functions:
            values = tf.nest.flatten(function(*values), expand_composites=True)
        return values

    return tf.nest.pack_sequence_as(spec, tf.vectorized_map(composed, list(source._tensors)))


def _operations(function: Any) -> Iterator[str]:
    """Name what a function does, and the functions within it."""
    graph = function.graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(each.node_def for each in graph.library.function))
    return (node.op for node in nodes)
