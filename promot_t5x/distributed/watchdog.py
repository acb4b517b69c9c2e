"""Stands beside a process of a run of several, and says where it was when it ends without a word.

    python witness.py PID NAME STALL_SECONDS

Reads on stdin where the process is, a line each time it gets on; an empty line is its farewell. The
end of the input without one means that it was killed or aborted. No line for STALL_SECONDS means
that it is stuck, whatever its threads wait for: it is asked for its Python stacks, and killed.
"""

import os
import select
import signal
import sys
import time

GO_ON = "start all processes again and the run goes on from what is saved"
_STACKS_SECONDS = 3.0  # for the stacks to reach the log


def watch(pid: int, name: str, stall_seconds: float) -> None:
    """Follow the process until it ends."""
    where, began = "its start", time.monotonic()
    unread = b""
    while True:
        ready, _, _ = select.select([0], [], [], stall_seconds)
        if not ready:
            _say(f"{name} has not got on for {stall_seconds:.0f} s at {where}; its stacks:")
            os.kill(pid, signal.SIGUSR1)
            time.sleep(_STACKS_SECONDS)
            os.kill(pid, signal.SIGKILL)
            _say(f"{name} was stuck and has been ended; {GO_ON}")
            return
        read = os.read(0, 65536)
        if not read:
            minutes = (time.monotonic() - began) / 60
            _say(
                f"{name} was ended at {where}, after {minutes:.1f} minutes: it was killed, or JAX "
                f"ended it because another process is gone (see above); {GO_ON}"
            )
            return
        *lines, unread = (unread + read).split(b"\n")
        if b"" in lines:
            return
        where = lines[-1].decode() if lines else where


def _say(text: str) -> None:
    print(f"promot-t5x: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    watch(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
