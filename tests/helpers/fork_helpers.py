"""Command lines in processes that cost no imports: a server has done them, and forks.

Run as a script it is the server: it reads one JSON request a line and, for each, forks a child
that runs `promot-t5x` on the request's words and may be told to die at a certain call. `Server`
is the other end. JAX starts in the children only, for it must not be forked when it runs.
Whoever starts `promot-t5x` in a test, asks `shared()`, unless imports are what the test is about.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar, NamedTuple

SLOWEST_SEC = 300.0
# The server's: with more it cannot fork. Where pandas is installed, Arrow would start another.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Everything that a run imports late; `run_tasks` is the tests' own.
MODULES = (
    "promot_t5x.cli.main promot_t5x.runs.promot promot_t5x.runs.train promot_t5x.runs.eval "
    "promot_t5x.decoding.decoder promot_t5x.data.vocabularies promot_t5x.network.prompt_init "
    "promot_t5x.distributed.partitioning promot_t5x.training.schedules "
    "orbax.checkpoint seqio tensorflow tensorstore"
)


class Ended(NamedTuple):
    """How a command ended (negative: by that signal), and what it said."""

    status: int
    said: str


class Death(NamedTuple):
    """Die by SIGKILL at the nth call of a function, before it starts or once it has returned."""

    place: str  # module:function or module:class.function
    call: int = 1
    after: bool = False


class Process:
    """A command line that runs; its output is in files."""

    def __init__(self, server, pid, log, errors):
        self.pid, self._server, self._log, self._errors = pid, server, log, errors

    @property
    def said(self):
        """What it has printed, unless `errors` is apart: on stdout and stderr in turn."""
        return self._log.read_text(errors="replace")

    @property
    def errors(self):
        """What it has printed on stderr."""
        return self._errors.read_text(errors="replace")

    @property
    def alive(self):
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"

    @property
    def children(self):
        """Ids of the processes that it has started and that run or have not been waited for."""
        task = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in task.read_text().split()] if self.alive else []

    def kill(self, number=signal.SIGKILL):
        """Send a signal, if there is still somebody to get it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self):
        """Wait for its end."""
        status = self._server.ask({"wait": self.pid})
        return Ended(os.waitstatus_to_exitcode(status), self.said)


class Server:
    """Starts command lines; those that still run at its end are killed."""

    def __init__(self, environment):
        self._logs = tempfile.TemporaryDirectory(prefix="forked-")
        self._numbers = itertools.count()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**environment, **ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        self._process.communicate()
        self._logs.cleanup()
        self._errors.close()

    def ask(self, request):
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            raise RuntimeError(f"the server of commands has ended:\n{self._errors.read()[-3000:]}")
        return int(answer)

    def run(self, words, *, sign=None, delay=0.0, number=signal.SIGKILL, **how):
        """Run a command line to its end, with what `start` takes.

        Args:
          sign: send the signal `number`, `delay` seconds after this file has appeared.
        """
        process = self.start(words, **how)
        if sign is not None:
            end = time.monotonic() + SLOWEST_SEC
            while not sign.exists() and process.alive and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(delay)
            process.kill(number)
        return process.wait()

    def start(self, words, *, apart=False, **how):
        """Start a command line in a process of its own.

        Args:
          apart: keep stderr apart from stdout.
          cwd: its directory.
          environ: what is different in its environment; JAX has read JAX_... already.
          death: a `Death` that the process brings on itself.
          archive: keep in this directory a copy of every checkpoint that is removed.
          file_limit: no file can be longer than so many bytes, as on a full disk.
          fault: arguments of `fault_arm` in `faulty_calls.c`, which the server has preloaded.
          step_fault: what `spoil_step` takes.
          programs: a directory of `kept_programs`, and whether to leave programs there.
          buckets: what etils takes for `gs://` is in this folder (`gcs_helpers`).
          forks: processes that this one starts are forked too, so many of them (`Spare`).
        """
        log = Path(self._logs.name) / f"{next(self._numbers)}.log"
        errors = log.with_suffix(".err") if apart else log
        pid = self.ask({"words": words, "log": log, "errors": errors, **how})
        return Process(self, pid, log, errors)


@functools.cache
def shared():
    """The server of this process's tests, started when it is first needed."""
    import run_helpers

    server = Server(run_helpers.environment())
    atexit.register(server.close)
    return server


