"""One of this project's own checkpoints as a source of parameters, verified as they are read."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints.checksums import check_types, verify_checksums
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.checkpoints.manifest import BrokenCheckpointError, Manifest, read_manifest
from promot_t5x.checkpoints.paths import STATE_DIRECTORY

_PARAMETERS = "target/"


class PromotCheckpoint:
    """The parameters of a checkpoint that a stage saved or a conversion wrote.

    A stage that trained only a part of a model saved only that part.

    **Attributes:**

    - `directory`: the `checkpoint_<step>` directory.
    - `manifest`: what it holds, the optimizer's state included.
    - `shapes`: shape and dtype of each parameter, by path.
    """

    format = "promot"

    def __init__(self, directory: epath.Path):
        """Read the manifest of a directory.

        **Raises:** `DamagedCheckpointError` where it or a file that it names is not as it was.
        """
        self.directory = directory
        try:
            self.manifest = read_manifest(directory)
        except BrokenCheckpointError as error:
            raise DamagedCheckpointError(f"{directory} is damaged: {error}") from error
        records = self.manifest.subtree(_PARAMETERS.removesuffix("/"))
        self.shapes: Shapes = {path: record.struct for path, record in records.items()}

    @property
    def step(self) -> int:
        """The training step."""
        return self.manifest.step

    @property
    def is_whole(self) -> bool:
        """Whether it holds a whole model; otherwise only what its stage trained."""
        return EMBEDDING in self.shapes

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        stored = {
            _PARAMETERS + p: jax.ShapeDtypeStruct(
                leaf.shape, self.shapes[p].dtype, sharding=leaf.format
            )
            for p, leaf in wanted.items()
        }
        try:
            arrays = read_verified(self.directory, stored, self.manifest)
        except BrokenCheckpointError as error:
            raise DamagedCheckpointError(f"{self.directory} is damaged: {error}") from error
        return {path: _as_wanted(arrays[_PARAMETERS + path], leaf) for path, leaf in wanted.items()}


def _as_wanted(array: Any, wanted: jax.ShapeDtypeStruct) -> Any:
    """Return an array in the dtype that is wanted, where it is and in its order in memory."""
    if array.dtype == wanted.dtype or not isinstance(array, jax.Array):
        return array.astype(wanted.dtype, copy=False)
    return jax.jit(lambda a: a.astype(wanted.dtype), out_shardings=wanted.format)(array)


def read_verified(
    step_dir: epath.Path, like: Mapping[str, Any], manifest: Manifest, *, verify: bool = True
) -> dict[str, Any]:
    """Read some arrays of one of our checkpoints and check them against its manifest.

    **Arguments:**

    - `step_dir`: the `checkpoint_<step>` directory.
    - `like`: {'/'-joined path below `state/`: array or ShapeDtypeStruct}, with shapes and dtypes as
      in the manifest. With a sharding the result is a JAX array so sharded, without one a numpy
      array.
    - `manifest`: the directory's.
    - `verify`: compare checksums.

    **Raises:** `BrokenCheckpointError`, which names what is unreadable or has a wrong checksum.
    """
    state = step_dir / STATE_DIRECTORY
    arrays: dict[str, Any] = {}
    try:
        for part in read_arrays.portions(like):
            stores = read_arrays.open_orbax(state, part)
            check_types(stores, manifest.arrays)
            arrays |= read_arrays.read(stores, part)
            if verify:
                read = {path: arrays[path] for path in part}
                verify_checksums(read, manifest.arrays, functools.partial(_fetch, stores))
    except (BrokenCheckpointError, ValueError) as error:
        raise BrokenCheckpointError(f"{state}: {error}") from error
    return arrays


def _fetch(stores: Mapping[str, Any], path: str, block: tuple[slice, ...]) -> np.ndarray:
    return read_arrays.read_block(stores[path], block)
