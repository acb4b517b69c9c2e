"""When a run that ended is started again, and how long to wait before."""

import dataclasses
import time
from collections.abc import Callable

from promot_t5x.errors import EXIT_INTERRUPTED, EXIT_START_AGAIN, NEVER_REPEATED

FINAL = (0, *NEVER_REPEATED, EXIT_INTERRUPTED)


def outcome(statuses: list[int]) -> int:
    """Choose one status for all processes: one that must not be retried, else the first bad one.

    The processes that a failed one takes down with it end by signals (negative, or above 128).
    """
    bad = [status for status in statuses if status]
    final = [status for status in bad if status in FINAL]
    return (final or bad or [0])[0]


def reason(status: int) -> str:
    """Describe a status, for the log."""
    if status == EXIT_START_AGAIN:
        return "it stopped, to be started again"
    if status < 0:
        return f"signal {-status} ended it"
    if status > 128:
        return f"signal {status - 128} ended it"
    return f"exit status {status}"


@dataclasses.dataclass
class Retries:
    """Counts attempts and waits longer before each, unless the last one lasted for a while.

    **Attributes:**

    - `what`: the name of an attempt, for messages.
    - `most`: attempts in a row, none of which lasted.
    - `first_seconds`, `longest_seconds`: the waits double from the first to the longest.
    - `held_out_seconds`: an attempt that lasted so long starts the count anew.
    """

    what: str = "restart"
    most: int = 20
    first_seconds: float = 10.0
    longest_seconds: float = 600.0
    held_out_seconds: float = 1800.0
    _row: int = dataclasses.field(default=0, init=False)
    _began: float = dataclasses.field(default_factory=time.monotonic, init=False)

    def again(self, why: str, say: Callable[[str], None]) -> bool:
        """Wait before the next attempt.

        **Arguments:**

        - `why`: what made it necessary.
        - `say`: shows a message.

        **Returns:** False where no attempt is left, which is said too.
        """
        if time.monotonic() - self._began > self.held_out_seconds:
            self._row = 0
        if self._row == self.most:
            say(f"{why}; given up after {self.most} {self.what}s")
            return False
        wait = min(self.first_seconds * 2**self._row, self.longest_seconds)
        self._row += 1
        say(f"{why}; {self.what} {self._row} of {self.most} in {wait:g} s")
        time.sleep(wait)
        self._began = time.monotonic()
        return True
