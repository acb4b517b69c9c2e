"""The raw rows of a split in any order, where its files allow that.

A `Rows` gives columns of any rows by their places, and makes of such columns the data set that
the source itself would have made of them.
"""

import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from promot_t5x.data.lazy import import_tensorflow


@runtime_checkable
class Rows(Protocol):
    """Random access to the rows of a split, in the order in which its source reads them.

    **Attributes:**

    - `content_hash`: SHA-256 of the rows, and a slice's bounds; equal wherever they are equal,
      under any path.
    """

    content_hash: str

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def columns(self, rows: Int64[np.ndarray, " rows"]) -> Any:
        """Return some rows as a nest of tensors (dense or ragged), each with a value a row."""
        ...

    def dataset(self, columns: Any) -> Any:
        """Return the `tf.data.Dataset` of the rows of these columns, as the source makes it."""
        ...


def open_rows(source: Any, split: str, cache_dir: str | os.PathLike[str] | None) -> Rows | None:
    """Return the rows of a source's split, or None where they can only be read one after the other.

    **Arguments:**

    - `source`: a `seqio.DataSource`. Rows can be read in any order of the project's own sources of
      files with a row a line, and of TFDS where its files are local TFRecords that are read with
      TFDS's defaults.
    - `split`: one of its splits.
    - `cache_dir`: keeps the index of the rows; None makes it anew each time.

    **Raises:** `UserError` where the rows cannot be read.
    """
    # Each imports the libraries that it reads with.
    from promot_t5x.data import line_rows, slices, tfds_rows

    part = slices.parse(split)
    found: Rows | None = line_rows.open_rows(source, part.name, cache_dir)
    found = found or tfds_rows.open_rows(source, part.name, cache_dir)
    if found is None or part.is_whole:
        return found
    start, stop = part.bounds(len(found))
    return _Slice(found, start, stop) if start < stop else None


class _Slice:
    """Some rows of a split that follow one another."""

    def __init__(self, rows: Rows, start: int, stop: int):
        self._rows, self._start, self._size = rows, start, stop - start
        self.content_hash = f"{rows.content_hash}[{start}:{stop}]"
        self.dataset = rows.dataset

    def __len__(self) -> int:
        return self._size

    def columns(self, rows: Int64[np.ndarray, " rows"]) -> Any:
        return self._rows.columns(self._start + rows)


def type_of_columns(rows: Rows) -> Any:
    """Return the nest of `tf.TypeSpec` of columns of any number of rows."""
    tf = import_tensorflow()

    def of_any_length(column: Any) -> Any:
        spec = tf.type_spec_from_value(column)
        shape = [None, *spec.shape[1:]]
        if isinstance(spec, tf.RaggedTensorSpec):
            return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank)
        return tf.TensorSpec(shape, spec.dtype)

    return tf.nest.map_structure(of_any_length, rows.columns(np.arange(1)))
