"""How the process of a command ends: with its status, whatever threads are still there.

Threads of JAX, TensorFlow and tensorstore outlive a run. One that asks for the interpreter while
Python takes it down is ended by force, for which C++ aborts the process: a run that had done
everything ended by SIGABRT, on a busy machine about once in ten times.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn


def run_and_exit(command: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with the status that it returns.

    What has been registered with `atexit` since is called, such as the handshake by which JAX's
    processes part; then the process is gone, and Python has taken nothing down.
    """
    statuses: list[int] = []

    def leave() -> None:
        if not statuses:  # an exception is under way, whose status Python knows
            return
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # whoever reads may be gone
                stream.flush()
        os._exit(statuses[0])

    atexit.register(leave)  # before the others: it is called last
    statuses.append(command())
    sys.exit(statuses[0])
