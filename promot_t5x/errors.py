"""Errors that are the user's to mend, and the hints that go with them."""

import difflib
from collections.abc import Iterable, Sequence

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_IN_USE = 73  # sysexits' EX_CANTCREAT: another run owns the directory
EXIT_NOT_SAVED = 74  # sysexits' EX_IOERR: results could not be written; free the disk, start again
EXIT_START_AGAIN = 75  # sysexits' EX_TEMPFAIL: stopped, nothing lost; start it again
EXIT_NON_FINITE = 76  # training diverged: the same command would diverge again
EXIT_INTERRUPTED = 130  # 128 + the signal's number, as shells count
# The same command, started again, would end the same way; launchers do not repeat it.
NEVER_REPEATED = (EXIT_USER_ERROR, EXIT_IN_USE, EXIT_NOT_SAVED, EXIT_NON_FINITE)


class UserError(Exception):
    """Bad input: the message names the value, the place it came from and the mend.

    The command line prints the message alone, without a traceback, and exits with
    status 2. Raise it before anything expensive starts or anything is written.
    """


class InUseError(Exception):
    """Another run owns the directory; the message names its owner.

    The command line prints the message alone and exits with status `EXIT_IN_USE`.
    """


class SaveError(Exception):
    """A checkpoint could not be written or does not hold what it should; the ones before do.

    The command line prints the message alone and exits with status `EXIT_NOT_SAVED`.
    """


class NonFiniteError(Exception):
    """Training produced numbers that are not finite; what was saved before is as it was.

    The command line prints the message alone and exits with status `EXIT_NON_FINITE`, which
    launchers do not answer by starting the command again.

    **Attributes:**

    - `arrays`: paths of the arrays that hold such numbers, where it is known.
    """

    def __init__(self, message: str, arrays: Iterable[str] = ()):
        super().__init__(message)
        self.arrays = tuple(arrays)


class Preempted(BaseException):
    """SIGTERM asked the process to end, and what had been done is safe.

    The command line exits with status `EXIT_START_AGAIN`: launchers start the same command again.
    """


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def listed(names: Sequence[object], limit: int = 5, separator: str = ", ") -> str:
    """Join the first names of a list for a message, and say how many more there are.

    **Arguments:**

    - `names`: what to list; anything that `str` makes readable.
    - `limit`: how many are named.
    - `separator`: what stands between them.

    **Returns:** `a, b and 3 more`; `nothing` for an empty list.
    """
    shown = separator.join(map(str, names[:limit])) or "nothing"
    return shown + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
