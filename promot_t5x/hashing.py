"""Content hashes of arrays and parameter trees.

A hash depends on path, dtype, shape and bytes alone: not on the order of a tree, the
sharding, the device or the number of hosts. Arrays are hashed in 64 MiB pieces on all
cores, with SHA-256, for which processors have instructions: 1.8 GB/s measured on one core,
against 0.65 for blake2b. mT5 XXL (52 GB) so takes half a minute on one core.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils

PIECE_BYTES = 64 * 2**20
_DIGEST_BYTES = 16


def _sha(data: Any) -> bytes:
    return hashlib.sha256(data).digest()[:_DIGEST_BYTES]


def hex_digest(data: bytes) -> str:
    """Return the first 128 bits of the SHA-256 of some bytes."""
    return _sha(data).hex()


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return digests of arrays' bytes (C order), by the same names.

    An array of at most `PIECE_BYTES` has the `hex_digest` of its bytes; a larger one that
    of its pieces' digests, joined, which lets all cores work on it.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        pending = {}
        for name, array in arrays.items():
            data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            starts = range(0, max(data.size, 1), PIECE_BYTES)
            pending[name] = [pool.submit(_sha, data[s : s + PIECE_BYTES]) for s in starts]
        pieces = {name: [f.result() for f in futures] for name, futures in pending.items()}
    joined = {n: p[0] if len(p) == 1 else _sha(b"".join(p)) for n, p in pieces.items()}
    return {name: value.hex() for name, value in joined.items()}


def digest(array: np.ndarray) -> str:
    """Return the digest of one array, as `digests` does."""
    return digests({"": array})[""]


def host_array(array: Any) -> np.ndarray:
    """Return the whole of an array on this host, gathering it from other hosts if need be.

    Every process must call this when an array spans processes.
    """
    if not isinstance(array, jax.Array):
        return np.asarray(array)
    if array.is_fully_replicated:
        array = array.addressable_data(0)
    if not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    if next(iter(array.devices())).platform == "cpu":
        return np.asarray(array)
    # An array keeps the host copy that numpy once asked for; a copy's goes with the copy.
    return np.asarray(array.copy())


def content_hash(params: Mapping[str, Any]) -> str:
    """Return a hex hash of a parameter tree: paths, dtypes, shapes and bytes.

    Args:
      params: a nested dict of numpy or JAX arrays.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    lines = []
    for path in sorted(flat):
        array = host_array(flat[path])
        lines.append(f"{path}\0{array.dtype.name}\0{array.shape}\0{digest(array)}\n")
    return hex_digest("".join(lines).encode())
