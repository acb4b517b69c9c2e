"""Where a task's rows come from: TensorFlow Datasets, JSONL, TSV, Hugging Face `datasets`.

Each is a factory: calling it makes the `seqio.DataSource`, and nothing is opened or imported
before. `splits` are the names that the task has. Every row gets a string `row_id` that is unique
within its split and does not depend on the order of reading.
"""

import csv
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from promot_t5x.errors import UserError
from promot_t5x.tasks import json_lines

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
      parse_line: line -> row, where each row is a line by itself; `ValueError` says what the line
        is instead.
    """

    read: Callable[[Path], list[dict[str, Any]]]
    paths: tuple[tuple[str, str], ...]
    parse_line: Callable[[bytes], dict[str, Any]] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(split for split, _ in self.paths)

    def __call__(self) -> Any:
        source = _source_of_rows(self.rows, self.splits)
        # For who reads the files in another way.
        source.files = self
        return source

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
    return Files(json_lines.read, _paths(train, others), json_lines.parsed)


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

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed
        return dataset_of(rows(split))

    return seqio.FunctionDataSource(dataset, splits=splits)


def dataset_of(rows: Rows) -> Any:
    """Rows of plain Python values as a `tf.data.Dataset`.

    Text, numbers, truth values (as the text True or False), lists of these and objects of all
    that become fields; a field of another kind is left out, and text that is null is empty.

    Raises:
      UserError: there are no rows, or rows differ in their fields or their kinds.
    """
    import tensorflow as tf

    if not rows:
        raise UserError("a split has no rows")
    kinds = _kinds(rows, "")
    made = [_converted(row, kinds) for row in rows]
    kept = {"text": tf.string, "integer": tf.int64, "number": tf.float64}

    def spec(kind: Any) -> Any:
        if isinstance(kind, dict):
            return {name: spec(inner) for name, inner in kind.items()}
        if isinstance(kind, list):
            return tf.TensorSpec([None], kept[kind[0]])
        return tf.TensorSpec([], kept[kind])

    return tf.data.Dataset.from_generator(lambda: iter(made), output_signature=spec(kinds))


def _kinds(rows: Rows, inside: str) -> dict[str, Any]:
    """What each field holds: "text", "integer", "number", a list of one of these, or a dict."""
    names = dict.fromkeys(name for row in rows for name in row)
    kinds: dict[str, Any] = {}
    for name in names:
        where = f"{inside}{name}"
        lacking = next((n for n, row in enumerate(rows, start=1) if name not in row), None)
        if lacking is not None:
            raise UserError(f"row {lacking} has no field {where!r}, which other rows have")
        kind = _kind([row[name] for row in rows], where)
        if kind is not None:
            kinds[name] = kind
    return kinds


def _kind(values: Sequence[Any], where: str) -> Any:
    if all(isinstance(value, Mapping) for value in values):
        return _kinds(values, f"{where}.") or None
    if all(isinstance(value, list | tuple) for value in values):
        inner = _kind([item for value in values for item in value] or [""], f"{where}.*")
        return [inner] if isinstance(inner, str) else None
    if all(isinstance(value, str | bool | None) for value in values):
        return "text" if any(value is not None for value in values) else None
    if all(isinstance(value, int) for value in values):
        return "integer"
    if all(isinstance(value, int | float) for value in values):
        return "number"
    known = (str, bool, int, float, list, tuple, Mapping)
    if all(isinstance(value, known) for value in values):
        found = sorted({type(value).__name__ for value in values})
        raise UserError(f"the field {where!r} holds {' in some rows and '.join(found)} in others")
    return None


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(kind, dict):
        return {name: _converted(value[name], inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [_converted(item, kind[0]) for item in value]
    if kind == "text":
        return "" if value is None else str(value)
    return float(value) if kind == "number" else value
