"""Where each record of some files begins: made in one pass that decodes nothing, then kept.

The index of TFRecords is made from their headers, that of lines from the line ends. Both passes
also take a hash of the content, which therefore costs no pass of its own.
"""

import array
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Int64

from promot_t5x.data import cache_folder
from promot_t5x.data.ragged import spans
from promot_t5x.errors import UserError

# Where a record lies: its file, its number in it from 0, its first byte and how many it has.
PLACE = np.dtype([("file", "<i4"), ("number", "<i4"), ("start", "<i8"), ("bytes", "<i4")])
_INDEX, _META = "places.npy", "index.json"
# A TFRecord: its length and a checksum of that, the data, a checksum of those.
_HEADER = struct.Struct("<QI")
_CHECKSUM = 4
_BYTES_AT_ONCE = 1 << 22
_LINE_END = ord("\n")
_WHITE = np.frombuffer(b" \t\r\v\f\n", np.uint8)


class Scanned(NamedTuple):
    """What a pass over a file has found: its records, and a digest of its content."""

    starts: Int64[np.ndarray, " records"]
    lengths: Int64[np.ndarray, " records"]
    digest: bytes


Scan = Callable[[BinaryIO], Scanned]


class Instruction(NamedTuple):
    """Which records of a file are read: `take` of them after the first `skip`."""

    skip: int
    take: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOrder:
    """Files that are read in turns, as by `tf.data`'s interleave.

    **Attributes:**

    - `instructions`: what is read of each file.
    - `cycle`: files that are open at a time.
    - `block`: records that are read from one before the next has its turn.
    """

    instructions: tuple[Instruction, ...]
    cycle: int
    block: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RecordIndex:
    """Records of several files, readable in any order.

    **Attributes:**

    - `paths`: of the files.
    - `places`: an item of type `PLACE` for each record.
    - `content_hash`: SHA-256 of the content of all files, as the scan takes it, and of the order.
    """

    paths: tuple[str, ...]
    places: np.ndarray
    content_hash: str

    def __len__(self) -> int:
        return len(self.places)

    def read(self, records: Int64[np.ndarray, " records"]) -> list[bytes]:
        """Read the bytes of some records."""
        places = self.places[records]
        columns = (places[name].tolist() for name in ("file", "bytes", "start"))
        with contextlib.ExitStack() as stack:
            files = {
                file: stack.enter_context(open(self.paths[file], "rb")).fileno()
                for file in np.unique(places["file"]).tolist()
            }
            # No mapping into memory: what is touched of it would count as this process's.
            return [
                os.pread(files[file], count, start)
                for file, count, start in zip(*columns, strict=True)
            ]


def open_index(
    paths: Sequence[str],
    scan: Scan,
    cache_dir: str | os.PathLike[str] | None,
    order: ReadOrder | None = None,
) -> RecordIndex:
    """Return the index of some files, from the cache or made now, several files at a time.

    **Arguments:**

    - `paths`: of local files.
    - `scan`: `tfrecords` or `lines`.
    - `cache_dir`: where indices are kept; None for nowhere.
    - `order`: in which the records are read; None for one file after the other.

    **Raises:** `UserError` where a file cannot be read or is damaged.
    """
    if cache_dir is None:
        return _made(paths, scan, order)
    states = ((path, os.stat(path)) for path in paths)
    files = [(path, state.st_size, state.st_mtime_ns) for path, state in states]
    key = hashlib.sha256(repr((scan.__name__, files, order)).encode()).hexdigest()[:32]
    folder = Path(cache_dir) / f"index-{key}"
    index = _load(folder, paths)
    if index is None:
        index = _made(paths, scan, order)
        cache_folder.publish(folder, functools.partial(_save, index))
        index = _load(folder, paths) or index
    return index


def tfrecords(file: BinaryIO) -> Scanned:
    """Scan TFRecords by their headers; the digest is of their lengths and checksums."""
    starts, lengths = array.array("q"), array.array("q")
    sums = bytearray()
    unpack, overhead = _HEADER.unpack_from, _HEADER.size + _CHECKSUM
    data, first = b"", 0  # what has been read and not yet seen through, and where it begins
    while part := file.read(_BYTES_AT_ONCE):
        data += part
        at, size = 0, len(data)
        while at + overhead <= size:
            length = unpack(data, at)[0]
            end = at + overhead + length
            if end > size:
                break
            starts.append(first + at + _HEADER.size)
            lengths.append(length)
            sums += data[end - _CHECKSUM : end]
            at = end
        data, first = data[at:], first + at
    if data:
        raise ValueError(f"the record at byte {first:,} is cut short or damaged")
    found = np.array(lengths, np.int64)
    digest = hashlib.sha256(found.tobytes() + sums).digest()
    return Scanned(np.array(starts, np.int64), found, digest)


