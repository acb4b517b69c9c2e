"""Decisions that the processes of one run take together: all of them continue, or none.

Every function here must be called by all processes alike; in a run of one process they cost
nothing.
"""

import contextlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

_MOST = 4096


def is_primary() -> bool:
    """Whether this is process 0, which writes what all processes share."""
    return jax.process_index() == 0


def broadcast_from_primary(numbers: Sequence[int]) -> list[int]:
    """Return, in all processes, the numbers that process 0 passed."""
    if jax.process_count() == 1:
        return list(numbers)
    sent = np.full(_MOST + 1, -1, np.int32)
    mine = list(numbers)[-_MOST:]
    sent[0], sent[1 : len(mine) + 1] = len(mine), mine
    heard = np.asarray(multihost_utils.broadcast_one_to_all(sent))
    return [int(number) for number in heard[1 : heard[0] + 1]]


@contextlib.contextmanager
def raise_on_all(kind: type[Exception]) -> Iterator[None]:
    """Raise an error of this kind in all processes if it is raised in one of them."""
    error = None
    try:
        yield
    except kind as raised:
        error = raised
    if jax.process_count() > 1:
        failed = np.asarray(multihost_utils.process_allgather(np.asarray(error is not None)))
        if error is None and failed.any():
            error = kind(f"it failed in processes {np.flatnonzero(failed).tolist()}")
    if error is not None:
        raise error


def wait_for_all() -> None:
    """Wait until all processes are here: what process 0 wrote before is there for all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("promot_t5x")
