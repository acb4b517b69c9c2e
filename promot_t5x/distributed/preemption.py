"""SIGTERM and Ctrl-C: save, and exit with "start me again".

SIGTERM says that the machine is about to go; Ctrl-C (SIGINT) that the user wants to stop. One
process: what holds no unsaved work (reading data, compiling, evaluating) stops at once; a stage's
loop takes the signal between two steps, saves, and stops. Several processes: JAX's coordination
service hears the signal of any of them, and lets all reach the same step; they look between steps,
stages and rows. Either way `errors.Preempted` ends the command with status 75, and the same
command, given again, resumes the run as if nothing had been. A second Ctrl-C ends the process at
once: what was saved before is safe.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

from promot_t5x.distributed import startup
from promot_t5x.errors import EXIT_INTERRUPTED, Preempted

_NAMES = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
_AGAIN_SECONDS = 0.05


class _Signal:
    """What this process knows of the signals, which are one for the whole process."""

    came: str | None = None  # the name of the first
    postponed = False
    swallowed = False  # whether `Preempted` was raised where it went no further
    looks = 0  # how often all processes have asked together


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Take the signals as said above while the body runs.

    When `jax.distributed` starts in it, its coordination service takes SIGTERM over. A signal that
    is ignored from outside, as Ctrl-C is in a background job, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    numbers = [n for n in _NAMES if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _take) for number in numbers}
    _Signal.came, _Signal.postponed = None, False
    try:
        with _second_ends_at_once(), _raised_again():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _take(number: int, frame: Any) -> None:
    if startup.joined():
        if number == signal.SIGINT:
            os.kill(os.getpid(), signal.SIGTERM)  # the coordination service tells the others
        return
    # A second signal, which some launchers send, must not disturb the saving.
    first = _Signal.came is None or _Signal.swallowed
    _Signal.swallowed = False
    _Signal.came = _Signal.came or _NAMES[signal.Signals(number)]
    if first and not _Signal.postponed:
        _stop()


def _stop() -> None:
    raise Preempted(f"stopped by {cause()}")


def cause() -> str:
    """Name the signal that stops the run."""
    return _Signal.came or "SIGTERM"


@contextlib.contextmanager
def _second_ends_at_once() -> Iterator[None]:
    """End the process at a second Ctrl-C, even where its main thread does not return to Python.

    Python runs handlers in the main thread only, which may be compiling for minutes; the number of
    a signal is written to a socket at once.
    """
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)

    def count() -> None:
        interrupts = 0
        while numbers := reading.recv(16):
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                print("promot-t5x: interrupted at once", file=sys.stderr, flush=True)
                startup.dismiss_watchdog()
                os._exit(EXIT_INTERRUPTED)
            if signal.SIGINT in numbers:
                print(
                    "promot-t5x: Ctrl-C: stops as soon as its work is saved; a second one ends it "
                    "at once",
                    file=sys.stderr,
                    flush=True,
                )

    thread = threading.Thread(target=count, name="interrupts", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writing.close()
        thread.join()
        reading.close()


@contextlib.contextmanager
def _raised_again() -> Iterator[None]:
    """Raise `Preempted` again where it was swallowed.

    An exception of a handler that runs within a destructor or a callback of the garbage collection
    goes no further than that.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Preempted):
            before(unraisable)
            return

        _Signal.swallowed = True
        again = (os.getpid(), signal.SIGTERM)
        threading.Timer(_AGAIN_SECONDS, os.kill, again).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Let signals wait in the body until `reached` asks for them; at its end they stop the run."""
    if _Signal.came:
        _stop()
    _Signal.postponed = True
    try:
        yield
    finally:
        _Signal.postponed = False
    if _Signal.came:
        _stop()


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """Let signals stop the body at once again, which lies in one of `postponed`."""
    _Signal.postponed = False
    try:
        if _Signal.came:
            _stop()
        yield
    finally:
        _Signal.postponed = True


def reached() -> bool:
    """Whether it is time to save and stop; all processes ask, and get the same answer."""
    import jax
    from jax.experimental import multihost_utils

    if not jax.distributed.is_initialized():
        return _Signal.came is not None
    _Signal.looks += 1
    return multihost_utils.reached_preemption_sync_point(_Signal.looks)


def stop_if_reached() -> None:
    """Stop here if it is time, between two pieces of work that keep their own results."""
    if reached():
        _stop()
