"""The rows of a TFDS split in any order."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.data import record_index
from promot_t5x.data.lazy import import_seqio, import_tensorflow
from promot_t5x.data.record_index import Instruction, ReadOrder, RecordIndex
from promot_t5x.tasks.rows import map_rows

_FILES_AT_ONCE = 16  # TFDS's own default
# Settings of `tfds.ReadConfig` that decide which rows come when.
_OF_THE_ORDER = (
    "repeat_filenames",
    "interleave_cycle_length",
    "interleave_block_length",
    "experimental_interleave_sort_fn",
    "input_context",
    "file_format",
)


class TfdsRows:
    """Rows in the order in which TFDS reads the files of a split unshuffled.

    **Attributes:**

    - `content_hash`: of the records' checksums and the order in which they are read.
    """

    def __init__(self, features: Any, index: RecordIndex, ids: list[str] | None):
        """Use `open_rows`.

        **Arguments:**

        - `features`: the data set's `tfds.features.FeaturesDict`.
        - `index`: its records, in the order of the rows.
        - `ids`: of the files, in TFDS's ids of the rows; None for rows without.
        """
        self._features, self._index, self._ids = features, index, ids
        self.content_hash = index.content_hash
        flat = import_tensorflow().nest.flatten(features.get_serialized_info())
        # Lists of different lengths would be padded if many rows were parsed at once.
        self._at_once = all(each.shape == () for each in flat)

    def __len__(self) -> int:
        return len(self._index)

    def columns(self, rows: Int64[np.ndarray, " rows"]) -> dict[str, Any]:
        """Return the rows as TFDS has written them, and their ids if they are read with them."""
        tf = import_tensorflow()
        columns = {"example": tf.constant(self._index.read(rows), tf.string)}
        if self._ids is not None:
            places = self._index.places[rows]
            numbered = zip(places["file"].tolist(), places["number"].tolist(), strict=True)
            columns["id"] = tf.constant([f"{self._ids[f]}__{n}" for f, n in numbered], tf.string)
        return columns

    def dataset(self, columns: dict[str, Any]) -> Any:
        """Return the rows as `TfdsDataSource.get_dataset` gives them."""
        tf = import_tensorflow()
        ids = {"tfds_id": columns["id"]} if self._ids is not None else {}
        if self._at_once:
            rows = tf.vectorized_map(self._features.deserialize_example, columns["example"])
            return tf.data.Dataset.from_tensor_slices({**rows, **ids})
        return map_rows(
            tf.data.Dataset.from_tensor_slices((columns["example"], ids)),
            lambda example, ids: {**self._features.deserialize_example(example), **ids},
        )


def open_rows(source: Any, split: str, cache_dir: str | os.PathLike[str] | None) -> TfdsRows | None:
    """Return the rows of a `seqio.TfdsDataSource`; None where it reads in a way of its own.

    **Arguments:** those of `rows.open_rows`.
    """
    seqio = import_seqio()
    loader = getattr(source, "tfds_dataset", None)
    if loader is None or type(source).get_dataset is not seqio.TfdsDataSource.get_dataset:
        return None
    import tensorflow_datasets as tfds

    # Files first: only a loaded builder knows its data set.
    files = loader.files(split)
    paths = [Path(str(file.filename)) for file in files]
    builder, config = loader._get_builder(split), loader.read_config
    defaults = tfds.ReadConfig()
    if (
        any(getattr(config, name) != getattr(defaults, name) for name in _OF_THE_ORDER)
        or loader._decoders is not None
        or builder.info.file_format != tfds.core.file_adapters.FileFormat.TFRECORD
        or not all(path.is_file() for path in paths)
        # TFDS's ids of rows are then the files' names.
        or len({path.parent for path in paths}) > 1
    ):
        return None
    order = ReadOrder(
        instructions=tuple(Instruction(file.skip, file.take) for file in files),
        cycle=1 if builder.info.disable_shuffling else _FILES_AT_ONCE,
        block=config.interleave_block_length,
    )
    index = record_index.open_index(
        [str(path) for path in paths], record_index.tfrecords, cache_dir, order
    )
    ids = None
    if config.add_tfds_id:
        ids = [path.name for path in paths]
    return TfdsRows(builder.info.features, index, ids)
