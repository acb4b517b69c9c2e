"""What can be wrong with files that should be a checkpoint, in words.

`NotACheckpointError` and `DamagedCheckpointError` are told apart: a path that names no checkpoint
is the caller's mistake, a checkpoint that cannot be read is a loss.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from promot_t5x.errors import UserError

_REFUSED = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|\b40[13]\b|credential", re.IGNORECASE)
_UNREACHABLE = re.compile(r"UNAVAILABLE|CURL|resolve host|timed? ?out|\b50[0-9]\b", re.IGNORECASE)
_LFS_MARK = b"version https://git-lfs.github.com/spec/"


class NotACheckpointError(UserError):
    """There is no checkpoint at a path, or not of a kind that can be read."""


class DamagedCheckpointError(UserError):
    """A checkpoint is there, but some of it is missing, cut or changed."""


@contextlib.contextmanager
def reading(directory: epath.Path) -> Iterator[None]:
    """Turn what reading a checkpoint raises into a `UserError` that says what is wrong."""
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # tensorstore's are ValueErrors
        raise _explained(directory, error) from error
    except Exception as error:
        if not _is_tensorflows(error):
            raise
        raise _explained(directory, error) from error


def _is_tensorflows(error: Exception) -> bool:
    """Whether etils read `gs://` through TensorFlow, whose errors are of a class of its own."""
    return any(kind.__module__.startswith("tensorflow.") for kind in type(error).__mro__)


def _explained(directory: epath.Path, error: Exception) -> UserError:
    reason = str(error).strip().split(" [tensorstore_spec")[0].split(" [source locations")[0][:600]
    if str(directory).startswith("gs://"):
        if _REFUSED.search(str(error)):
            return UserError(
                f"{directory} may not be read: {reason}. Log in with `gcloud auth "
                "application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file "
                "of an account that may read the bucket."
            )
        if _UNREACHABLE.search(str(error)):
            return UserError(
                f"{directory} cannot be reached: {reason}. Check this machine's network."
            )
    if isinstance(error, PermissionError):
        return UserError(f"{directory} may not be read: {reason}.")
    return DamagedCheckpointError(f"{directory} is damaged: {reason}")


def refuse_stand_in(path: epath.Path) -> None:
    """Raise `UserError` for a file that only stands for another that was never fetched.

    These are pointers of Git LFS, and links, as in a snapshot of the Hugging Face hub, whose
    target is not there.
    """
    if (target := dangling_link(path)) is not None:
        raise DamagedCheckpointError(
            f"{path} is a link to {target}, which does not exist: the download is incomplete or "
            "its cache was cleaned. Download it again."
        )
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS_MARK)) == _LFS_MARK:
            raise DamagedCheckpointError(
                f"{path} is a Git LFS pointer and not the file itself. Run `git lfs pull` in its "
                "repository."
            )


def dangling_link(path: epath.Path) -> str | None:
    """Return where a link leads that leads nowhere; None for anything else."""
    place = Path(path)
    is_dangling = "://" not in str(path) and place.is_symlink() and not place.exists()
    return str(place.readlink()) if is_dangling else None


def read_json(path: epath.Path) -> Any:
    """Read a file of JSON that a checkpoint holds.

    **Raises:** `DamagedCheckpointError` where it stands for another file, or is no JSON.
    """
    refuse_stand_in(path)
    with reading(path):
        return json.loads(path.read_text())