def lines(file: BinaryIO) -> Scanned:
    """Scan lines; those of nothing but white space are left out. The digest is of every byte."""
    content, size = hashlib.sha256(), 0
    stops, firsts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint8)]
    begins = True  # whether a line begins with the next byte that is read
    while part := file.read(_BYTES_AT_ONCE):
        content.update(part)
        letters = np.frombuffer(part, np.uint8)
        ends = np.flatnonzero(letters == _LINE_END)
        starts = np.concatenate([np.zeros(int(begins), np.int64), ends + 1])
        begins = letters[-1] == _LINE_END
        firsts.append(letters[starts[starts < len(part)]])
        stops.append(ends + size)
        size += len(part)
    if size and not begins:
        stops.append(np.array([size]))
    found = np.concatenate(stops)
    starts = np.concatenate([np.zeros(1, np.int64), found[:-1] + 1])[: len(found)]
    lengths = found - starts
    blank = []
    # Only lines that begin with white space may hold nothing else.
    for n in np.flatnonzero(np.isin(np.concatenate(firsts), _WHITE)).tolist():
        file.seek(starts[n])
        if not file.read(lengths[n]).strip():
            blank.append(n)
    return Scanned(np.delete(starts, blank), np.delete(lengths, blank), content.digest())


def interleaved(
    counts: Sequence[int], *, cycle: int, block: int
) -> tuple[Int64[np.ndarray, " records"], Int64[np.ndarray, " records"]]:
    """Return the order in which `tf.data`'s interleave reads files of so many records.

    **Arguments:**

    - `counts`: records of each file.
    - `cycle`: files that are open at a time.
    - `block`: records that are read from one before the next has its turn.

    **Returns:** file and number in the file of each record.
    """
    runs: list[tuple[int, int, int]] = []
    waiting = iter(range(len(counts)))
    taken = [0] * len(counts)
    slots: list[int | None] = [None] * cycle
    turn, left = 0, sum(counts)
    while left:
        if slots[turn] is None:
            slots[turn] = next(waiting, None)
        file = slots[turn]
        if file is not None:
            run = min(block, counts[file] - taken[file])
            if run:
                runs.append((file, taken[file], run))
            taken[file] += run
            left -= run
            # A file that ends with its turn is found to be at its end only in its next one.
            if run < block:
                slots[turn] = None
        turn = (turn + 1) % cycle
    files, firsts, sizes = np.array(runs, np.int64).reshape(-1, 3).T
    return np.repeat(files, sizes), spans(firsts, sizes)


def _made(paths: Sequence[str], scan: Scan, order: ReadOrder | None) -> RecordIndex:
    def scanned(path: str) -> Scanned:
        try:
            with open(path, "rb") as file:
                return scan(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    with concurrent.futures.ThreadPoolExecutor() as threads:
        found = list(threads.map(scanned, paths))
    counts = [len(each.starts) for each in found]
    places = np.empty(sum(counts), PLACE)
    end = 0
    for n, each in enumerate(found):
        of_file = places[end : (end := end + len(each.starts))]
        of_file["file"], of_file["number"] = n, np.arange(len(of_file))
        of_file["start"], of_file["bytes"] = each.starts, each.lengths
    content = hashlib.sha256(repr(order).encode())
    for each in found:
        content.update(each.digest)
    if order is not None:
        places = places[_read_order(counts, order)]
    return RecordIndex(paths=tuple(paths), places=places, content_hash=content.hexdigest())


def _read_order(counts: Sequence[int], order: ReadOrder) -> Int64[np.ndarray, " records"]:
    firsts = np.cumsum(counts) - counts + np.array([each.skip for each in order.instructions])
    takes = [each.take for each in order.instructions]
    file, number = interleaved(takes, cycle=order.cycle, block=order.block)
    return firsts[file] + number  # type: ignore[no-any-return]


def _save(index: RecordIndex, folder: Path) -> None:
    cache_folder.write_array(folder / _INDEX, index.places)
    meta = {"records": len(index), "content_hash": index.content_hash}
    cache_folder.write_text(folder / _META, json.dumps(meta))


def _load(folder: Path, paths: Sequence[str]) -> RecordIndex | None:
    if not folder.exists():
        return None
    try:
        meta = json.loads((folder / _META).read_text())
        places = np.load(folder / _INDEX, mmap_mode="r")
        if places.dtype == PLACE and len(places) == meta["records"]:
            content_hash = meta["content_hash"]
            return RecordIndex(paths=tuple(paths), places=places, content_hash=content_hash)
    except (OSError, ValueError, KeyError, EOFError):
        pass
    cache_folder.discard(folder)
    return None
