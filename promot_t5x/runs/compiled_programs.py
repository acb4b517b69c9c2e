"""A run keeps its compiled programs, so that a launch that resumes it compiles none of them again.

    MODEL_DIR/compiled_programs/    JAX's persistent compilation cache; each entry has a checksum

They lie with the run and not with the host, because a run that was preempted often goes on where
nothing of the first host's disk is left. JAX keeps what takes a second to compile; process 0
writes, and every process reads. What a kill or a disk has damaged is found by its checksum before
anything reads it, and compiled again. Nothing here can end a run.
"""

import contextlib
import hashlib
import platform
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from promot_t5x.distributed import processes
from promot_t5x.files import write_atomically

DIRECTORY = "compiled_programs"
_ENTRY, _CHECKSUM = "-cache", ".sha256"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_WRITE = "/jax/compilation_cache/cache_misses"  # reported where an entry is written
_COMPILED = "/jax/core/compile/backend_compile_duration"  # reported once it has been


@contextlib.contextmanager
def kept(directory: epath.Path | None) -> Iterator[None]:
    """Keep what the block compiles, and take what an earlier launch has compiled.

    To be entered by all processes alike. Where the user has set JAX's own cache
    (`JAX_COMPILATION_CACHE_DIR`) or switched it off, that holds.

    **Arguments:**

    - `directory`: of the run, local or on `gs://`; None keeps nothing.
    """
    given = jax.config.values
    ours = given["jax_enable_compilation_cache"] and not given["jax_compilation_cache_dir"]
    place = _place(directory) if ours and directory is not None else None
    ready = place is not None and processes.is_primary() and _made_ready(place)
    if place is None or not processes.broadcast_from_primary([int(ready)])[0]:
        yield
        return
    count = _Count(place)
    settings = {
        "jax_compilation_cache_dir": str(place),
        # XLA would write what it tunes on GPUs beside them; it is in the programs anyway.
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    try:
        with _configured(settings), count.listening():
            yield
    finally:
        if processes.is_primary():
            print(f"programs: {count} ({place})", flush=True)


def _place(directory: epath.Path) -> epath.Path:
    """Return where programs of these devices lie: code for CPUs is for one kind of processor."""
    place = directory / DIRECTORY
    return place / f"cpu-{_processor()}" if jax.default_backend() == "cpu" else place


def _processor() -> str:
    known = Path("/proc/cpuinfo")
    text = known.read_text() if known.exists() else ""
    found = re.search(r"^(flags|Features)\s*:.*", text, re.M)
    text = found[0] if found else platform.processor()
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _made_ready(place: epath.Path) -> bool:
    """Make the directory and remove from it what is damaged; whether programs can be kept there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        write_atomically(place / "writable", "")
        for entry in place.iterdir():
            if entry.name.endswith(_ENTRY) and not _is_whole(entry):
                _checksum_of(entry).unlink(missing_ok=True)
                entry.unlink()
    # A bucket's errors are its library's own, and without the programs the run only starts slower.
    except Exception as error:
        print(f"compiled programs are not kept: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def _is_whole(entry: epath.Path) -> bool:
    checksum = _checksum_of(entry)
    return bool(checksum.exists() and checksum.read_text() == _digest(entry))


def _checksum_of(entry: epath.Path) -> epath.Path:
    return entry.with_name(entry.name + _CHECKSUM)


def _digest(entry: epath.Path) -> str:
    return hashlib.sha256(entry.read_bytes()).hexdigest()


class _Count:
    """Counts the programs of a launch, and gives each that is written its checksum."""

    def __init__(self, place: epath.Path):
        self._place, self._wrote = place, threading.local()
        self._lock = threading.Lock()
        self._requests = self._hits = 0

    def __str__(self) -> str:
        return f"{self._hits} read, {self._requests - self._hits} compiled"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        jax.monitoring.register_event_listener(self._event)
        jax.monitoring.register_event_duration_secs_listener(self._duration)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_listener(self._event)
            jax.monitoring.unregister_event_duration_listener(self._duration)

    def _event(self, event: str, **_: str | int) -> None:
        with self._lock:
            self._requests += event == _REQUEST
            self._hits += event == _HIT
        if event == _WRITE:
            self._wrote.now = True

    def _duration(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event != _COMPILED or not getattr(self._wrote, "now", False):
            return
        self._wrote.now = False
        with self._lock, contextlib.suppress(Exception):  # no checksum: it is compiled once more
            for entry in self._place.glob(f"*{_ENTRY}"):
                if not _checksum_of(entry).exists():
                    write_atomically(_checksum_of(entry), _digest(entry))


@contextlib.contextmanager
def _configured(settings: dict[str, str]) -> Iterator[None]:
    before = {name: jax.config.values[name] for name in settings}

    def configure(values: dict[str, str]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # or JAX stays with the directory that it had first

    configure(settings)
    try:
        yield
    finally:
        configure(before)
