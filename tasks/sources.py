"""Where a task's rows come from: TensorFlow Datasets, files of rows, Hugging Face `datasets`.

Each is a factory: calling it makes the `seqio.DataSource`, and nothing is opened or imported
before. `splits` are the names that the task has. Every row gets a string `row_id` that is unique
within its split and does not depend on the order of reading.
"""

import bisect
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from promot_t5x.errors import UserError
from promot_t5x.tasks import files
from promot_t5x.tasks.rows import LeftOut, dataset_of, map_rows

ROW_ID = "row_id"
Rows = Sequence[Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Tfds:
    """A TFDS builder.

    **Attributes:**

    - `name`: `data_set/config:version`.
    - `split_map`: (split of the task, split or slice of the data set), in order.
    - `instead`: builders that hold the same rows, taken where only they have been prepared.
    """

    name: str
    split_map: tuple[tuple[str, str], ...]
    instead: tuple[str, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(split for split, _ in self.split_map)

    @property
    def names(self) -> tuple[str, ...]:
        """Every builder that will do, the one to prepare first."""
        return (self.name, *self.instead)

    def __call__(self) -> Any:
        """Make the `seqio.DataSource`."""
        made = [_tfds_source(name, self.split_map) for name in self.names]
        return next((s for s in made if len(made) > 1 and _is_prepared(s)), made[0])


def tfds(name: str, splits: Mapping[str, str] | Iterable[str], instead: Iterable[str] = ()) -> Tfds:
    """Rows of the TFDS builder `name` (`data_set/config:version`).

    **Arguments:**

    - `name`: the builder, with its version.
    - `splits`: split of the task -> split or slice of the data set; or the names of both.
    - `instead`: other builders of the same rows, see `Tfds`.
    """
    pairs = splits.items() if isinstance(splits, Mapping) else ((s, s) for s in splits)
    return Tfds(name, tuple(pairs), tuple(instead))


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of one kind, one or more a split.

    **Attributes:**

    - `kind`: of `files.KINDS`.
    - `paths`: (split, files, directories or globs), in order.
    """

    kind: str
    paths: tuple[tuple[str, tuple[str, ...]], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(split for split, _ in self.paths)

    def __call__(self) -> Any:
        """Make the `seqio.DataSource`; directories and globs are looked into now."""
        resolved = self.resolved()
        source = _source_of_rows(resolved.rows, self.splits)
        # For who reads the files in another way.
        source.files = resolved
        return source

    def lines_of(self, split: str) -> str | None:
        """Return the file of a split whose rows are its lines; None where it is no such file."""
        paths = dict(self.paths)[split]
        single = self.kind == "jsonl" and len(paths) == 1 and files.is_plain_lines(paths[0])
        return paths[0] if single else None

    def resolved(self) -> "Files":
        """Return the same with files alone, by which a data set is recognized."""
        _, suffixes = files.KINDS[self.kind]
        return Files(
            self.kind,
            tuple(
                (split, tuple(each for path in paths for each in files.found(path, suffixes)))
                for split, paths in self.paths
            ),
        )

    def rows(self, split: str) -> "NamedRows":
        """Read the rows of a split; `UserError` names the file and line that cannot be read."""
        read, _ = files.KINDS[self.kind]
        paths = dict(self.resolved().paths)[split]
        stems = [files.stem(path) for path in paths]
        if len(set(stems)) < len(stems):
            stems = [f"{n}-{stem}" for n, stem in enumerate(stems)]
        rows: list[Mapping[str, Any]] = []
        numbers: list[int] = []
        starts: list[int] = []
        for path, stem in zip(paths, stems, strict=True):
            starts.append(len(rows))
            try:
                numbered = list(read(path))
            except UserError as error:
                raise UserError(f"the {split} rows cannot be read: {error}") from error
            for n, (number, row) in enumerate(numbered, start=1):
                rows.append(row | {ROW_ID: f"{stem}-{n}"})
                numbers.append(number)
        if not rows:
            raise UserError(f"a split has no rows: {split}, read from {', '.join(paths)}")
        counted = "line" if self.kind in ("jsonl", "tsv") else "row"

        def name_row(place: int) -> str:
            path = paths[bisect.bisect_right(starts, place) - 1]
            return f"{path}, {counted} {numbers[place]}"

        return NamedRows(rows, name_row)


class NamedRows(NamedTuple):
    """Rows, and how messages name each by its place."""

    rows: Rows
    name_row: Callable[[int], str]


PathLike = str | os.PathLike[str]


def jsonl(train: PathLike | Sequence[PathLike], **others: PathLike | Sequence[PathLike]) -> Files:
    """Read a JSON object a line; `jsonl("train.jsonl", validation="dev.jsonl")`.

    A split may be several files: a list, a directory or a glob such as `"train-*.jsonl.gz"`. Files
    may be compressed by gzip or zstd. Relative paths are looked up from the working directory.
    """
    return Files("jsonl", _paths(train, others))


def tsv(train: PathLike | Sequence[PathLike], **others: PathLike | Sequence[PathLike]) -> Files:
    """Read columns separated by tabs, named in the first line; no quoting. Every value is text.

    Files, directories and globs are given as for `jsonl`.
    """
    return Files("tsv", _paths(train, others))


def csv(train: PathLike | Sequence[PathLike], **others: PathLike | Sequence[PathLike]) -> Files:
    """Read columns separated by commas, named in the first line, quoted with `"`.

    Every value is text. Files, directories and globs are given as for `jsonl`.
    """
    return Files("csv", _paths(train, others))


def parquet(train: PathLike | Sequence[PathLike], **others: PathLike | Sequence[PathLike]) -> Files:
    """Read Parquet files; files, directories and globs are given as for `jsonl`."""
    return Files("parquet", _paths(train, others))


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """A data set of the Hugging Face hub or of its file formats; needs `pip install datasets`.

    **Attributes:**

    - `arguments`: of `datasets.load_dataset`, as in `("super_glue", "rte")`.
    - `options`: keyword arguments of it, as pairs.
    - `split_map`: (split of the task, split or slice of the data set), in order.
    """

    arguments: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    split_map: tuple[tuple[str, str], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(split for split, _ in self.split_map)

    def __call__(self) -> Any:
        """Make the `seqio.DataSource`."""
        return _source_of_rows(self._named_rows, self.splits)

    def _named_rows(self, split: str) -> NamedRows:
        return NamedRows(self.rows(split), lambda place: f"row {place + 1} of {split}")

    def rows(self, split: str) -> Rows:
        """Return the rows of a split; `UserError` where `datasets` is not installed."""
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

    **Arguments:**

    - `splits`: split of the task -> split or slice of the data set; or the names of both.
    """
    pairs = splits.items() if isinstance(splits, Mapping) else ((s, s) for s in splits)
    return HuggingFace(arguments, tuple(options.items()), tuple(pairs))


@dataclasses.dataclass(frozen=True)
class Joined:
    """Hugging Face data sets that hold the same things, such as sentences in several languages.

    A row has, under each part's name, that part's row of the same id.

    **Attributes:**

    - `parts`: (name, data set); all have the splits of the first.
    - `key`: the field that identifies a row within its split.
    """

    parts: tuple[tuple[str, HuggingFace], ...]
    key: str = "id"

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return self.parts[0][1].splits

    def __call__(self) -> Any:
        """Make the `seqio.DataSource`."""
        named = "each part's row with that id"
        return _source_of_rows(
            lambda split: NamedRows(self.rows(split), lambda n: f"row {n + 1} of {split}, {named}"),
            self.splits,
        )

    def rows(self, split: str) -> Rows:
        """Return the rows of a split; `UserError` where a part lacks some of them."""
        parts = {
            name: {str(row[self.key]): row for row in data.rows(split)} for name, data in self.parts
        }
        (first, wanted), *others = parts.items()
        for name, found in others:
            if found.keys() != wanted.keys():
                odd = sorted(found.keys() ^ wanted.keys())
                raise UserError(
                    f"the {split} rows of {name!r} and {first!r} do not have the same "
                    f"{self.key!r}: {odd[0]!r} is in one of them alone"
                )
        return [
            {**{n: p[key] for n, p in parts.items()}, ROW_ID: f"{split}-{key}"} for key in wanted
        ]


def with_row_id(dataset: Any) -> Any:
    """Return a preprocessor: TFDS's id of a row, where there is one, under the name `row_id`."""
    if "tfds_id" not in dataset.element_spec:
        return dataset
    return map_rows(dataset, lambda row: {**row, ROW_ID: row["tfds_id"]})


def _tfds_source(name: str, split_map: tuple[tuple[str, str], ...]) -> Any:
    import seqio
    from seqio.utils import LazyTfdsLoader

    class Loader(LazyTfdsLoader):  # type: ignore[misc]  # SeqIO ships no types
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
    relative: str = loader.name.replace(":", "/")
    return (directory / relative / "dataset_info.json").exists()


def _paths(train: Any, others: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    given = {"train": train, **others}.items()
    return tuple(
        (split, tuple(map(os.fspath, paths if isinstance(paths, list | tuple) else [paths])))
        for split, paths in given
    )


def _source_of_rows(rows: Callable[[str], NamedRows], splits: tuple[str, ...]) -> Any:
    import seqio

    left_out = LeftOut()

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        del shuffle_files, seed
        found = rows(split)
        return dataset_of(found.rows, left_out, found.name_row)

    source = seqio.FunctionDataSource(dataset, splits=splits)
    # For those who miss a field: why the split that was opened last has none of that name.
    source.left_out = left_out
    return source
