"""The manifest of a checkpoint: what it holds, with a checksum for every array.

Orbax writes the arrays and notices no flipped byte; the manifest does. It is written
after orbax has committed, and last of all, so its presence means a complete checkpoint.
An array is recorded in blocks, one for each shard, taken by the process that holds the
shard's first replica.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.formats import read_arrays

FILE_NAME = "manifest.json"
FORMAT = "promot_t5x checkpoint 1"
_NAMED = 3

Blocks = list[tuple[tuple[int, ...], np.ndarray]]


class BrokenCheckpointError(Exception):
    """A checkpoint is incomplete or does not hold what its manifest says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array of a checkpoint.

    Attributes:
      shape: the global shape.
      dtype: the dtype's name, such as 'bfloat16'.
      blocks: (start index, block shape, digest) for each block.
    """

    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...], str], ...]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ArrayRecord":
        """Build a record from what `dataclasses.asdict` and JSON made of one."""
        blocks = tuple((tuple(start), tuple(shape), d) for start, shape, d in record["blocks"])
        return cls(shape=tuple(record["shape"]), dtype=record["dtype"], blocks=blocks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    Attributes:
      step: the training step.
      arrays: a record for each array, by its '/'-joined path below `state/`.
      files: the size in bytes of each file, by its path relative to the checkpoint.
      metadata: the caller's own JSON.
      versions: the versions of the libraries that wrote the checkpoint.
    """

    step: int
    arrays: Mapping[str, ArrayRecord]
    files: Mapping[str, int]
    metadata: Mapping[str, Any]
    versions: Mapping[str, str]

    def subtree(self, prefix: str) -> dict[str, ArrayRecord]:
        """Return the records below `prefix/`, by the rest of their paths."""
        start = prefix + "/"
        return {p[len(start) :]: r for p, r in self.arrays.items() if p.startswith(start)}


def write_text(path: epath.Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    scratch = path.parent / (path.name + ".tmp")
    scratch.write_text(text)
    scratch.replace(path)


def checksum_of(body: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest's own JSON, which it carries as `checksum`."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashing.hex_digest(text.encode())


def file_sizes(directory: epath.Path) -> dict[str, int]:
    """Return the sizes of the files below the subdirectories of a checkpoint."""
    sizes = {}
    unread = [entry for entry in directory.iterdir() if entry.is_dir()]
    while unread:
        for entry in unread.pop().iterdir():
            if entry.is_dir():
                unread.append(entry)
            else:
                sizes[str(entry.relative_to(directory))] = entry.stat().length
    return sizes


def write(directory: epath.Path, manifest: Manifest) -> None:
    """Write a manifest into a committed checkpoint, which thereby starts to count."""
    body = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}))
    write_text(directory / FILE_NAME, json.dumps({**body, "checksum": checksum_of(body)}, indent=1))


def read(directory: epath.Path) -> Manifest:
    """Read a manifest and check that every file is there at its full length.

    Raises:
      BrokenCheckpointError: the message names the first files that are amiss.
    """
    manifest = load(directory)
    if wrong := wrong_files(directory, manifest.files):
        raise BrokenCheckpointError(some(wrong))
    return manifest


def load(directory: epath.Path) -> Manifest:
    """Read a manifest alone.

    Raises:
      BrokenCheckpointError: it is missing or damaged.
    """
    path = directory / FILE_NAME
    try:
        body = json.loads(path.read_text())
        checksum = body.pop("checksum")
        sound = checksum == checksum_of(body) and body["format"] == FORMAT
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path} is missing") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        sound = False
    if not sound:
        raise BrokenCheckpointError(f"{path} is damaged")
    del body["format"]
    body["arrays"] = {p: ArrayRecord.from_json(r) for p, r in body["arrays"].items()}
    return Manifest(**body)


def wrong_files(directory: epath.Path, expected: Mapping[str, int]) -> list[str]:
    """Say which files of a checkpoint are missing or of another length than expected."""
    found = file_sizes(directory)
    return [
        f"{directory / name} has {found[name]} bytes, not {size}"
        if name in found
        else f"{directory / name} is missing"
        for name, size in expected.items()
        if found.get(name) != size
    ]


def some(items: list[str]) -> str:
    """The first few of some names, and how many more there are."""
    rest = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return "; ".join(items[:_NAMED]) + rest


def host_blocks(array: Any) -> Blocks:
    """Copy to the host the blocks of an array that this process vouches for: first replicas.

    The copies share no memory with the array, which may be donated at once.
    """
    if isinstance(array, jax.Array):
        shards = [s for s in array.addressable_shards if s.replica_id == 0]
        return [(_start(s.index), np.array(s.data)) for s in shards]
    return [((0,) * np.ndim(array), np.array(array))] if jax.process_index() == 0 else []


