"""A run directory has one owner: the run that writes into it.

    MODEL_DIR/owner.json    host, process, start and heartbeat of the owner, and where it is in its
                            work; removed when it ends

Every change of the file is a conditional write, which succeeds only while the file is what it was
when it was read; buckets and local file systems offer it alike, through tensorstore. On its own
host, an owner is dead when its process is gone, and its successor takes over at once. Elsewhere
it is dead when its heartbeat has not changed for `TAKEOVER_SECONDS`, by the successor's clock
alone; clocks of two hosts are never compared. Whoever only reads a directory needs no ownership.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import tensorstore as ts
from etils import epath

from promot_t5x import progress
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.paths import absolute
from promot_t5x.errors import EXIT_IN_USE, InUseError, SaveError, UserError

FILE_NAME = "owner.json"
HEARTBEAT_SECONDS = 10.0
TAKEOVER_SECONDS = 60.0
_POLL_SECONDS = 0.5
_ENDING_SECONDS = 2.0
_owned: dict[str, "Ownership"] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owner:
    """The run that owns a directory.

    **Attributes:**

    - `host`, `process`: the name of its host, and the number of its process there.
    - `started`: when it took the directory, as a date and time in UTC.
    - `machine`: what tells apart the machines and containers in which process numbers count; empty
      where that is unknown.
    - `process_start`: what tells its process apart from a later one of the same number.
    - `identity`: a random name.
    - `heartbeat`: how often it has confirmed that it lives.
    - `where`: what it was at then, as in `[stage_one] step 120`; empty before anything.
    """

    host: str
    process: int
    started: str
    machine: str
    process_start: str
    identity: str
    heartbeat: int = 0
    where: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, started {self.started}"

    @classmethod
    def of_this_process(cls) -> "Owner":
        """Describe this process as an owner."""
        now = datetime.datetime.now(datetime.UTC)
        return cls(
            host=socket.gethostname(),
            process=os.getpid(),
            started=now.isoformat(sep=" ", timespec="seconds"),
            machine=_machine(),
            process_start=_process_start(os.getpid()) or "",
            identity=uuid.uuid4().hex,
        )

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """Read an owner's file; None where it is not one."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def is_alive_here(self) -> bool | None:
        """Whether its process lives on this machine; None where it is not of this machine."""
        if not self.machine or self.machine != _machine():
            return None
        return _process_start(self.process) == self.process_start


def _machine() -> str:
    """Identify the kernel's boot and the container in which process numbers count."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _process_start(process: int) -> str | None:
    """Read when a process started, in the kernel's ticks; None where it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


