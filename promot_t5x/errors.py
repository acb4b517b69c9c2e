"""Errors that are the user's to mend, and the hints that go with them."""

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Bad input: the message names the value, the place it came from and the mend.

    The command line prints the message alone, without a traceback, and exits with
    status 2. Raise it before anything expensive starts or anything is written.
    """


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
