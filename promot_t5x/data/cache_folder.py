"""Folders of the token cache: they appear whole, by one rename, or not at all.

A killed build leaves nothing that could be taken for a folder, and builders that run side by side
do no harm.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

_ABANDONED_SEC = 24 * 3600


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder and give it its name; one that is there already stays.

    **Raises:** whatever `write` raises, and `OSError` where the folder cannot be named. What was
    written until then is removed: it may be what fills the disk.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder.parent)
    building = folder.parent / f".building-{uuid.uuid4().hex}"
    building.mkdir()  # with the user's umask, as everything else
    try:
        write(building)
        building.rename(folder)
    except BaseException as error:
        shutil.rmtree(building, ignore_errors=True)
        # Another builder of the same folder may have been quicker: its files are the same.
        if not (isinstance(error, OSError) and folder.is_dir()):
            raise


def write_array(path: Path, array: np.ndarray) -> None:
    """Save an array so that it is on the disk."""
    with open(path, "wb") as file:
        np.save(file, array)
        _settle(file)


def write_text(path: Path, text: str) -> None:
    """Save text so that it is on the disk."""
    write_lines(path, [text])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Save lines, or other parts of a text, so that they are on the disk."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)
        _settle(file)


def discard(folder: Path) -> None:
    """Remove a damaged folder, and say so."""
    print(f"the token cache {folder} is damaged and is made anew", file=sys.stderr, flush=True)
    aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    # Another process may just have done the same.
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside / folder.name)
    shutil.rmtree(aside)


def _settle(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _remove_abandoned(directory: Path) -> None:
    for path in directory.glob(".building-*"):
        try:
            abandoned = time.time() - path.stat().st_mtime > _ABANDONED_SEC
        except FileNotFoundError:
            continue
        if abandoned:
            shutil.rmtree(path, ignore_errors=True)
