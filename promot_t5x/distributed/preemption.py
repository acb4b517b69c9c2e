"""SIGTERM, which says that the machine is about to go: save, and exit with "start me again".

One process: what holds no unsaved work (reading data, compiling, evaluating) stops at once; a
stage's loop takes the signal between two steps, saves, and stops. Several processes: JAX's
coordination service hears the signal of any of them, and lets all reach the same step; they
look between steps, stages and rows. Either way `errors.Preempted` ends the command with status
75, and the same command, given again, goes on as if nothing had been.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from promot_t5x.errors import Preempted


class _Signal:
    """What this process knows of SIGTERM, which is one for the whole process."""

    came = False
    postponed = False
    looks = 0  # how often all processes have asked together


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Take SIGTERM as said above while the body runs.

    When `jax.distributed` starts in it, its coordination service takes the signal over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    before = signal.signal(signal.SIGTERM, _take)
    _Signal.came = _Signal.postponed = False
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _take(number: int, frame: Any) -> None:
    # A second signal, which some launchers send, must not disturb the saving.
    first, _Signal.came = not _Signal.came, True
    if first and not _Signal.postponed:
        raise Preempted("stopped by SIGTERM")


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """In the body SIGTERM waits to be asked for by `reached`; at its end it no longer waits."""
    _Signal.postponed = True
    try:
        yield
    finally:
        _Signal.postponed = False
    if _Signal.came:
        raise Preempted("stopped by SIGTERM")


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """In the body, which lies in one of `postponed`, SIGTERM stops at once again."""
    _Signal.postponed = False
    try:
        if _Signal.came:
            raise Preempted("stopped by SIGTERM")
        yield
    finally:
        _Signal.postponed = True


def reached() -> bool:
    """Whether it is time to save and stop: the same answer in all processes, which all ask."""
    import jax
    from jax.experimental import multihost_utils

    if not jax.distributed.is_initialized():
        return _Signal.came
    _Signal.looks += 1
    return multihost_utils.reached_preemption_sync_point(_Signal.looks)


def stop_if_reached() -> None:
    """Between two pieces of work that keep their own results: stop here if it is time."""
    if reached():
        raise Preempted("stopped by SIGTERM")
