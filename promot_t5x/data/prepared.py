"""Whether the TensorFlow Datasets behind a task lie prepared on disk.

Asked before anything is read: TFDS itself would start a download on its own, in the middle of a
run, and offline would try for minutes. Only `promot-t5x tasks prepare` downloads.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from promot_t5x.data.lazy import import_seqio, import_tensorflow
from promot_t5x.errors import UserError

_PREPARED: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One TFDS data set that a task reads.

    Attributes:
        name: as in `super_glue/rte:1.0.2`.
        data_dir: where it is looked for; None for TFDS's own default.
        options: further arguments of its builder, by name.

    """

    name: str
    data_dir: str | None
    options: tuple[tuple[str, Any], ...] = ()

    def builder(self) -> Any:
        """Its `tfds.core.DatasetBuilder`; does not touch the network.

        Raises `UserError` where TFDS knows no such data set, config or version.
        """
        import_tensorflow()
        import tensorflow_datasets as tfds

        try:
            return tfds.builder(self.name, data_dir=self.data_dir, **dict(self.options))
        # Not found, a config or version that it never had, options that it does not take.
        except Exception as error:
            said = str(error).strip().partition("\n")[0]
            raise UserError(
                f"TensorFlow Datasets cannot make the data set {self.name!r}: "
                f"{type(error).__name__}: {said}"
            ) from error

    def is_prepared(self) -> bool:
        """Whether it can be read without a download."""
        return is_prepared(self.builder())


def is_prepared(builder: Any) -> bool:
    """Whether a TFDS builder's files are on disk; its own `is_prepared` logs warnings."""
    return (builder.data_path / "dataset_info.json").exists()  # type: ignore[no-any-return]


def data_sets(source: Any, split: str | None = None) -> list[DataSet]:
    """Return the TFDS data sets that a SeqIO source reads, each once.

    Sources inside of sources are found too (`seqio.experimental.FewshotDataSource`). Data sets
    of a namespace (`huggingface:…`) are left out: asking for them needs the network.

    Args:
        source: a `seqio.DataSource`.
        split: a split of the task; matters only where splits come from different data sets.
            None for the data sets of all splits.

    """
    found: dict[str, DataSet] = {}
    for each in _tfds_sources(source):
        loader = each.tfds_dataset
        by_split = loader.tfds_splits
        splits = [None] if by_split is None else ([split] if split in by_split else by_split)
        options = tuple((loader._builder_kwargs or {}).items())
        for name, data_dir in map(loader.get_split_params, splits):
            if name and not _namespace(name):
                made = DataSet(name=name, data_dir=data_dir, options=options)
                found[repr(made)] = made
    return list(found.values())


def check(task: str, source: Any, split: str | None = None) -> None:
    """Raise `UserError`, naming the command that mends it, if a data set is not prepared.

    Args:
        task: the task's name.
        source: its `seqio.DataSource`.
        split: the split about to be read.

    """
    for data_set in data_sets(source, split):
        if not _seen_prepared(data_set):
            raise missing(task, data_set)


def missing(task: str, data_set: DataSet) -> UserError:
    """Return the error for a data set that is not prepared."""
    builder = data_set.builder()
    directory = builder.data_path
    root = directory.parents[len(builder.info.full_name.split("/")) - 1]
    return UserError(
        f"Task {task!r} reads the data set {data_set.name}, which is not prepared: there is no "
        f"{directory}. Run `promot-t5x tasks prepare {task} --tfds_data_dir={root}` once, where "
        "there is a network (a task of your own needs --module too), or point --tfds_data_dir at "
        "the directory that holds it."
    )


def _seen_prepared(data_set: DataSet) -> bool:
    # Making a builder takes a quarter of a second, and what is prepared stays prepared.
    key = f"{data_set!r} {os.environ.get('TFDS_DATA_DIR')}"
    if key not in _PREPARED and data_set.is_prepared():
        _PREPARED.add(key)
    return key in _PREPARED


def _tfds_sources(source: Any) -> Iterator[Any]:
    base = import_seqio().DataSource
    waiting, seen = [source], set()
    while waiting:
        each = waiting.pop()
        if isinstance(each, list | tuple):
            waiting += each
        elif isinstance(each, dict):
            waiting += each.values()
        elif isinstance(each, base) and id(each) not in seen:
            seen.add(id(each))
            if hasattr(each, "tfds_dataset"):
                yield each
            waiting += vars(each).values()


def _namespace(name: str) -> str | None:
    from tensorflow_datasets.core import naming

    return naming.parse_builder_name_kwargs(name)[0].namespace  # type: ignore[no-any-return]