def serve():
    for name in MODULES.split():
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a forked process would lack all but one"
    gc.freeze()  # what is imported stays; to look at it again and again is a tenth of a run's time
    running = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            log, pipe = running.pop(request["wait"])
            if pipe is not None:
                with open(pipe, "rb") as said:
                    Path(log).write_bytes(said.read())
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            # What must not write long files writes its log into a pipe.
            read, write = os.pipe() if request.get("file_limit") else (None, None)
            answer = os.fork()
            if answer == 0:
                obey(request, write)
            if write is not None:
                os.close(write)
            running[answer] = request["log"], read
        print(answer, flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def obey(request, output):
    # A shell's job in the background ignores Ctrl-C, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for path, descriptor in ((request["log"], 1), (request["errors"], 2)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(output or os.open(path, flags), descriptor)
    os.environ.update(request.get("environ") or {})
    if request.get("cwd"):
        os.chdir(request["cwd"])
    if request.get("file_limit"):
        # What it compiles does not go into the shared cache, where half of it would stay.
        importlib.import_module("jax").config.update(
            "jax_persistent_cache_min_compile_time_secs", 1e9
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    if request.get("archive"):
        keep_removed(Path(request["archive"]))
    if request.get("programs"):
        import kept_programs

        directory, keep = request["programs"]
        kept_programs.install(Path(directory), keep=keep)
    if request.get("buckets"):
        import gcs_helpers

        gcs_helpers.use_folder(request["buckets"])
    if request.get("death"):
        die_at(*request["death"])
    if request.get("step_fault"):
        spoil_step(*request["step_fault"])
    if request.get("fault"):
        kind, nth, prefix = request["fault"]
        armed = ctypes.CDLL(None).fault_arm(kind.encode(), ctypes.c_long(nth), prefix.encode())
        assert armed == 0, kind
    if request.get("forks"):
        Spare.replace_popen(request["forks"])
    command(request["words"])


class Spare:
    """Stands in for `subprocess.Popen`: a process that was forked beforehand becomes the command.

    Beforehand, because whoever starts processes may have threads by then.
    """

    _waiting: ClassVar[list[tuple[int, int, int]]] = []  # process, pipe to it, pipe from it

    @classmethod
    def replace_popen(cls, count):
        for _ in range(count):
            (read, order), (output, write) = os.pipe(), os.pipe()
            pid = os.fork()
            if pid == 0:
                os.setsid()
                for descriptor in (order, output, *(d for _, *ds in cls._waiting for d in ds)):
                    os.close(descriptor)
                os.dup2(write, 1)
                os.dup2(write, 2)
                with open(read) as lines:
                    if not (line := lines.readline()):
                        os._exit(0)
                words, environ = json.loads(line)
                os.environ.update(environ)
                command(words)
            os.close(read)
            os.close(write)
            cls._waiting.append((pid, order, output))
        inner = subprocess.Popen
        cls._popen = staticmethod(inner)
        subprocess.Popen = cls

    def __class_getitem__(cls, _):
        return cls

    def __new__(cls, command, **options):
        if command[:3] != [sys.executable, "-m", "promot_t5x"] or not cls._waiting:
            return cls._popen(command, **options)
        return super().__new__(cls)

    def __init__(self, command, *, env, **_):
        self.pid, order, output = self._waiting.pop(0)
        self.stdout, self.returncode = os.fdopen(output, "rb"), None
        with open(order, "w") as pipe:
            pipe.write(json.dumps([command[3:], env]) + "\n")

    def poll(self):
        return self.wait(os.WNOHANG)

    def wait(self, flags=0):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def command(words):
    """Be `promot-t5x` with these words."""
    import seqio
    import tensorflow

    from promot_t5x.cli import main as cli
    from promot_t5x.distributed import startup

    sys.argv = ["promot-t5x", *words]
    for word in words:
        if word.startswith("--tfds_data_dir="):  # which is read where the library is imported
            seqio.set_tfds_data_dir_override(word.partition("=")[2])
    # AutoGraph would rewrite seqio's preprocessors, which need no rewriting, for a second.
    main = tensorflow.autograph.experimental.do_not_convert(cli.main)
    status = 1
    try:
        status = main(words)
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    if startup.joined():
        sys.exit(status)  # with the handshake that ends a run of several processes
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def die_at(place, call, after):
    module, _, name = place.partition(":")
    owner, _, name = name.rpartition(".")
    holder = importlib.import_module(module)
    holder = getattr(holder, owner) if owner else holder
    inner, calls = getattr(holder, name), []

    @functools.wraps(inner)
    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) < call:
            return inner(*args, **kwargs)
        if after:
            inner(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(SLOWEST_SEC)

    setattr(holder, name, deadly)


def spoil_step(kind, call):
    """At the nth step of the process, parameters turn into NaN, or memory does not suffice."""
    import jax

    from promot_t5x.runs.train import Trainer

    inner, calls = Trainer._compiled, []

    def spoiled(train_state, batch, step):
        calls.append(1)
        if len(calls) == call and kind == "memory":
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes."
            )
        if len(calls) == call:
            nan = jax.tree.map(lambda a: a * float("nan"), train_state.trainable)
            train_state = train_state.replace(trainable=nan)
        return step(train_state, batch)

    def compiled(self):
        step = inner(self)
        return lambda train_state, batch: spoiled(train_state, batch, step)

    Trainer._compiled = compiled


def keep_removed(archive):
    import shutil

    from promot_t5x.checkpoints.paths import step_directory
    from promot_t5x.checkpoints.saving import Checkpoints

    inner = Checkpoints._remove

    def remove(self, step):
        source = step_directory(self.directory, step)
        shutil.copytree(source, archive / source.parent.name / source.name)
        inner(self, step)

    Checkpoints._remove = remove


if __name__ == "__main__":
    serve()
