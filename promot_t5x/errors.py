"""Errors that are the user's to mend, and the hints that go with them."""

import difflib
from collections.abc import Iterable

EXIT_FAULT = 1
EXIT_USER_ERROR = 2
EXIT_IN_USE = 73  # sysexits' EX_CANTCREAT: another run owns the directory
EXIT_NOT_SAVED = 74  # sysexits' EX_IOERR: results could not be written; free the disk, start again
EXIT_START_AGAIN = 75  # sysexits' EX_TEMPFAIL: stopped, nothing lost; start it again
EXIT_INTERRUPTED = 130  # 128 + the signal's number, as shells count
# The same command, started again, would end the same way; launchers do not repeat it.
NEVER_REPEATED = (EXIT_USER_ERROR, EXIT_IN_USE, EXIT_NOT_SAVED)


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


class Preempted(BaseException):
    """SIGTERM asked the process to end, and what had been done is safe.

    The command line exits with status `EXIT_START_AGAIN`: launchers start the same command again.
    """


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest candidate, or an empty string."""
    near = difflib.get_close_matches(name, sorted(candidates), n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
