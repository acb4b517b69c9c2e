"""The paths that a user gives: one function reads them all, so that one text means one place.

`~` is expanded, `file:///x` is `/x`, and what can only be a mistake (an empty text, `gs:/bucket`,
a variable that the shell has not replaced) is refused before anything is read or written there.
"""

import os
import re
from urllib.parse import unquote, urlsplit

from etils import epath

from promot_t5x.errors import UserError, did_you_mean

REMOTE = ("gs", "s3")  # schemes that etils and orbax read and write
_EXAMPLE = "a directory or file, as in '/data/x', 'runs/x' or 'gs://bucket/x'"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$\w+|\$\{\w+\}")


def user_path(given: object, source: str) -> epath.Path:
    """Read a path that a user gave.

    **Arguments:**

    - `given`: what was given: text, or a path that a caller has made of it already.
    - `source`: where it is from, for messages, such as `MODEL_DIR` or `--output`.

    **Returns:** the path, local or remote; a relative one stays relative.

    **Raises** `UserError` for what is no path, cannot have been meant, or has a scheme that is not
    supported.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise UserError(f"{source} = {given!r} is no path: give {_EXAMPLE}, in quotes.")
    text = os.fspath(given)
    said = f"{source} = {text!r}"
    if not text.strip():
        raise UserError(f"{said} is empty: give {_EXAMPLE}.")
    if text != text.strip() or not text.isprintable():
        raise UserError(
            f"{said} begins or ends with white space, or has a character that does not print: give "
            "the path without it."
        )
    if variable := _VARIABLE.search(text):
        raise UserError(
            f"{said}: {variable[0]} is the name of a variable, which a gin value does not replace. "
            "Write the path in full, or let the shell replace it: close the single quotes around "
            f"it, as in '\"'{variable[0]}'/x\"'."
        )
    if scheme := _SCHEME.fullmatch(text):
        return _with_scheme(scheme, said)
    path = epath.Path(text)
    if text.startswith("~"):
        path = path.expanduser()
        if str(path).startswith("~"):
            raise UserError(f"{said}: there is no user {path.parts[0][1:]!r} on this machine.")
    return path


def _with_scheme(match: re.Match[str], said: str) -> epath.Path:
    scheme, slashes, rest = match[1].lower(), match[2], match[3]
    if scheme == "file":
        parsed = urlsplit(match[0])
        if slashes and parsed.netloc in ("", "localhost") and parsed.path.startswith("/"):
            return epath.Path(unquote(parsed.path))
        raise UserError(f"{said} is no local path: give the path alone, as in '/data/x'.")
    if scheme in REMOTE:
        bucket = rest.partition("/")[0]
        if slashes != "//" or not bucket:
            raise UserError(f"{said} names no bucket: write {scheme}://bucket/directory.")
        return epath.Path(f"{scheme}://{rest}")
    if not slashes:
        return epath.Path(match[0])  # a name with a colon in it
    raise UserError(
        f"{said}: paths are local or on {' or '.join(f'{each}://' for each in REMOTE)}, not "
        f"{scheme}://.{did_you_mean(scheme, REMOTE)}"
    )


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path that `user_path` has read is in a bucket."""
    return "://" in str(path)


def make_directory(path: epath.Path, source: str) -> None:
    """Create a directory for results, and its parents, unless it is there.

    **Arguments:**

    - `path`: as `user_path` has read it.
    - `source`: where it is from, for messages.

    **Raises** `UserError` where it is a file or cannot be created or written.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{source} = {str(path)!r} is a file: name a directory, new or in use.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_not_writable(path, source, error)) from error
    if not is_remote(path) and not os.access(path, os.W_OK | os.X_OK):
        raise UserError(_not_writable(path, source, PermissionError("no permission to write")))


def _not_writable(path: epath.Path, source: str, error: OSError) -> str:
    reason = error.strerror or str(error)
    return (
        f"{source} = {str(path)!r} cannot be written ({reason}): name a directory in a place where "
        "you may write."
    )
