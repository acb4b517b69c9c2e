"""Checkpoints of any format as `promot-t5x ckpt` looks at them: arrays by path.

Reads the project's own checkpoints, their optimizer's state included, and every other that
`checkpoints.opening` opens, of which it reads the parameters. Arrays come to the host one after the
other.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from promot_t5x.checkpoints.finding import find_directory, open_stored
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.hugging_face import HuggingFaceCheckpoint
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError
from promot_t5x.checkpoints.manifest import (
    BrokenCheckpointError,
    Manifest,
    load_manifest,
)
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    step_directory,
    step_of,
)
from promot_t5x.checkpoints.promot_checkpoint import read_verified
from promot_t5x.checkpoints.steps import complete_steps, stages_below
from promot_t5x.errors import UserError, listed
from promot_t5x.progress import Progress

_TARGET = "target/"
EXIT_DIFFERENT = 1  # or damaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArrays:
    """The arrays of an opened checkpoint, parameters under their paths in the model.

    **Attributes:**

    - `path`: where the checkpoint is.
    - `kind`: what it is, for people.
    - `shapes`: shape and dtype by path; an optimizer's arrays are under `state/`.
    - `read`: reads arrays by path as they are stored.
    - `manifest`: of the project's own checkpoints.
    """

    path: epath.Path
    kind: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[Sequence[str]], dict[str, Any]]
    manifest: Manifest | None = None

    @property
    def params(self) -> list[str]:
        """The paths of the parameters."""
        return sorted(path for path in self.shapes if not path.startswith("state/"))


def find_checkpoints(path: str) -> list[epath.Path]:
    """Return the directories of the checkpoints that a path means, complete or not.

    **Arguments:**

    - `path`: a name, or the directory of a checkpoint, of a stage, of a run or of a run with
      several seeds.

    **Raises:** `NotACheckpointError` where there is nothing at the path.
    """
    directory = find_directory(path)
    stages = {} if step_of(directory.name) is not None else stages_below(directory)
    found = [step_directory(stage, step) for stage, steps in stages.items() for step in steps]
    return found or [directory]


def open_arrays(path: str) -> StoredArrays:
    """Open one checkpoint: that of a path, or the newest of the one stage there.

    **Raises:** `UserError` where there is none, where there are several stages, or where it cannot
    be read.
    """
    found = find_checkpoints(path)
    stages = list(dict.fromkeys(place.parent for place in found))
    if len(stages) > 1:
        raise UserError(f"{path} holds the checkpoints of several stages: {listed(stages)}.")
    complete = complete_steps(stages[0])
    if len(found) == 1 or not complete:
        return open_directory(found[-1])
    return open_directory(step_directory(stages[0], complete[-1]))


def open_directory(directory: epath.Path) -> StoredArrays:
    """Open the checkpoint of a directory; `UserError` where it is damaged or none."""
    if not (directory / MANIFEST_FILE).exists():
        stored = open_stored(directory)
        files = stored.files if isinstance(stored, HuggingFaceCheckpoint) else []
        return StoredArrays(
            path=directory,
            kind=f"a checkpoint of the format {stored.format}, parameters only"
            + (f", from {listed(files)}" if files else ""),
            shapes=stored.shapes,
            read=lambda paths: stored.read({p: struct_of(stored.shapes[p]) for p in paths}),
        )
    try:
        manifest = load_manifest(directory)
    except BrokenCheckpointError as error:
        raise DamagedCheckpointError(f"{directory} is damaged: {error}") from None
    names = {path.removeprefix(_TARGET): path for path in manifest.arrays}
    shapes = {name: manifest.arrays[path].struct for name, path in names.items()}

    def read(paths: Sequence[str]) -> dict[str, Any]:
        like = {names[path]: shapes[path] for path in paths}
        try:
            found = read_verified(directory, like, manifest)
        except BrokenCheckpointError as error:
            raise DamagedCheckpointError(f"{directory} is damaged: {error}") from None
        return {path: found[names[path]] for path in paths}

    return StoredArrays(
        path=directory,
        kind=f"step {manifest.step} of a stage",
        shapes=shapes,
        read=read,
        manifest=manifest,
    )


@contextlib.contextmanager
def counted_progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a line of progress; what it yields is called after each of `total` arrays."""
    progress, done = Progress(label, total), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress.update(done)

    yield step
    progress.close()


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the shape and dtype of an array, or of its description."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def size_of(leaf: Any) -> int:
    """Return the bytes of an array, or of what is described."""
    return read_arrays.local_bytes(struct_of(leaf))


def bytes_text(size: int) -> str:
    """Return a number of bytes with a unit of a thousand each."""
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
