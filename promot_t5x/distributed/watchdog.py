"""The watchdog beside this process, which knows where the process is and ends it when it hangs.

It is a process of its own (`watchdog_process`), because a hang may hold everything that a thread
would need.
"""

import atexit
import faulthandler
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from promot_t5x import progress
from promot_t5x.errors import EXIT_START_AGAIN


class Watchdog:
    """A watchdog of this process, until `dismiss`.

    **Attributes:**

    - `where`: where the process is, as it has said last.
    """

    def __init__(self, name: str, stall_seconds: int):
        """Start the watchdog.

        **Arguments:**

        - `name`: of this process, for messages.
        - `stall_seconds`: how long it may make no progress; 0 leaves that to its pace.
        """
        assert sys.__stderr__ is not None
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__)  # the watchdog asks for stacks
        program = Path(__file__).with_name("watchdog_process.py")
        self._process = subprocess.Popen(
            [sys.executable, "-I", program, str(os.getpid()), name, str(stall_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for the watchdog
        )
        self.where = "its start"
        self._dismissed = False
        progress.tell(self._tell)
        threading.Thread(target=self._obey, name="watchdog", daemon=True).start()
        atexit.register(self.dismiss)

    def _tell(self, where: str) -> None:
        self.where = where
        self._write(where.replace("\n", " "))

    def _obey(self) -> None:
        """End this process when the watchdog asks for it."""
        assert self._process.stdout is not None
        with self._process.stdout as orders:
            if orders.readline():
                os._exit(EXIT_START_AGAIN)

    def dismiss(self) -> None:
        """Say farewell: this process ends as it should, or has said why not."""
        if self._dismissed:
            return
        self._dismissed = True
        progress.forget(self._tell)
        atexit.unregister(self.dismiss)
        self._write("")
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it is gone; the run continues without
