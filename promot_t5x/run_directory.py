"""A MODEL_DIR belongs to one configuration."""

import re
from collections.abc import Collection

from etils import epath

from promot_t5x import config, processes
from promot_t5x.errors import UserError
from promot_t5x.files import write_atomically

# How a run lies on its devices changes none of its numbers but their last digits.
_LAYOUT = re.compile(r"NUM_PARTITIONS|MESH|partitioning\..*")


def token_cache(directory: epath.Path) -> epath.Path | None:
    """Where a run keeps its tokenised examples: with it, unless it is not on this host's disk."""
    return None if "://" in str(directory) else directory / "token_cache"


def claim(directory: epath.Path, text: str, *, may_change: Collection[str] = ()) -> None:
    """Make `directory` the home of the configuration `text`, or find that it already is.

    A run may go on on other devices, laid out otherwise.

    **Arguments:**

    - `may_change`: names of other bindings that a run may change from launch to launch.

    **Raises** `UserError` with a readable difference if it holds another configuration's run.
    """
    with processes.agreement(UserError):
        if processes.leads():
            _claim(directory, text, may_change)


def _claim(directory: epath.Path, text: str, may_change: Collection[str]) -> None:
    if directory.exists() and not directory.is_dir():
        raise UserError(f"MODEL_DIR {directory} is a file; name a directory, new or this run's.")
    path = directory / "config.gin"
    if path.exists():
        difference = [
            line
            for line in config.describe_difference(path.read_text(), text)
            if (name := line.partition(":")[0]) not in may_change and not _LAYOUT.fullmatch(name)
        ]
        if difference:
            raise UserError(
                f"MODEL_DIR {directory} holds a run with another configuration:\n  "
                + "\n  ".join(difference)
                + "\nGive this run a MODEL_DIR of its own, or the settings of the other one."
            )
    directory.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
