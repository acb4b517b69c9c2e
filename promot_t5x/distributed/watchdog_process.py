"""The watchdog's process: stands beside a process of a run, reports its end, and ends a hang.

    python watchdog_process.py PID NAME STALL_SECONDS

Reads on stdin where the process is, one line each time it makes progress; an empty line is the
farewell. The end of the input without one means that the process was killed or aborted. No line
for too long means that it hangs, whatever its threads wait for: it is asked for its stacks by
SIGUSR1, asked to end by a line on stdout, and killed where it does not.

STALL_SECONDS is what counts as too long; 0 leaves it to the run's own pace. Training steps follow
one another regularly, so they hang after ten times the median time of ten steps; everything else
(compiling, reading data, saving, evaluating) may take long once, and hangs after half an hour.
"""

import os
import re
import select
import signal
import statistics
import sys
import time
from collections import deque

RESUME = "start it again to resume from what is saved"
LONGEST_SECONDS = 1800.0
SHORTEST_SECONDS = 300.0
_STEP = re.compile(r"\[.*\] step \d+(/\d+)?")
_WINDOW = (
    10  # steps; a device's numbers are fetched once in so many, and only then is it waited for
)
_WINDOWS = 5  # from which on their median counts
_FACTOR = 10.0
_STACKS_SECONDS = 3.0  # for the stacks to reach the log
_END_SECONDS = 5.0  # for the process to end by itself


class Pace:
    """How long a process may be silent, from how long it has been so far.

    **Arguments:**

    - `stall_seconds`: the limit; 0 leaves it to the pace.
    """

    def __init__(self, stall_seconds: float):
        self._stall_seconds = stall_seconds
        self._windows: deque[float] = deque(maxlen=100)
        self._steps: list[float] = []  # the times of this window's lines

    def add(self, where: str, now: float) -> None:
        """Take in a line, and when it came, in seconds."""
        if not _STEP.fullmatch(where):
            self._steps = []
            return
        self._steps.append(now)
        if len(self._steps) > _WINDOW:
            self._windows.append(now - self._steps[0])
            self._steps = [now]

    def limit(self) -> float:
        """Return the seconds of silence, from the last line on, that count as a hang."""
        if self._stall_seconds:
            return self._stall_seconds
        if not self._steps or len(self._windows) < _WINDOWS:
            return LONGEST_SECONDS
        pace = _FACTOR * statistics.median(self._windows)
        return min(max(pace, SHORTEST_SECONDS), LONGEST_SECONDS)


def watch(pid: int, name: str, stall_seconds: float) -> None:
    """Follow the process until it ends."""
    where, began = "its start", time.monotonic()
    pace, unread = Pace(stall_seconds), b""
    while True:
        limit = pace.limit()
        ready, _, _ = select.select([0], [], [], limit)
        if not ready:
            _end(pid, name, where, limit)
            return
        read = os.read(0, 65536)
        if not read:
            minutes = (time.monotonic() - began) / 60
            _say(
                f"{name} was ended at {where}, after {minutes:.1f} minutes: it was killed, by the "
                "system for want of memory perhaps, or JAX ended it because another process is "
                f"gone (see above); {RESUME}"
            )
            return
        *lines, unread = (unread + read).split(b"\n")
        if b"" in lines:
            return
        for line in lines:
            where = line.decode(errors="replace")
            pace.add(where, time.monotonic())


def _end(pid: int, name: str, where: str, limit: float) -> None:
    """End a process that hangs, after its stacks."""
    _say(f"{name} has made no progress for {limit:.0f} s at {where}; its stacks:")
    os.kill(pid, signal.SIGUSR1)
    time.sleep(_STACKS_SECONDS)
    _say(f"{name} hangs and is ended; {RESUME}. --stall_timeout=SECONDS sets another limit")
    try:
        os.write(1, b"end\n")
        ready, _, _ = select.select([0], [], [], _END_SECONDS)
        if ready and not os.read(0, 65536):
            return
    except BrokenPipeError:
        return
    os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    print(f"promot-t5x: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
