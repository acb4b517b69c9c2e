"""Where the parts of a run's checkpoints lie, by their names alone.

A stage's directory, MODEL_DIR/<stage>, holds

    checkpoint_<step>/
        state/            the arrays, in orbax's PyTree format, laid out as T5X does:
                          target/... what trains, state/step, state/opt_state/...
        manifest.json     shape, dtype and checksum of each array; metadata; last to be written
        metrics.json      scores that evaluation added afterwards
        PINNED            put there by the user: never removed, as in T5X
    pending_<step>/       there while a save or a removal is under way
"""

import os
import re

from etils import epath

from promot_t5x.paths import is_remote, user_path

CHECKPOINT_PREFIX = "checkpoint_"
PENDING_PREFIX = "pending_"
STATE_DIRECTORY = "state"
MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.json"
PIN_FILE = "PINNED"


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Return a path that orbax accepts: absolute, or a bucket's as it is."""
    place = user_path(path, "a checkpoint's path")
    # etils would make '<current directory>/gs:/bucket' of it.
    return place if is_remote(place) else place.resolve()


def step_directory(directory: str | os.PathLike[str], step: int) -> epath.Path:
    """Return the directory of a step's checkpoint."""
    return absolute(directory) / f"{CHECKPOINT_PREFIX}{step}"


def pending_marker(directory: str | os.PathLike[str], step: int) -> epath.Path:
    """Return the directory that exists while a step is being saved or removed."""
    return absolute(directory) / f"{PENDING_PREFIX}{step}"


def step_of(name: str) -> int | None:
    """Return the step in the name `checkpoint_<step>` of a directory; None for another name."""
    match = re.fullmatch(rf"{CHECKPOINT_PREFIX}(\d+)", name)
    return int(match[1]) if match else None


def numbered_steps(directory: str | os.PathLike[str], prefix: str = CHECKPOINT_PREFIX) -> list[int]:
    """Return the steps of the entries `<prefix><step>` of a directory, complete or not, ascending.

    A directory that does not exist has none.
    """
    place = absolute(directory)
    if not place.is_dir():
        return []
    matches = (re.fullmatch(rf"{prefix}(\d+)", entry.name) for entry in place.iterdir())
    return sorted(int(match[1]) for match in matches if match)
