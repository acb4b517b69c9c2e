"""Where the wall time of a launch goes; the share of the training steps in it is its goodput.

Everything else that a run must do takes its share: reading data, compiling, saving, evaluating.
The main thread is at one thing at a time, and says at which with `spent`. What it does within
another thing counts for itself alone, so that the shares add up to one.
"""

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from promot_t5x.distributed import processes
from promot_t5x.progress import duration

STEPS, DATA, COMPILE, SAVES, EVALUATION, OTHER = ACTIVITIES = (
    "steps",
    "data",
    "compile",
    "saves",
    "evaluation",
    "other",
)
# What JAX reports of a program that is compiled on its first call, wherever that is.
_COMPILATIONS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
_POLL_SECONDS = 0.01  # while a batch is not there yet


class WallTime:
    """Adds up the seconds of each activity.

    **Attributes:**

    - `seconds`: spent so far, by activity.
    - `spans`: how often each was begun.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.spans = dict.fromkeys(ACTIVITIES, 0)
        self._under_way = [OTHER]
        self._since = time.monotonic()
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def spent(self, activity: str) -> Iterator[None]:
        """Count the time of the block as that of an activity."""
        self._settle()
        self._under_way.append(activity)
        self.spans[activity] += 1
        try:
            yield
        finally:
            self._settle()
            self._under_way.pop()

    def compiled(self, seconds: float) -> None:
        """Count some of the time since then as compilation, whatever is under way."""
        if threading.get_ident() != self._thread:
            return  # the main thread is at something else meanwhile
        self._settle()
        moved = min(seconds, self.seconds[self._under_way[-1]])
        self.seconds[self._under_way[-1]] -= moved
        self.seconds[COMPILE] += moved

    def shares(self) -> dict[str, float]:
        """Return the share of each activity in the time so far."""
        self._settle()
        total = max(sum(self.seconds.values()), 1e-9)
        return {activity: seconds / total for activity, seconds in self.seconds.items()}

    def summary(self) -> str:
        """Return the line that a run ends with."""
        shares = sorted(self.shares().items(), key=lambda share: -share[1])
        said = ", ".join(f"{activity} {share:.1%}" for activity, share in shares)
        return f"wall time {duration(sum(self.seconds.values()))}: {said}"

    def _settle(self) -> None:
        now = time.monotonic()
        self.seconds[self._under_way[-1]] += now - self._since
        self._since = now


_current = WallTime()


def current() -> WallTime:
    """Return the account of the launch under way."""
    return _current


@contextlib.contextmanager
def accounted() -> Iterator[None]:
    """Begin a launch's account, and print where its time went when it ends, however it ends."""
    global _current
    _current = WallTime()
    jax.monitoring.register_event_duration_secs_listener(_listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(_listen)
        if processes.is_primary() and (_current.spans[STEPS] or _current.spans[EVALUATION]):
            print(_current.summary(), flush=True)


def wait_for_batch(upcoming: concurrent.futures.Future[Any], last: Any) -> Any:
    """Return a batch when it has been read; devices that wait for it too count as data's time.

    **Arguments:**

    - `upcoming`: gives the batch.
    - `last`: what the step before returned, as long as it may still be under way.
    """
    while not upcoming.done():
        idle = all(array.is_ready() for array in jax.tree.leaves(last))
        with _current.spent(DATA if idle else STEPS):
            concurrent.futures.wait([upcoming], timeout=_POLL_SECONDS)
    return upcoming.result()


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _COMPILATIONS:
        _current.compiled(duration_secs)
