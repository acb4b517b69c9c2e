"""Reads checkpoints again and compares checksums: `promot-t5x ckpt verify`."""

import argparse
import contextlib

import numpy as np
from etils import epath

from promot_t5x.checkpoints.checksums import find_damage
from promot_t5x.checkpoints.finding import UnfinishedCheckpointError, open_stored
from promot_t5x.checkpoints.finite import non_finite
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError, NotACheckpointError
from promot_t5x.checkpoints.manifest import (
    BrokenCheckpointError,
    load_manifest,
    wrong_files,
)
from promot_t5x.checkpoints.opening import check_floating
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    STATE_DIRECTORY,
)
from promot_t5x.cli.ckpt_arrays import (
    EXIT_DIFFERENT,
    bytes_text,
    counted_progress,
    find_checkpoints,
    size_of,
    struct_of,
)
from promot_t5x.errors import UserError


def verify(arguments: argparse.Namespace) -> int:
    """Read everything again and compare what can be compared: `ckpt verify`."""
    found = []
    for path in arguments.directories:
        places = find_checkpoints(path)
        if len(places) == 1 and not (places[0] / MANIFEST_FILE).exists():
            # What is no checkpoint is said before the first one is read, which may take hours.
            with contextlib.suppress(DamagedCheckpointError, UnfinishedCheckpointError):
                open_stored(places[0])
        found += places
    return max(map(_verify, found))


def _verify(step_dir: epath.Path) -> int:
    try:
        own = (step_dir / MANIFEST_FILE).exists()
        problems, done = _verify_own(step_dir) if own else _verify_other(step_dir)
    except UnfinishedCheckpointError as error:
        print(f"{step_dir}: unfinished, does not count. {error}")
        return 0
    except NotACheckpointError as error:
        print(f"{step_dir}: not a checkpoint. {error}")
        return EXIT_DIFFERENT
    except DamagedCheckpointError as error:
        problems, done = [str(error)], ""
    for problem in problems:
        print(f"{step_dir}: {problem}")
    result = f"DAMAGED ({len(problems)} problems)" if problems else f"sound, {done}"
    print(f"{step_dir}: {result}")
    return EXIT_DIFFERENT if problems else 0


def _verify_own(step_dir: epath.Path) -> tuple[list[str], str]:
    try:
        manifest = load_manifest(step_dir)
    except BrokenCheckpointError as error:
        return [str(error)], ""
    problems = wrong_files(step_dir, manifest.files)
    with counted_progress(f"verifying {step_dir.name}", len(manifest.arrays)) as step:
        for path, record in manifest.arrays.items():
            wrong = find_damage(step_dir / STATE_DIRECTORY, {path: record}, check_finite=True)
            problems += [f"{name} {problem}" for name, problem in wrong.items()]
            step()
    size = sum(manifest.files.values())
    return problems, f"{len(manifest.arrays)} arrays with their checksums, {bytes_text(size)}"


def _verify_other(directory: epath.Path) -> tuple[list[str], str]:
    """Other formats have no checksums: every array must be readable, and its numbers finite."""
    stored = open_stored(directory)
    problems = []
    with counted_progress(f"verifying {directory.name}", len(stored.shapes)) as step:
        for path, leaf in stored.shapes.items():
            try:
                check_floating({path: leaf}, directory)
                array = np.asarray(stored.read({path: struct_of(leaf)})[path])
                if non_finite({path: array}):
                    count = int(np.sum(~np.isfinite(array)))
                    problems.append(f"{path} has {count} numbers that are not finite")
            except UserError as error:
                problems.append(f"{path}: {error}")
            step()
    size = bytes_text(sum(map(size_of, stored.shapes.values())))
    return problems, f"{len(stored.shapes)} arrays readable and finite, {size} (no checksums there)"
