"""Copies of a run's numbers for Weights & Biases and trackio, beside its own files.

Each logger works in a thread of its own: what it does not reach, refuses or waits for never stops
or delays a step. One run of a MODEL_DIR is one run there, which later launches continue. A name is
that of TensorBoard: the directory of the events within MODEL_DIR, and the tag.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from etils import epath

from promot_t5x.config import gin_reader
from promot_t5x.distributed import processes
from promot_t5x.errors import UserError
from promot_t5x.files import write_atomically

RUN_ID = "logger_run_id.txt"
_WAITING = 100_000  # messages that may wait for a logger that is slow
_PATIENCE_SECONDS = 60.0  # at the end of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """What a logger is told of a run: its name, its unchanging id, its directory, its settings."""

    name: str
    id: str
    directory: epath.Path
    settings: Mapping[str, str]


class Sink(Protocol):
    """An open run of a logger."""

    where: str

    def log(self, prefix: str, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars of a step of one directory of events."""

    def attach(self, name: str, text: str) -> None:
        """Keep a file with the run."""

    def close(self) -> None:
        """Send what is left."""


class Logger(Protocol):
    """What LOGGERS lists.

    **Attributes:**

    - `module`: what it imports; loaded before its thread starts, because threads that import at
      the same time see modules half made.
    """

    module: ClassVar[str]

    def open(self, run: LoggedRun) -> Sink:
        """Begin or continue a run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsAndBiases:
    """Logs to Weights & Biases; needs the extra `wandb`.

    **Attributes:**

    - `project`, `entity`: where the run belongs.
    - `name`: of the run; by default MODEL_DIR's own.
    - `mode`: `online` or `offline`; by default WANDB_MODE, or offline where there is no API key.
    """

    module: ClassVar[str] = "wandb"

    project: str = "promot-t5x"
    entity: str | None = None
    name: str | None = None
    mode: str | None = None

    def __post_init__(self) -> None:
        _check_installed(self)
        if self.mode not in (None, "online", "offline"):
            raise UserError(
                f"WeightsAndBiases.mode = {self.mode!r} must be 'online', 'offline' or None."
            )

    def open(self, run: LoggedRun) -> Sink:
        """Begin or continue a run."""
        return _WandbSink(self, run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trackio:
    """Logs to trackio, on this machine's disk by default; needs the extra `trackio`.

    **Attributes:**

    - `project`: where the run belongs.
    - `name`: of the run; by default MODEL_DIR's own.
    - `space_id`: a Space of the Hugging Face hub that gets the numbers too.
    """

    module: ClassVar[str] = "trackio"

    project: str = "promot-t5x"
    name: str | None = None
    space_id: str | None = None

    def __post_init__(self) -> None:
        _check_installed(self)

    def open(self, run: LoggedRun) -> Sink:
        """Begin or continue a run."""
        return _TrackioSink(self, run)


class _WandbSink:
    def __init__(self, logger: WeightsAndBiases, run: LoggedRun):
        import wandb

        mode = logger.mode or os.environ.get("WANDB_MODE")
        if mode is None and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        is_local = "://" not in str(run.directory)
        self._run = wandb.init(
            project=logger.project,
            entity=logger.entity,
            name=logger.name or run.name,
            id=run.id,
            resume="allow",
            mode=mode,
            dir=str(run.directory) if is_local else None,
            config=dict(run.settings),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._known: set[str] = set()
        offline = f"{Path(self._run.dir).parent}; `wandb sync` sends it"
        self.where = offline if mode == "offline" else str(self._run.url)

    def log(self, prefix: str, step: int, scalars: Mapping[str, float]) -> None:
        if prefix not in self._known:
            # Each stage counts its own steps, while those of wandb must not go back.
            self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
            self._known.add(prefix)
        named = {f"{prefix}/{name}": value for name, value in scalars.items()}
        self._run.log({**named, f"{prefix}/step": step})

    def attach(self, name: str, text: str) -> None:
        # Files of this directory are sent at the end.
        Path(self._run.dir, name).write_text(text, encoding="utf-8")

    def close(self) -> None:
        self._run.finish()


class _TrackioSink:
    def __init__(self, logger: Trackio, run: LoggedRun):
        import trackio

        self._trackio = trackio
        self._run = trackio.init(
            project=logger.project,
            name=f"{logger.name or run.name}-{run.id}",
            space_id=logger.space_id,
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.where = f"`trackio show --project {logger.project}` shows it"

    def log(self, prefix: str, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({f"{prefix}/{name}": value for name, value in scalars.items()}, step=step)

    def attach(self, name: str, text: str) -> None:
        self._run.log({name: self._trackio.Markdown(f"```\n{text}\n```")}, step=0)

    def close(self) -> None:
        self._run.finish()


class Feed:
    """A logger in a thread of its own, and what waits for it.

    **Arguments:**

    - `logger`: one of LOGGERS.
    - `run`: what it is told of the run.
    - `patience`: seconds that `close` waits for what has not been sent yet.
    """

    def __init__(self, logger: Logger, run: LoggedRun, patience: float = _PATIENCE_SECONDS):
        self._label = f"[{type(logger).__name__}]"
        self._waiting: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(_WAITING)
        self._patience, self._failed = patience, False
        self._thread = threading.Thread(target=self._work, args=(logger, run), daemon=True)
        try:
            importlib.import_module(logger.module)
        except Exception as error:
            self._fail(_described(error))
        else:
            self._thread.start()

    def put(self, message: Callable[[Sink], None]) -> None:
        """Let the logger do something when it comes to it."""
        if self._failed:
            return
        try:
            self._waiting.put_nowait(message)
        except queue.Full:
            self._fail(f"{_WAITING:,} messages wait for it")

    def close(self) -> None:
        """Wait, within limits, until all is sent."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        if self._thread.ident is not None:
            self._thread.join(self._patience)
        if self._thread.is_alive() and not self._failed:
            self._fail(f"it was still busy {self._patience:.0f} seconds after the run's end")

    def _work(self, logger: Logger, run: LoggedRun) -> None:
        try:
            sink = logger.open(run)
            print(f"{self._label} {sink.where}", flush=True)
            while (message := self._waiting.get()) is not None:
                message(sink)
            sink.close()
        # Whatever a service or its library does, the run is worth more.
        except (Exception, SystemExit) as error:
            self._fail(_described(error))

    def _fail(self, why: str) -> None:
        self._failed = True
        print(
            f"{self._label} warning: nothing more is logged there ({why}); the run goes on, and "
            "its own files have everything.",
            flush=True,
        )


