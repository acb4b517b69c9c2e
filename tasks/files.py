"""Files of rows: JSON Lines, tab-separated and comma-separated text, Parquet; plain or compressed.

Everything that a file may hold is read rightly or refused with the file and the line. Text is
UTF-8 with or without a byte order mark; lines end in LF, CRLF or CR; files that gzip or zstd has
compressed, recognized by their first bytes, are decompressed.
"""

import csv
import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.paths import user_path

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_SHOWN = 80
_LOOKED_AT = 1 << 16
_BLOCK = 1 << 20
_ROWS_AT_ONCE = 1 << 12
# pyarrow reads a CSV file in blocks, and a row must lie in one of them.
_LONGEST_ROW = 1 << 24
_COMPRESSED = (".gz", ".zst", ".gzip", ".zstd")

# A row with the line that it stands on, counted from 1, or its place in a file without lines.
Numbered = tuple[int, dict[str, Any]]


def found(pattern: str, suffixes: Iterable[str]) -> list[str]:
    """Return the files that a path, a directory or a glob means, in order of their names.

    **Arguments:**

    - `suffixes`: of the files of a directory that are meant; compressed ones too.

    **Raises:** `UserError` where there is none.
    """
    path = user_path(pattern, "a task's file of rows")
    if path.is_dir():
        listed = [each for each in path.iterdir() if _matches(each.name, suffixes)]
        what = f"the directory {pattern} holds no file ending in {' or '.join(suffixes)}"
    elif any(sign in path.name for sign in "*?[") and not path.exists():
        listed = list(path.parent.glob(path.name))
        what = f"no file matches {pattern}"
    else:
        return [os.fspath(path)]
    if not listed:
        raise UserError(f"{what}.")
    return sorted(os.fspath(each) for each in listed)


def stem(path: str) -> str:
    """Return a file's name without what says how it is written."""
    name = epath.Path(path).name
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    found: str = epath.Path(name).stem
    return found


def content(path: str) -> bytes:
    """Return what a file holds, decompressed.

    **Raises:** `UserError` where it cannot be read.
    """
    return b"".join(_blocks(path))


def lines(path: str, data: bytes) -> list[str]:
    """Return the lines of a text file, without their ends; `UserError` where it is not UTF-8."""
    return list(_lines(path, [data]))


def json_lines(path: str) -> Iterator[Numbered]:
    """Yield the rows of a file with a JSON object a line, or with one JSON array of objects."""
    listed = _lines(path, _blocks(path))
    is_first = True
    for number, text in enumerate(listed, start=1):
        if not text.strip():
            continue
        if is_first and text.lstrip().startswith("["):
            rows = json_array([text, *listed])
            if rows is not None:
                yield from enumerate(rows, start=1)
                return
        is_first = False
        try:
            yield number, parsed(text)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is {error}") from error


def object_lines(path: str) -> Iterator[str] | None:
    """Return the lines of a file that has an object in each, unread; None for a JSON array."""
    texts = _lines(path, _blocks(path))
    start: list[str] = []
    for text in texts:
        start.append(text)
        if text.strip():
            break
    if start and start[-1].lstrip().startswith("["):
        return None
    return itertools.chain(start, texts)


def parsed(line: str | bytes) -> dict[str, Any]:
    """Read the JSON object of a line; `ValueError` says what the line is instead."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object: {line[:_SHOWN]!r}")
    return row


def is_plain_lines(path: str) -> bool:
    """Return whether a file is local text without a byte order mark, an object in each line."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(_LOOKED_AT)
    first = start.lstrip().split(b"\n")[0]
    # A CR within the first line may end it.
    return first.startswith(b"{") and b"\r" not in first[:-1]


def is_json(name: str) -> bool:
    """Return whether a file of this name holds JSON, of which a line or an item is a row."""
    return _matches(name, KINDS["jsonl"][1])


def json_array(listed: Sequence[str]) -> list[Any] | None:
    """Return the items of a file that is one JSON array; None for a file with an object a line.

    **Arguments:**

    - `listed`: the lines of the file.
    """
    if not next((text for text in listed if text.strip()), "").lstrip().startswith("["):
        return None
    try:
        found = json.loads("\n".join(listed))
    # A line of its own may be an array, which is then no object.
    except json.JSONDecodeError:
        return None
    return found if found and all(isinstance(item, dict) for item in found) else None


def tab_separated(path: str) -> Iterator[Numbered]:
    """Yield the rows of a file with tabs between its columns, which the first line names."""
    names: list[str] | None = None
    for number, text in enumerate(_lines(path, _blocks(path)), start=1):
        if names is None:
            names = _column_names(path, text.split("\t"))
            continue
        if not text:
            continue
        values = text.split("\t")
        if len(values) != len(names):
            raise UserError(
                f"{path}: line {number} has {len(values)} columns, the first line names "
                f"{len(names)}"
            )
        yield number, dict(zip(names, values, strict=True))


