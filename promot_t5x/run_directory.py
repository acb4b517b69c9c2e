"""A MODEL_DIR belongs to one configuration."""

from etils import epath

from promot_t5x import config
from promot_t5x.errors import UserError
from promot_t5x.files import write_atomically


def token_cache(directory: epath.Path) -> epath.Path | None:
    """Where a run keeps its tokenised examples: with it, unless it is not on this host's disk."""
    return None if "://" in str(directory) else directory / "token_cache"


def claim(directory: epath.Path, text: str) -> None:
    """Make `directory` the home of the configuration `text`, or find that it already is.

    **Raises** `UserError` with a readable difference if it holds another configuration's run.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"MODEL_DIR {directory} is a file; name a directory, new or this run's.")
    path = directory / "config.gin"
    if path.exists():
        difference = config.describe_difference(path.read_text(), text)
        if difference:
            raise UserError(
                f"MODEL_DIR {directory} holds a run with another configuration:\n  "
                + "\n  ".join(difference)
                + "\nGive this run a MODEL_DIR of its own, or the settings of the other one."
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)
