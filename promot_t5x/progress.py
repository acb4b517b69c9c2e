"""Long work shows where it stands: one live line on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable

_listeners: list[Callable[[str], None]] = []
_muted = False
_outlook: Callable[[], str] = str


def tell(listener: Callable[[str], None]) -> None:
    """Call it, from now on, with where this process is each time that it gets on."""
    _listeners.append(listener)


def forget(listener: Callable[[str], None]) -> None:
    """End what `tell` began."""
    _listeners.remove(listener)


def here(where: str) -> None:
    """Say where this process is, to those who asked by `tell`."""
    for listener in tuple(_listeners):
        listener(where)


def foresee(outlook: Callable[[], str]) -> None:
    """Let lines of progress end with what this returns: the time left of all that is to be done.

    **Arguments:**

    - `outlook`: called for each line that is shown; an empty text adds nothing. `str` ends it.
    """
    global _outlook
    _outlook = outlook


def mute() -> None:
    """Show no progress in this process: another one of the same run does."""
    global _muted
    _muted = True


def muted() -> bool:
    """Whether `mute` was called."""
    return _muted


def duration(seconds: float) -> str:
    """`75.2` -> `1m15s`."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """A counter towards `total` that prints rate and time left on stderr.

    On a terminal the line is rewritten in place four times a second at most; in a log a new line
    appears every `log_period_seconds`.
    """

    def __init__(
        self,
        label: str,
        total: int,
        start: int = 0,
        *,
        log_period_seconds: float = 10.0,
    ):
        self._label, self._total, self._start = label, total, start
        self._stream = sys.stderr
        self._live = self._stream.isatty()
        self._period = 0.25 if self._live else log_period_seconds
        self._began = self._shown = time.monotonic()
        self._width = 0

    def update(self, done: int, note: str = "") -> None:
        """Show `done` of `total` and a note, unless the last line is recent."""
        here(f"{self._label} {done}/{self._total}")
        now = time.monotonic()
        if done < self._total and now - self._shown < self._period:
            return
        self._shown = now
        self._show(self._line(done, now, note))

    def _line(self, done: int, now: float, note: str) -> str:
        elapsed = max(now - self._began, 1e-9)
        rate = (done - self._start) / elapsed
        parts = [f"{self._label}  {done}/{self._total}"]
        if note:
            parts.append(note)
        if rate > 0:
            parts.append(f"{rate:.1f}/s")
            left = (self._total - done) / rate
            parts.append(f"{duration(left)} left" if done < self._total else duration(elapsed))
        if whole := _outlook():
            parts.append(whole)
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        if _muted:
            return
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        """End the live line, so that what is printed next starts a line of its own."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
            self._width = 0
