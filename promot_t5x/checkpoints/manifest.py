"""The manifest of a checkpoint: what it holds, with a checksum for every array.

Orbax writes the arrays and notices no flipped byte; the manifest does. It is written after orbax
has committed, and last of all, so its presence means a complete checkpoint.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.paths import MANIFEST_FILE
from promot_t5x.errors import listed
from promot_t5x.files import write_atomically

FORMAT = "promot_t5x checkpoint 1"
SHOWN = 3  # of what is damaged


class BrokenCheckpointError(Exception):
    """A checkpoint is incomplete or does not hold what its manifest says."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArrayRecord:
    """One array of a checkpoint.

    **Attributes:**

    - `shape`: the global shape.
    - `dtype`: the dtype's name, such as 'bfloat16'.
    - `blocks`: start index, block shape and digest of each block; a block is a shard, recorded by
      the process that holds its first replica.
    """

    shape: tuple[int, ...]
    dtype: str
    blocks: tuple[tuple[tuple[int, ...], tuple[int, ...], str], ...]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "ArrayRecord":
        """Build a record from what `dataclasses.asdict` and JSON made of one."""
        blocks = tuple((tuple(start), tuple(shape), d) for start, shape, d in record["blocks"])
        return cls(shape=tuple(record["shape"]), dtype=record["dtype"], blocks=blocks)

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype, as JAX has them."""
        return jax.ShapeDtypeStruct(self.shape, np.dtype(self.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds.

    **Attributes:**

    - `step`: the training step.
    - `arrays`: a record for each array, by its '/'-joined path below `state/`.
    - `files`: the size in bytes of each file, by its path relative to the checkpoint.
    - `metadata`: the caller's own JSON.
    - `versions`: the versions of the libraries that wrote the checkpoint.
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


def checksum_of(body: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest's own JSON, which it carries as `checksum`."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashing.hex_digest(text.encode())


def file_sizes(directory: epath.Path) -> dict[str, int]:
    """Return the sizes of the files below the subdirectories of a checkpoint."""
    sizes: dict[str, int] = {}
    unread = [entry for entry in directory.iterdir() if entry.is_dir()]
    while unread:
        for entry in unread.pop().iterdir():
            if entry.is_dir():
                unread.append(entry)
            else:
                sizes[str(entry.relative_to(directory))] = entry.stat().length
    return sizes


def write_manifest(directory: epath.Path, manifest: Manifest) -> None:
    """Write a manifest into a committed checkpoint, which thereby starts to count."""
    body = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(manifest)}))
    text = json.dumps({**body, "checksum": checksum_of(body)}, indent=1)
    write_atomically(directory / MANIFEST_FILE, text)


def read_manifest(directory: epath.Path) -> Manifest:
    """Read a manifest and check that every file is there at its full length.

    **Raises:** `BrokenCheckpointError`, which names the first files that are missing or cut.
    """
    manifest = load_manifest(directory)
    if wrong := wrong_files(directory, manifest.files):
        raise BrokenCheckpointError(listed(wrong, SHOWN, "; "))
    return manifest


def load_manifest(directory: epath.Path) -> Manifest:
    """Read a manifest alone.

    **Raises:** `BrokenCheckpointError` where it is missing or damaged.
    """
    path = directory / MANIFEST_FILE
    try:
        body = json.loads(path.read_text())
        checksum = body.pop("checksum")
        valid = checksum == checksum_of(body) and body["format"] == FORMAT
    except FileNotFoundError:
        raise BrokenCheckpointError(f"{path} is missing") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        valid = False
    if not valid:
        raise BrokenCheckpointError(f"{path} is damaged")
    del body["format"]
    body["arrays"] = {p: ArrayRecord.from_json(r) for p, r in body["arrays"].items()}
    return Manifest(**body)


def wrong_files(directory: epath.Path, expected: Mapping[str, int]) -> list[str]:
    """Return a sentence on each file of a checkpoint that is missing or has another length.

    **Arguments:**

    - `directory`: of the checkpoint.
    - `expected`: sizes in bytes, by path relative to it.
    """
    found = file_sizes(directory)
    return [
        f"{directory / name} has {found[name]} bytes, not {size}"
        if name in found
        else f"{directory / name} is missing"
        for name, size in expected.items()
        if found.get(name) != size
    ]
