"""A MODEL_DIR belongs to one configuration, and to one run at a time."""

import dataclasses
import datetime
import os
import re
import socket
import time
from collections.abc import Callable, Collection, Mapping

from etils import epath

from promot_t5x import __version__, config
from promot_t5x.config import gin_reader
from promot_t5x.distributed import devices, processes, startup
from promot_t5x.errors import InUseError, UserError
from promot_t5x.files import append_json_line, write_atomically
from promot_t5x.paths import make_directory
from promot_t5x.runs import ownership

CONFIG = "config.gin"
LAUNCHES = "launches.jsonl"
_SHARING_SECONDS = 10.0  # in which a file of one host shows on the others
# How a run lies on its devices changes none of its numbers but their last digits, and who else gets
# them changes nothing.
_REFERENCE = re.compile(r"@[\w./]+")
_FREE = re.compile(r"NUM_PARTITIONS|MESH|partitioning\..*|LOGGERS|loggers\..*|\w+\.\w+\.loggers")


def token_cache(directory: epath.Path) -> epath.Path:
    """Where a run keeps its tokenized examples: with it, or on each host's disk if it is not there.

    What is kept is found by its content, so runs may share the place.
    """
    if "://" not in str(directory):
        return directory / "token_cache"
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return epath.Path(home).expanduser() / "promot_t5x" / "token_cache"


def claim(
    directory: epath.Path,
    text: str,
    *,
    may_change: Collection[str] = (),
    may_extend: Collection[str] = (),
    macro: str = "MODEL_DIR",
    check: Callable[[], None] | None = None,
) -> None:
    """Make this run the owner of `directory`, and `directory` the home of its configuration.

    A run may resume on other devices, laid out otherwise, with more training steps, and with more
    parts than it had. Each launch adds a line to `launches.jsonl`, with the devices that it found.

    **Arguments:**

    - `directory`: MODEL_DIR, or another directory of results.
    - `text`: the resolved configuration.
    - `may_change`: names of other bindings that a run may change from launch to launch.
    - `may_extend`: names of lists of references, such as the stages of a run, that may get more of
      them, with the bindings and macros that these bring.
    - `macro`: what the configuration calls the directory, for messages.
    - `check`: raises `UserError` where the run cannot go on with this configuration; called in the
      primary process, before anything of the directory's run is replaced.

    **Raises:** `UserError` with a readable difference if it holds another configuration's run,
    `InUseError` if another run is writing into it.
    """
    with processes.raise_on_all(UserError):
        if processes.is_primary():
            _check(directory, text, may_change, may_extend, macro)
    with processes.raise_on_all(InUseError):
        try:
            if processes.is_primary():
                ownership.take(directory)
        finally:
            startup.meet()  # waiting for a sign of life outlasts the patience of collectives
    with processes.raise_on_all(UserError):
        if processes.is_primary():
            _check(directory, text, may_change, may_extend, macro)
            if check is not None:
                check()
            _write(directory, text)
    with processes.raise_on_all(UserError):
        _check_shared(directory / CONFIG, macro)


def _check_shared(path: epath.Path, macro: str) -> None:
    """Raise `UserError` where this process does not see what the primary process wrote."""
    end = time.monotonic() + _SHARING_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(
                f"{macro} is not shared by all hosts: process 0 wrote {path}, which "
                f"{socket.gethostname()} does not see. Give a bucket, as in gs://…, or a directory "
                "of a shared file system, by its full path."
            )
        time.sleep(0.2)


def _check(
    directory: epath.Path,
    text: str,
    may_change: Collection[str],
    may_extend: Collection[str],
    macro: str,
) -> None:
    make_directory(directory, macro)
    path = directory / CONFIG
    if path.exists():
        known, before = _known(path)
        after = gin_reader.plain_bindings(text, "the new configuration")
        may_change = {*may_change, *_grown(before, after)}
        may_change |= _added(known, before, after, may_extend)
        difference = [
            line
            for line in config.describe_difference(known, text)
            if (name := line.partition(":")[0]) not in may_change and not _FREE.fullmatch(name)
        ]
        if difference:
            raise UserError(
                f"{macro} {directory} holds a run with another configuration:\n  "
                + "\n  ".join(difference)
                + f"\nGive this run a {macro} of its own, or the settings of the other one."
            )


def _known(path: epath.Path) -> tuple[str, dict[str, str]]:
    """Return the configuration of the run that is there, as text and as bindings."""
    try:
        text = path.read_text()
        return text, gin_reader.plain_bindings(text, str(path))
    except (UnicodeDecodeError, UserError) as error:
        raise UserError(
            f"{path}, the configuration of the run that is there, is damaged: {error}. If this is "
            "the command that began it, remove that file: it is written again."
        ) from None


def _write(directory: epath.Path, text: str) -> None:
    path = directory / CONFIG
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)
    now = datetime.datetime.now(datetime.UTC)
    launch = {
        "started": now.isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "version": __version__,
        **dataclasses.asdict(devices.found()),
    }
    append_json_line(directory / LAUNCHES, launch)


def _grown(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Return the names of the numbers of training steps that are larger than they were."""
    names: set[str] = set()
    waiting = [name for name in after if name.endswith("Stage.train_steps")]
    while waiting:
        name = waiting.pop()
        if name in after and name not in names:
            names.add(name)
            waiting.append(after[name].removeprefix("%"))
    return {name for name in names if _is_larger(after[name], before.get(name, ""))}


def _is_larger(now: str, was: str) -> bool:
    return now.isdecimal() and was.isdecimal() and int(now) > int(was)


def _added(
    known: str, before: Mapping[str, str], after: Mapping[str, str], lists: Collection[str]
) -> set[str]:
    """Return the names of what only new parts of a run use: nothing that was there can see it."""
    longer = {
        name
        for name in before.keys() & after.keys() & {*lists}
        if before[name] != after[name] and _holds_in_order(after[name], before[name])
    }
    if not longer:
        return set()
    return longer | {name for name in after.keys() - before.keys() if _is_apart(name, known)}


def _holds_in_order(now: str, was: str) -> bool:
    """Whether a list of references has all those of another, in their order."""
    found = iter(_REFERENCE.findall(now))
    return all(reference in found for reference in _REFERENCE.findall(was))


def _is_apart(name: str, known: str) -> bool:
    """Whether a name is a macro, or binds something in a scope that a configuration never has."""
    scope, in_scope, _ = name.rpartition("/")
    if in_scope:
        return re.search(rf"(?<!\w){scope}/", known) is None
    return "." not in name
