"""A sweep: one run for each combination of some settings' values, each in a directory of its own.

A finished run leaves `sweep.json` beside its files: its settings, and a hash of the configuration
that it finished with. A sweep skips what that file says is done; reports read it.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence

from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.files import read_json, write_json

FILE = "sweep.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepCell:
    """One combination of values.

    **Attributes:**

    - `settings`: gin values, as text, by the names that they are bound to.
    """

    settings: Mapping[str, str]

    @property
    def directory(self) -> str:
        """The name of its run's directory in the sweep's."""
        return "-".join(
            re.sub(r"[^\w.+]+", "_", f"{name}_{value}").strip("_")
            for name, value in self.settings.items()
        )

    @property
    def bindings(self) -> list[str]:
        """The settings as gin statements."""
        return [f"{name} = {value}" for name, value in self.settings.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedCell:
    """What `sweep.json` holds: the settings of a finished run, and its configuration's hash."""

    settings: Mapping[str, str]
    config: str

    @classmethod
    def read(cls, directory: epath.Path) -> "FinishedCell | None":
        """Read a run's; None where it has not finished."""
        path = directory / FILE
        return read_json(path, cls) if path.exists() else None


def cells(values: Sequence[tuple[str, Sequence[str]]]) -> list[SweepCell]:
    """Return every combination of the values, the last setting's values changing fastest.

    **Arguments:**

    - `values`: names and their values as text.

    **Raises:** `UserError` for a name that is there twice, and for values that would share a
    directory.
    """
    names = [name for name, _ in values]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--over names {name} twice: put all its values in one list.")
    found = [
        SweepCell(settings=dict(zip(names, each, strict=True)))
        for each in itertools.product(*(of_one for _, of_one in values))
    ]
    seen: dict[str, SweepCell] = {}
    for cell in found:
        if seen.setdefault(cell.directory, cell) is not cell:
            raise UserError(
                f"--over: {cell.bindings} and {seen[cell.directory].bindings} would have one "
                f"directory, {cell.directory}; leave one of them out."
            )
    return found


def share_of(all_cells: Sequence[SweepCell], part: int, parts: int) -> list[SweepCell]:
    """Return one of several shares, which together are all: `part` counts from 1 to `parts`."""
    return list(all_cells[part - 1 :: parts])


def is_finished(directory: epath.Path, config: str) -> bool:
    """Whether the run in a directory has finished with this configuration."""
    finished = FinishedCell.read(directory)
    return finished is not None and finished.config == _hash(config)


def finish(directory: epath.Path, cell: SweepCell, config: str) -> None:
    """Mark the run in a directory as finished with this configuration."""
    write_json(directory / FILE, {"settings": dict(cell.settings), "config": _hash(config)})


def _hash(config: str) -> str:
    return hashlib.sha256(config.encode()).hexdigest()[:16]