class Ownership:
    """A directory that this process owns, with a thread that confirms it."""

    def __init__(self, directory: epath.Path):
        """Take the directory; `take` is the function to call."""
        self._directory = directory
        self._owner = Owner.of_this_process()
        self._store = ts.KvStore.open(read_arrays.kvstore(directory)).result()
        self._generation = self._take()
        self._where = ""
        progress.tell(self._hear)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._confirm, name="owner", daemon=True)
        self._thread.start()

    def _hear(self, where: str) -> None:
        self._where = where

    def _take(self) -> bytes:
        """Become the owner; return the generation of its file."""
        last_heartbeat: bytes | None = None
        began = time.monotonic()
        while True:
            found = self._store.read(FILE_NAME).result()
            if found.state == "value":
                other = Owner.parse(found.value)
                alive = other.is_alive_here() if other else None
                patience: float = _ENDING_SECONDS  # a process that was killed takes a moment to end
                if alive is None:
                    if last_heartbeat is None:
                        last_heartbeat = found.value
                        self._say_waiting(other)
                    alive = found.value != last_heartbeat
                    patience = 0 if alive else TAKEOVER_SECONDS
                elif not alive:
                    patience = 0
                if time.monotonic() - began < patience:
                    time.sleep(_POLL_SECONDS)
                    continue
                if alive:
                    raise InUseError(
                        f"{self._directory} belongs to a run that is going on: {other}. Wait for "
                        "its end or end it, or give this run a directory of its own. Nothing was "
                        "changed."
                    )
            # Fails where another process was faster, which is looked at anew.
            if generation := self._write(found.stamp.generation):
                return generation

    def _say_waiting(self, other: Owner | None) -> None:
        print(
            f"promot-t5x: {self._directory} belongs to {other or 'a run that is starting'}; "
            f"waiting up to {TAKEOVER_SECONDS:g} s for a sign that it lives",
            file=sys.stderr,
            flush=True,
        )

    def _write(self, expected: bytes) -> bytes:
        """Write the owner's file if its generation is the expected one; return the new one."""
        content = json.dumps(dataclasses.asdict(self._owner), indent=1) + "\n"
        stamp = self._store.write(FILE_NAME, content.encode(), if_equal=expected).result()
        generation: bytes = stamp.generation
        return generation

    def _confirm(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            heartbeat = self._owner.heartbeat + 1
            self._owner = dataclasses.replace(self._owner, heartbeat=heartbeat, where=self._where)
            # What fails for a moment (the disk is full, the bucket away) is tried again.
            with contextlib.suppress(ValueError, OSError):
                self._generation = self._write(self._generation) or self._recovered()

    def _recovered(self) -> bytes:
        """Return the generation of the file after a write that found another one than expected.

        An answer may have been lost, or the file. Where another run has taken over, because this
        one was silent for too long, this process ends at once: it must write nothing more.
        """
        found = self._store.read(FILE_NAME).result()
        other = Owner.parse(found.value) if found.state == "value" else self._owner
        if other is not None and other.identity == self._owner.identity:
            generation: bytes = found.stamp.generation
            return generation
        print(
            f"promot-t5x: error: {self._directory} has been taken over by {other}, because this "
            f"process gave no sign of life for {TAKEOVER_SECONDS:g} s; it ends",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_IN_USE)

    def release(self) -> None:
        """Give the directory back."""
        self._ended.set()
        self._thread.join()
        progress.forget(self._hear)
        with contextlib.suppress(ValueError, OSError):
            self._store.write(FILE_NAME, None, if_equal=self._generation).result()


def look(directory: epath.Path) -> tuple[Owner | None, bool]:
    """Find the owner of a run directory without becoming it; nothing is written.

    **Arguments:**

    - `directory`: a local directory or a bucket's.

    **Returns:** the owner, None where there is none or its file cannot be understood, and whether
    it lives. An owner on another host lives if its heartbeat changes while this waits, which takes
    up to `HEARTBEAT_SECONDS` and a little more.

    **Raises:** `UserError` where the directory cannot be read.
    """
    try:
        store = ts.KvStore.open(read_arrays.kvstore(absolute(directory))).result()
        first = store.read(FILE_NAME).result()
        owner = Owner.parse(first.value) if first.state == "value" else None
        alive = owner.is_alive_here() if owner else False
        end = time.monotonic() + HEARTBEAT_SECONDS + _ENDING_SECONDS
        while alive is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            found = store.read(FILE_NAME).result()
            if found.state != "value":
                return None, False
            if found.value != first.value:
                owner, alive = Owner.parse(found.value), True
    except (ValueError, OSError) as error:
        raise UserError(f"{directory} cannot be read: {read_arrays.reason(error)}") from error
    return owner, bool(alive)


def take(directory: epath.Path) -> None:
    """Make this process the owner of a run directory, until `release_all` or its end.

    **Arguments:**

    - `directory`: a local directory, which need not exist, or a bucket's.

    **Raises:** `InUseError` where another run owns it, which names that run; `SaveError` where the
    disk is full; `UserError` where the directory cannot be written.
    """
    place = absolute(directory)
    if str(place) in _owned:
        return
    try:
        _owned[str(place)] = Ownership(place)
    except (ValueError, OSError) as error:
        reason: Any = read_arrays.reason(error)
        if "No space left" in str(error):
            raise SaveError(f"{directory} cannot be written, its disk is full: {reason}") from error
        raise UserError(f"{directory} cannot be written: {reason}") from error


def release_all() -> None:
    """Give back every directory that this process owns."""
    while _owned:
        _owned.popitem()[1].release()
