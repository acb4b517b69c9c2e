"""Arrays on disk, read through tensorstore: the zarr directories of T5X, orbax's databases.

Reads of many arrays run side by side; of a sharded array, each process reads its own part.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from etils import epath

ORBAX_TREE_FILE = "_METADATA"
_ORBAX_DATABASE_FILE = "manifest.ocdbt"
_CACHE_BYTES = 100 * 10**6
_READERS = 16
PORTION_BYTES = 2**30


def _context() -> ts.Context:
    # A context of its own for each opening: a shared cache would hold what was there before.
    return ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})


def kvstore(path: epath.Path) -> dict[str, Any]:
    """Return tensorstore's name of a directory, local or `gs://`."""
    text = str(path).rstrip("/") + "/"
    if text.startswith("gs://"):
        bucket, _, key = text.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": key}
    return {"driver": "file", "path": text}


def open_zarr(directories: Mapping[str, epath.Path]) -> dict[str, ts.TensorStore]:
    """Open zarr directories, local or `gs://`, by name."""
    context = _context()
    return _open({n: ("zarr", kvstore(path)) for n, path in directories.items()}, context)


def _orbax_metadata(directory: epath.Path) -> dict[str, Any]:
    try:
        metadata: dict[str, Any] = json.loads((directory / ORBAX_TREE_FILE).read_text())
    except OSError as error:
        raise ValueError(f"{directory / ORBAX_TREE_FILE} cannot be read: {error}") from error
    return metadata


def orbax_paths(directory: epath.Path) -> list[str]:
    """Return the '/'-joined paths of the arrays of an orbax PyTree checkpoint."""
    try:
        nodes = _orbax_metadata(directory)["tree_metadata"].values()
        return [
            "/".join(str(part["key"]) for part in node["key_metadata"])
            for node in nodes
            if not node["value_metadata"]["skip_deserialize"]  # an empty node
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory / ORBAX_TREE_FILE} is damaged: no {error}") from error


def open_orbax(directory: epath.Path, paths: Iterable[str]) -> dict[str, ts.TensorStore]:
    """Open arrays of an orbax PyTree checkpoint.

    **Arguments:**

    - `directory`: the orbax directory, `checkpoint_<step>/state`.
    - `paths`: '/'-joined paths in the saved tree.
    """
    metadata = _orbax_metadata(directory)
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    database = (directory / _ORBAX_DATABASE_FILE).exists()
    specs = {}
    for path in paths:
        key = path.replace("/", ".")
        if database:
            store = {"driver": "ocdbt", "base": kvstore(directory), "path": key + "/"}
        else:
            store = kvstore(directory / key)
        specs[path] = (driver, store)
    return _open(specs, _context())


def _open(
    specs: Mapping[str, tuple[str, dict[str, Any]]], context: ts.Context
) -> dict[str, ts.TensorStore]:
    opening = {
        name: ts.open(
            # A chunk that is gone is an error, not zeros.
            {"driver": driver, "kvstore": store, "fill_missing_data_reads": False},
            context=context,
            open=True,
            read=True,
        )
        for name, (driver, store) in specs.items()
    }
    return {name: _named(name, future.result) for name, future in opening.items()}


def _named(name: str, call: Callable[[], Any]) -> Any:
    """Call, with errors that say of which array they are."""
    try:
        return call()
    except (ValueError, OSError, KeyError) as error:  # tensorstore's are ValueErrors
        raise ValueError(f"{name} cannot be read: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what went wrong, without tensorstore's account of all that it was doing meanwhile."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    text = text.split(" [tensorstore_spec")[0].split(" [source locations")[0].strip()
    code = re.match(r"[A-Z_]+: ", text)
    return (code[0] + text.rpartition('": ')[2] if code and '": ' in text else text)[:400]


def stored_as(array: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an opened array."""
    dtype = array.dtype.numpy_dtype if isinstance(array, ts.TensorStore) else array.dtype
    return jax.ShapeDtypeStruct(array.shape, dtype)


def portions(wanted: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Part what is to be read, in order, so that a part takes `PORTION_BYTES` of this host.

    An array of which this host needs more than that is a part of its own.
    """
    part: dict[str, Any] = {}
    left = PORTION_BYTES
    for path, leaf in wanted.items():
        size = local_bytes(leaf)
        if part and size > left:
            yield part
            part, left = {}, PORTION_BYTES
        part[path] = leaf
        left -= size
    if part:
        yield part


def local_bytes(leaf: Any) -> int:
    """Return the bytes of an array that this process reads: all, or what its devices hold."""
    whole: int = int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return whole
    shard = int(np.prod(sharding.shard_shape(tuple(leaf.shape))))
    held: int = shard * np.dtype(leaf.dtype).itemsize * len(sharding.addressable_devices)
    return min(whole, held)


def read(arrays: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Read opened arrays.

    **Arguments:**

    - `arrays`: by path: tensorstores, arrays, or what gives numpy arrays when it is indexed.
    - `wanted`: {path: anything with a shape, a dtype and perhaps a sharding}. With a sharding the
      result is a JAX array, without one a numpy array; in its dtype either way.

    **Raises:** `ValueError`, which names the array that cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        results = {path: pool.submit(_read, arrays[path], leaf) for path, leaf in wanted.items()}
        return {path: _named(path, future.result) for path, future in results.items()}


def read_block(array: ts.TensorStore, block: tuple[slice, ...]) -> np.ndarray:
    """Read a part of an opened array.

    **Raises:** `ValueError` where it cannot be read.
    """
    return np.asarray(_named("a part", lambda: array[block].read().result()))


def _read(stored: Any, wanted: Any) -> Any:
    sharding = getattr(wanted, "sharding", None)
    parts: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = repr(index)
        if key not in parts:  # each device that holds a replica asks again
            piece = stored[index]
            piece = piece.read().result() if isinstance(piece, ts.TensorStore) else piece
            # What is too large for the type becomes infinite, and is refused by its reader.
            with np.errstate(over="ignore"):
                parts[key] = np.asarray(piece).astype(wanted.dtype, copy=False)
        return parts[key]

    if sharding is None:
        return part(...)
    # A format also says in which order the array lies in memory.
    where = getattr(wanted, "format", sharding)
    return jax.make_array_from_callback(tuple(wanted.shape), where, part)