_directory: epath.Path | None = None
_feeds: list[Feed] = []


@contextlib.contextmanager
def running(loggers: Sequence[Logger], directory: epath.Path, config: str) -> Iterator[None]:
    """Send what `send` and `attach` get in the block to loggers, from the primary process.

    **Arguments:**

    - `loggers`: the configuration's LOGGERS.
    - `directory`: MODEL_DIR; remembers the run's id for later launches.
    - `config`: the resolved configuration, which is attached.
    """
    global _directory
    if not loggers or not processes.is_primary():
        yield
        return
    path = directory / RUN_ID
    if not path.exists():
        write_atomically(path, secrets.token_hex(4) + "\n")
    run = LoggedRun(
        name=directory.name,
        id=path.read_text().strip(),
        directory=directory,
        settings=gin_reader.plain_bindings(config, "the configuration"),
    )
    _directory = directory
    _feeds.extend(Feed(logger, run) for logger in loggers)
    attach("config.gin", config)
    try:
        yield
    finally:
        for feed in _feeds:
            feed.close()
        _feeds.clear()


def send(directory: epath.Path, step: int, scalars: Mapping[str, float]) -> None:
    """Send scalars of a step, whose events lie in `directory`, to the run's loggers."""
    if _feeds and _directory is not None:
        prefix = str(directory).removeprefix(str(_directory)).strip("/")
        for feed in _feeds:
            feed.put(lambda sink: sink.log(prefix, step, scalars))


def attach(name: str, text: str) -> None:
    """Attach a text to the run in its loggers."""
    for feed in _feeds:
        feed.put(lambda sink: sink.attach(name, text))


def check(loggers: Any) -> None:
    """Raise `UserError` where LOGGERS is no list of loggers."""
    made = loggers if isinstance(loggers, (list, tuple)) else [loggers]
    for logger in made:
        if isinstance(logger, type) or not hasattr(logger, "open") or made is not loggers:
            raise UserError(
                f"LOGGERS = {loggers!r} must be a list of objects, as in "
                "[@loggers.WeightsAndBiases(), @loggers.Trackio()]."
            )


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _check_installed(logger: Logger) -> None:
    if importlib.util.find_spec(logger.module) is None:
        raise UserError(
            f"LOGGERS has {type(logger).__name__}, but {logger.module!r} is not installed: "
            f"pip install 'promot-t5x[{logger.module}]'."
        )
