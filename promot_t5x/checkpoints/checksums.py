"""The checksums in a manifest: taken of arrays as they are saved, compared as they are read.

An array is recorded in blocks, one for each shard, by the process that holds the shard's first
replica, and compared in the same blocks however it is sharded by then.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints import finite, hashing
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.manifest import SHOWN, ArrayRecord, BrokenCheckpointError
from promot_t5x.errors import listed

# (start index, the numbers) of each block of an array.
Blocks = list[tuple[tuple[int, ...], np.ndarray]]


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


def record_arrays(
    blocks: Mapping[str, tuple[tuple[int, ...], str, Blocks]],
) -> dict[str, dict[str, Any]]:
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


def merge_records(parts: list[dict[str, dict[str, Any]]]) -> dict[str, ArrayRecord]:
    """Join the records that several processes made of the same arrays."""
    merged: dict[str, ArrayRecord] = {}
    for part in parts:
        for path, made in part.items():
            record = ArrayRecord.from_json(made)
            held = merged[path].blocks if path in merged else ()
            merged[path] = dataclasses.replace(record, blocks=held + record.blocks)
    return merged


def find_damage(
    state: epath.Path, records: Mapping[str, ArrayRecord], *, check_finite: bool = False
) -> dict[str, str]:
    """Read recorded blocks again, one at a time, and say what is wrong with which arrays.

    **Arguments:**

    - `state`: the directory of the arrays.
    - `records`: what they should hold; arrays that are not in it are not read.
    - `check_finite`: count numbers that are not finite as damage.

    **Returns:** {path: what is wrong}, of damaged arrays only.
    """
    try:
        stores = read_arrays.open_orbax(state, records)
    except ValueError as error:
        if len(records) == 1:
            return dict.fromkeys(records, str(error).removeprefix(f"{next(iter(records))} "))
        # Which ones cannot be opened shows one by one.
        single = ({path: record} for path, record in records.items())
        found = [find_damage(state, each, check_finite=check_finite) for each in single]
        return {path: problem for each in found for path, problem in each.items()}
    problems = {
        path: _damage_of(stores[path], record, path if check_finite else None)
        for path, record in records.items()
    }
    return {path: problem for path, problem in problems.items() if problem}


def check_types(stores: Mapping[str, Any], records: Mapping[str, ArrayRecord]) -> None:
    """Raise `BrokenCheckpointError` for opened arrays of another shape or dtype than recorded."""
    problems = {path: _wrong_type(store, records[path]) for path, store in stores.items()}
    if wrong := [f"{path} {problem}" for path, problem in problems.items() if problem]:
        raise BrokenCheckpointError(listed(wrong, SHOWN, "; "))


def _wrong_type(store: Any, record: ArrayRecord) -> str:
    stored = read_arrays.stored_as(store)
    if (stored.shape, stored.dtype) == (record.shape, np.dtype(record.dtype)):
        return ""
    wanted = f"{record.dtype}{list(record.shape)}"
    return f"is {stored.dtype.name}{list(stored.shape)}, not {wanted}"


def _damage_of(store: Any, record: ArrayRecord, finite_path: str | None) -> str:
    if problem := _wrong_type(store, record):
        return problem
    for start, shape, value in record.blocks:
        block = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        try:
            numbers = read_arrays.read_block(store, block)
        except ValueError as error:
            return str(error)
        if hashing.digest(numbers) != value:
            return "has a wrong checksum"
        if finite_path is not None and finite.non_finite_state({finite_path: numbers}):
            return "holds numbers that are not finite"
    return ""


def _within(
    start: tuple[int, ...], shape: tuple[int, ...], index: tuple[slice, ...], whole: tuple[int, ...]
) -> bool:
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


def verify_checksums(
    arrays: Mapping[str, Any],
    records: Mapping[str, ArrayRecord],
    fetch: Callable[[str, tuple[slice, ...]], np.ndarray],
) -> None:
    """Compare arrays' bytes with their records.

    Every process checks the blocks that it holds. Blocks that none holds whole, because the
    arrays were sharded otherwise when they were saved, are shared out and read again.

    **Arguments:**

    - `arrays`: by path.
    - `records`: by path; what is not in `arrays` is left out.
    - `fetch`: reads a part of an array, given its path and index.

    **Raises:** `BrokenCheckpointError`, which names the first arrays that differ.
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
        raise BrokenCheckpointError(f"wrong checksum of {listed(wrong, SHOWN, '; ')}")
