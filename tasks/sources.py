"""Where a task's rows come from: TensorFlow Datasets, JSONL, TSV, Hugging Face `datasets`.

Each is a factory: calling it makes the `seqio.DataSource`, and nothing is opened or imported
before. `splits` are the names that the task has. Every row gets a string `row_id` that is unique
within its split and does not depend on the order of reading.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promot_t5x.errors import UserError
from promot_t5x.tasks.rows import dataset_of

ROW_ID = "row_id"
Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TFDS builder.

    Attributes:
      name: `data_set/config:version`.
      split_map: (split of the task, split or slice of the data set), in order.
      instead: builders that hold the same rows, taken where only they have been prepared.
    """

    name: str
    split_map: tuple[tuple[str, str], ...]
    instead: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, _ in self.split_map)

    @property
    def names(self) -> tuple[str, ...]:
        """Every builder that will do, the one to prepare first."""
        return (self.name, *self.instead)

    def __call__(self) -> Any:
        made = [_tfds_source(name, self.split_map) for name in self.names]
        return next((s for s in made if len(made) > 1 and _is_prepared(s)), made[0])


def tfds(name: str, splits: Mapping[str, str] | Iterable[str], instead: Iterable[str] = ()) -> Tfds:
    """Rows of the TFDS builder `name` (`data_set/config:version`).

    Args:
      name: the builder, with its version.
      splits: split of the task -> split or slice of the data set; or the names of both.
      instead: other builders of the same rows, see `Tfds`.
    """
    pairs = splits.items() if isinstance(splits, Mapping) else ((s, s) for s in splits)
    return Tfds(name, tuple(pairs), tuple(instead))


@dataclasses.dataclass(frozen=True)
class Files:
    """A text file a split.

    Attributes:
      read: path -> rows.
      paths: (split, path), in order.
    """

    read: Callable[[Path], list[dict[str, Any]]]
    paths: tuple[tuple[str, str], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, _ in self.paths)

    def __call__(self) -> Any:
        return _source_of_rows(self.rows, self.splits)

    def rows(self, split: str) -> Rows:
        """The rows of a split; `UserError` names the file and line that cannot be read."""
        path = Path(dict(self.paths)[split])
        try:
            rows = self.read(path)
        except OSError as error:
            raise UserError(f"the {split} rows cannot be read: {error}") from error
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error
        return [row | {ROW_ID: f"{path.stem}-{n}"} for n, row in enumerate(rows, start=1)]


def jsonl(train: str | os.PathLike, **others: str | os.PathLike) -> Files:
    """A JSON object a line; `jsonl("train.jsonl", validation="dev.jsonl")`.

    Relative paths are looked up from the working directory.
    """
    return Files(_read_jsonl, _paths(train, others))


def tsv(train: str | os.PathLike, **others: str | os.PathLike) -> Files:
    """Columns separated by tabs, named in the first line; no quoting. Every value is text."""
    return Files(_read_tsv, _paths(train, others))


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A data set of the Hugging Face hub or of its file formats; needs `pip install datasets`.

    Attributes:
      arguments: of `datasets.load_dataset`, as in `("super_glue", "rte")`.
      options: keyword arguments of it, as pairs.
      split_map: (split of the task, split or slice of the data set), in order.
    """

    arguments: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    split_map: tuple[tuple[str, str], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, _ in self.split_map)

    def __call__(self) -> Any:
        return _source_of_rows(self.rows, self.splits)

    def rows(self, split: str) -> Rows:
        """The rows of a split; `UserError` where `datasets` is not installed."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"reading the Hugging Face data set {'/'.join(self.arguments)!r} needs the package "
                "`datasets`: install it with `pip install datasets`"
            ) from error
        name = dict(self.split_map)[split]
        rows = datasets.load_dataset(*self.arguments, split=name, **dict(self.options))
        return [row | {ROW_ID: f"{split}-{n}"} for n, row in enumerate(rows)]


def hugging_face(
    *arguments: str, splits: Mapping[str, str] | Iterable[str], **options: Any
) -> HuggingFace:
    """Rows of `datasets.load_dataset(*arguments, split=…, **options)`.

    Args:
      splits: split of the task -> split or slice of the data set; or the names of both.
    """
    pairs = splits.items() if isinstance(splits, Mapping) else ((s, s) for s in splits)
    return HuggingFace(arguments, tuple(options.items()), tuple(pairs))


def with_row_id(dataset: Any) -> Any:
    """A preprocessor: TFDS's id of a row, where there is one, under the name `row_id`."""
    if "tfds_id" not in dataset.element_spec:
        return dataset
    return dataset.map(lambda row: {**row, ROW_ID: row["tfds_id"]})


def _tfds_source(name: str, split_map: tuple[tuple[str, str], ...]) -> Any:
    import seqio
    from seqio.utils import LazyTfdsLoader

    class Loader(LazyTfdsLoader):
        """Reads with each row the id that TFDS gives it, which names its place in the files."""

        @property
        def read_config(self) -> Any:
            return super().read_config.replace(add_tfds_id=True)

    splits = dict(split_map)
    # Read only: a run never starts a download of gigabytes by itself.
    source = seqio.TfdsDataSource(tfds_name=name, splits=splits, read_only=True)
    source._tfds_dataset = Loader(name, split_map=splits, read_only=True)
    return source


def _is_prepared(source: Any) -> bool:
    from tensorflow_datasets.core import constants

    loader = source.tfds_dataset
    directory = Path(loader.data_dir or constants.DATA_DIR)
    return (directory / loader.name.replace(":", "/") / "dataset_info.json").exists()


def _paths(train: Any, others: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((split, os.fspath(path)) for split, path in {"train": train, **others}.items())


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is not a JSON object: {line[:80]!r}")
        rows.append(row)
    return rows


def _read_tsv(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = []
    for number, values in enumerate(lines[1:], start=2):
        if values and len(values) != len(lines[0]):
            raise ValueError(
                f"line {number} has {len(values)} columns, the first line names {len(lines[0])}"
            )
        if values:
            rows.append(dict(zip(lines[0], values, strict=True)))
    return rows


def _source_of_rows(rows: Callable[[str], Rows], splits: tuple[str, ...]) -> Any:
    import seqio

    left_out: dict[str, str] = {}

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed
        return dataset_of(rows(split), left_out)

    source = seqio.FunctionDataSource(dataset, splits=splits)
    # For those who miss a field: why the split that was opened last has none of that name.
    source.left_out = left_out
    return source