def _start(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(s.start or 0 for s in index)


def record_arrays(blocks: Mapping[str, tuple[tuple[int, ...], str, Blocks]]) -> dict[str, dict]:
    """Return JSON-ready array records from {path: (global shape, dtype name, blocks)}."""
    flat = {(p, i): b for p, (_, _, bs) in blocks.items() for i, (_, b) in enumerate(bs)}
    sums = hashing.digests({f"{path}\0{i}": block for (path, i), block in flat.items()})
    return {
        path: {
            "shape": shape,
            "dtype": dtype,
            "blocks": [(s, b.shape, sums[f"{path}\0{i}"]) for i, (s, b) in enumerate(own)],
        }
        for path, (shape, dtype, own) in blocks.items()
    }


def merge_records(parts: list[dict[str, dict]]) -> dict[str, ArrayRecord]:
    """Join the records that several processes made of the same arrays."""
    merged: dict[str, ArrayRecord] = {}
    for part in parts:
        for path, made in part.items():
            record = ArrayRecord.from_json(made)
            held = merged[path].blocks if path in merged else ()
            merged[path] = dataclasses.replace(record, blocks=held + record.blocks)
    return merged


def damage(state: epath.Path, records: Mapping[str, ArrayRecord]) -> dict[str, str]:
    """Read recorded blocks again and say, by array, what is wrong; one block is held at a time.

    Args:
      state: the directory of the arrays.
      records: what they should hold; arrays that are not in it are not read.
    """
    try:
        stores = read_arrays.open_orbax(state, records)
    except ValueError as error:
        if len(records) == 1:
            return dict.fromkeys(records, str(error).removeprefix(f"{next(iter(records))} "))
        # Which ones cannot be opened shows one by one.
        return {p: d for path, r in records.items() for p, d in damage(state, {path: r}).items()}
    problems = {path: _damage_of(stores[path], record) for path, record in records.items()}
    return {path: problem for path, problem in problems.items() if problem}


def check_types(stores: Mapping[str, Any], records: Mapping[str, ArrayRecord]) -> None:
    """Raise `BrokenCheckpointError` for opened arrays of another shape or dtype than recorded."""
    problems = {path: _wrong_type(store, records[path]) for path, store in stores.items()}
    if wrong := [f"{path} {problem}" for path, problem in problems.items() if problem]:
        raise BrokenCheckpointError(some(wrong))


def _wrong_type(store: Any, record: ArrayRecord) -> str:
    stored = read_arrays.stored_as(store)
    if (stored.shape, stored.dtype) == (record.shape, np.dtype(record.dtype)):
        return ""
    wanted = f"{record.dtype}{list(record.shape)}"
    return f"is {stored.dtype.name}{list(stored.shape)}, not {wanted}"


def _damage_of(store: Any, record: ArrayRecord) -> str:
    if problem := _wrong_type(store, record):
        return problem
    for start, shape, value in record.blocks:
        block = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        try:
            found = hashing.digest(read_arrays.read_block(store, block))
        except ValueError as error:
            return str(error)
        if found != value:
            return "has a wrong checksum"
    return ""


def _within(start: tuple, shape: tuple, index: tuple[slice, ...], whole: tuple) -> bool:
    """Return whether a block lies within a shard's part of an array of shape `whole`."""
    parts = zip(start, shape, index, whole, strict=True)
    return all((i.start or 0) <= a and a + n <= (i.stop or size) for a, n, i, size in parts)


def _visible(array: Any, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray | None:
    """Return a block of an array, or None where this process does not hold it in one shard."""
    whole = tuple(slice(0, size) for size in np.shape(array))
    parts = [(whole, array)]
    if isinstance(array, jax.Array):
        parts = [(shard.index, shard.data) for shard in array.addressable_shards]
    for index, data in parts:
        if _within(start, shape, index, np.shape(array)):
            low = _start(index)
            block = zip(start, shape, low, strict=True)
            part = tuple(slice(a - o, a - o + n) for a, n, o in block)
            return np.asarray(hashing.host_array(data)[part])
    return None


def _held_somewhere(array: jax.Array, start: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    places = array.sharding.devices_indices_map(array.shape).values()
    return any(_within(start, shape, index, array.shape) for index in places)


def verify(
    arrays: Mapping[str, Any],
    records: Mapping[str, ArrayRecord],
    fetch: Callable[[str, tuple[slice, ...]], np.ndarray],
) -> None:
    """Compare arrays' bytes with their records.

    Every process checks the blocks that it holds. Blocks that none holds whole, because the
    arrays were sharded otherwise when they were saved, are shared out and read again.

    Args:
      arrays: by path.
      records: by path; what is not in `arrays` is left out.
      fetch: reads a part of an array, given its path and index.

    Raises:
      BrokenCheckpointError: the message names the first arrays that differ.
    """
    blocks, wanted, turn = {}, {}, 0
    for path in sorted(arrays):
        for i, (start, shape, value) in enumerate(records[path].blocks):
            block = _visible(arrays[path], start, shape)
            if block is None and not _held_somewhere(arrays[path], start, shape):
                turn += 1
                if turn % jax.process_count() == jax.process_index():
                    stop = (slice(a, a + n) for a, n in zip(start, shape, strict=True))
                    block = fetch(path, tuple(stop))
            if block is not None:
                blocks[f"{path}\0{i}"], wanted[f"{path}\0{i}"] = block, value
    found = hashing.digests(blocks)
    wrong = sorted({key.split("\0")[0] for key in wanted if found[key] != wanted[key]})
    if wrong:
        raise BrokenCheckpointError(f"wrong checksum of {some(wrong)}")
