"""Processes that own directories: `python owner_helpers.py` forks them on demand.

Reads one line of JSON on stdin for each, `[directory, machine, log]`, and prints its process id.
The process takes the directory and writes into its log what came of it; `machine`, if it is not
empty, is another one than this. Times are short, so that tests are.
"""

import json
import os
import sys
import time

HEARTBEAT_SECONDS, TAKEOVER_SECONDS, POLL_SECONDS = 0.2, 1.5, 0.05


def shorten(ownership, machine: str = "") -> None:
    """Make the waits of the module short, and its machine another one."""
    ownership.HEARTBEAT_SECONDS = HEARTBEAT_SECONDS
    ownership.TAKEOVER_SECONDS = TAKEOVER_SECONDS
    ownership._POLL_SECONDS = POLL_SECONDS
    if machine:
        ownership._machine = lambda: machine


def main() -> None:
    from etils import epath

    from promot_t5x.errors import InUseError
    from promot_t5x.runs import ownership

    for line in sys.stdin:
        directory, machine, log = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(output, descriptor)
        shorten(ownership, machine)
        try:
            ownership.take(epath.Path(directory))
            print("taken", flush=True)
            time.sleep(60)
        except InUseError as error:
            print(f"refused: {error}", flush=True)
            os._exit(73)


if __name__ == "__main__":
    main()