def comma_separated(path: str) -> Iterator[Numbered]:
    """Yield the rows of a CSV file, quoted as in RFC 4180; every value is text."""
    import pyarrow
    from pyarrow import csv as arrow_csv

    listed = _lines(path, _blocks(path))
    header: list[str] = []
    # The names may hold line breaks: as many lines as the reader takes are the header.
    names = _column_names(path, next(csv.reader(_kept(listed, header)), []))
    if not header:
        return
    text = io.BufferedReader(_Text(itertools.chain(header, listed)))
    # A quoted value may hold line breaks, so rows are counted and not lines.
    row = 0
    try:
        for batch in arrow_csv.open_csv(
            text,
            read_options=arrow_csv.ReadOptions(block_size=_LONGEST_ROW),
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        ):
            for row, values in enumerate(batch.to_pylist(), start=row + 1):  # noqa: B020
                yield row, values
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: {error}") from error


def parquet(path: str) -> Iterator[Numbered]:
    """Yield the rows of a Parquet file."""
    import pyarrow
    from pyarrow import parquet as arrow_parquet

    row = 0
    try:
        with epath.Path(path).open("rb") as file:
            for batch in arrow_parquet.ParquetFile(file).iter_batches(_ROWS_AT_ONCE):
                for row, values in enumerate(batch.to_pylist(), start=row + 1):  # noqa: B020
                    yield row, values
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error


# How files of each kind are read, and what their names end in within a directory.
KINDS: dict[str, tuple[Callable[[str], Iterator[Numbered]], tuple[str, ...]]] = {
    "jsonl": (json_lines, (".jsonl", ".json", ".ndjson")),
    "tsv": (tab_separated, (".tsv", ".txt")),
    "csv": (comma_separated, (".csv",)),
    "parquet": (parquet, (".parquet",)),
}


def lone_surrogate(text: str) -> str | None:
    r"""Return the half of a character pair that `text` holds alone, as in `\ud83d`."""
    if text.isascii():
        return None
    half = next((letter for letter in text if "\ud800" <= letter <= "\udfff"), None)
    return None if half is None else f"\\u{ord(half):04x}"


def _matches(name: str, suffixes: Iterable[str]) -> bool:
    lowered = name.lower()
    for suffix in _COMPRESSED:
        lowered = lowered.removesuffix(suffix)
    return not name.startswith((".", "_")) and lowered.endswith(tuple(suffixes))


def _blocks(path: str) -> Iterator[bytes]:
    """Yield what a file holds, decompressed, a block at a time."""
    packed = False
    try:
        with epath.Path(path).open("rb") as file:
            start = file.read(len(_ZSTD))
            file.seek(0)
            packed = start.startswith((_GZIP, _ZSTD))
            stream: Any = file
            if start.startswith(_GZIP):
                stream = gzip.GzipFile(fileobj=file)
            elif packed:
                import pyarrow

                stream = pyarrow.CompressedInputStream(file, "zstd")
            while block := stream.read(_BLOCK):
                yield bytes(block)
    # A damaged file: the libraries have several errors for it.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        what = "decompressed" if packed else "read"
        raise UserError(f"{path} cannot be {what}: {error}") from error


def _lines(path: str, blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a text file, without their ends; `UserError` where it is not UTF-8."""
    number = 0
    for number, part in enumerate(_parts(blocks), start=1):
        if number == 1:
            part = part.removeprefix(_BYTE_ORDER_MARK)
            if part.startswith(_UTF_16):
                raise UserError(f"{path} is UTF-16 text: save it as UTF-8.")
        yield _decoded(path, number, part)


def _parts(blocks: Iterable[bytes]) -> Iterator[bytes]:
    held: list[bytes] = []
    has_line_feeds = False
    for block in blocks:
        held.append(block)
        if b"\n" in block:
            *whole, rest = b"".join(held).split(b"\n")
            yield from whole
            held, has_line_feeds = [rest], True
    rest = b"".join(held)
    # A file of an old Mac ends its lines in CR alone.
    parts = [rest] if has_line_feeds else rest.split(b"\r")
    if parts[-1] == b"":
        parts.pop()
    yield from parts


def _kept(listed: Iterator[str], kept: list[str]) -> Iterator[str]:
    """Yield lines with their ends, and keep those that were taken."""
    for text in listed:
        kept.append(text)
        yield f"{text}\n"


class _Text(io.RawIOBase):
    """Lines as a file of bytes."""

    def __init__(self, listed: Iterator[str]):
        self._parts = (f"{text}\n".encode() for text in listed)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, or what there is of it."""
        while len(self._rest) < len(buffer):
            some = b"".join(itertools.islice(self._parts, _ROWS_AT_ONCE))
            if not some:
                break
            self._rest += some
        given = min(len(self._rest), len(buffer))
        buffer[:given] = self._rest[:given]
        self._rest = self._rest[given:]
        return given


def _decoded(path: str, number: int, data: bytes) -> str:
    try:
        return data.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: line {number} is not UTF-8 (the byte 0x{data[error.start]:02x} at place "
            f"{error.start + 1}). If the file is Latin-1, convert it: iconv -f latin1 -t utf-8."
        ) from error


def _column_names(path: str, names: list[str]) -> list[str]:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{path}: line 1 names the column {twice[0]!r} twice")
    return names
