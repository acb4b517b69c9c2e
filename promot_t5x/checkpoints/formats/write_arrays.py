"""Writing arrays a few at a time: zarr directories, and orbax's databases of them.

Both are written with tensorstore alone, so that a checkpoint never has to be in memory whole, as
orbax would need it.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorstore as ts
from etils import epath

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.files import write_json

CHUNK_BYTES = 64 * 2**20  # T5X's
_KEY_OF_DICT = 2  # orbax's number for a node's key that is a dict's


def chunk_shape(shape: tuple[int, ...], itemsize: int, limit: int = CHUNK_BYTES) -> list[int]:
    """Return a chunk of at most `limit` bytes that divides the array; leading axes are cut first.

    **Arguments:**

    - `shape`, `itemsize`: of the array.
    - `limit`: bytes; 64 MiB, as T5X has it.
    """
    chunk = [*shape]
    for axis, size in enumerate(shape):
        most = limit // max(1, itemsize * int(np.prod(chunk)) // chunk[axis])
        if most >= size:
            break
        chunk[axis] = next(n for n in range(max(1, most), 0, -1) if size % n == 0)
    return chunk


def zarr_metadata(
    shape: tuple[int, ...], dtype: np.dtype, compressor: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a zarr array as T5X and orbax write them."""
    return {
        "chunks": chunk_shape(shape, dtype.itemsize),
        "compressor": dict(compressor),
        "shape": [*shape],
    }


def write_zarr(
    arrays: Mapping[str, np.ndarray],
    kvstores: Mapping[str, Mapping[str, Any]],
    compressor: Mapping[str, Any],
) -> None:
    """Write arrays, each to its key-value store; returns when all of them are on disk."""
    context = ts.Context()
    opening = {
        name: ts.open(
            {
                "driver": "zarr",
                "kvstore": dict(kvstores[name]),
                "metadata": zarr_metadata(array.shape, array.dtype, compressor),
                "dtype": array.dtype.name,
                # A chunk of zeros is written too: one that is missing is damage, not zeros.
                "store_data_equal_to_fill_value": True,
            },
            create=True,
            delete_existing=True,
            context=context,
        )
        for name, array in arrays.items()
    }
    _wait(opening.values())
    _wait([opening[name].result().write(array) for name, array in arrays.items()])


def _wait(futures: Collection[ts.Future[Any] | ts.WriteFutures]) -> None:
    """Let all end before the first error is raised: the caller may then remove the files."""
    raised = [error for future in futures if (error := future.exception()) is not None]
    if raised:
        raise raised[0]


class OrbaxWriter:
    """Writes an orbax PyTree directory, `checkpoint_<step>/state`, array by array.

    **Attributes:**

    - `paths`: '/'-joined, of the arrays written so far.
    """

    _COMPRESSOR: ClassVar[dict[str, Any]] = {"id": "zstd", "level": 1}  # orbax's

    def __init__(self, directory: epath.Path):
        self._directory = directory
        self.paths: set[str] = set()
        directory.mkdir(parents=True, exist_ok=True)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by '/'-joined path."""
        base = read_arrays.kvstore(self._directory)
        stores = {
            path: {"driver": "ocdbt", "base": base, "path": path.replace("/", ".") + "/"}
            for path in arrays
        }
        write_zarr(arrays, stores, self._COMPRESSOR)
        self.paths |= arrays.keys()

    def close(self, empty: Iterable[str] = ()) -> None:
        """Write what makes a database of arrays a checkpoint of orbax.

        **Arguments:**

        - `empty`: '/'-joined paths of dicts that have nothing in them.
        """
        nodes = dict.fromkeys(self.paths, ("np.ndarray", False))
        nodes |= dict.fromkeys(empty, ("Dict", True))
        tree = {}
        for path, (kind, skip) in sorted(nodes.items()):
            keys = path.split("/")
            tree[str(tuple(keys))] = {
                "key_metadata": [{"key": key, "key_type": _KEY_OF_DICT} for key in keys],
                "value_metadata": {"value_type": kind, "skip_deserialize": skip},
            }
        metadata = {
            "tree_metadata": tree,
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        write_json(self._directory / read_arrays.ORBAX_TREE_FILE, metadata)
