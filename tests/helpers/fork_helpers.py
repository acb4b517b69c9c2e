"""Command lines in processes that cost no imports: a server has done them, and forks.

Run as a script it is the server: it reads one JSON request a line and, for each, forks a child
that runs `promot-t5x` on the request's words and may be told to die at a certain call. `Server`
is the other end. JAX starts in the children only, for it must not be forked when it runs.
"""

import ctypes
import functools
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import clean_environment

SLOWEST_SEC = 300.0
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


class Server:
    """Runs command lines, one at a time."""

    def __init__(self, environment, directory: Path):
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=directory,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(
        self,
        words,
        *,
        death=None,
        archive=None,
        sign=None,
        delay=0.0,
        number=signal.SIGKILL,
        devices=None,
        file_limit=None,
        fault=None,
    ):
        """Run a command line to its end.

        Args:
          death: a `Death` that the process brings on itself.
          archive: keep in this directory a copy of every checkpoint that is removed.
          sign: send the signal `number`, `delay` seconds after this file has appeared.
          devices: so many virtual ones, instead of the server's number.
          file_limit: no file can be longer than so many bytes, as on a full disk.
          fault: arguments of `fault_arm` in `faulty_calls.c`, which the server has preloaded.
        """
        pid = self.start(
            words,
            death=death,
            archive=archive and str(archive),
            devices=devices,
            file_limit=file_limit,
            fault=fault,
        )
        if sign is not None:
            end = time.monotonic() + SLOWEST_SEC
            while not sign.exists() and self.alive(pid) and time.monotonic() < end:
                time.sleep(0.002)
            time.sleep(delay)
            if self.alive(pid):
                os.kill(pid, number)
        return self.finish()

    def start(self, words, **how):
        """Start a command line, with what `run` takes; return its process id."""
        self._process.stdin.write(json.dumps({"words": words, **how}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def finish(self):
        """Wait for the end of what was started."""
        status, said = json.loads(self._process.stdout.readline())
        return Ended(os.waitstatus_to_exitcode(status), said)

    def children(self):
        """Ids of the processes that run now."""
        task = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in task.read_text().split()]

    @staticmethod
    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False


def serve():
    for name in MODULES.split():
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            obey(request, write)
        os.close(write)
        print(pid, flush=True)
        with open(read, errors="replace") as pipe:
            said = pipe.read()
        print(json.dumps([os.waitpid(pid, 0)[1], said]), flush=True)


def obey(request, output):
    # A shell's job in the background ignores Ctrl-C, and its children would.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if request.get("devices"):
        os.environ["XLA_FLAGS"] = clean_environment.xla_flags(request["devices"])
    if request.get("file_limit"):
        # What it compiles does not go into the shared cache, where half of it would stay.
        importlib.import_module("jax").config.update(
            "jax_persistent_cache_min_compile_time_secs", 1e9
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    if request.get("archive"):
        keep_removed(Path(request["archive"]))
    if request.get("death"):
        die_at(*request["death"])
    if request.get("step_fault"):
        spoil_step(*request["step_fault"])
    if request.get("fault"):
        kind, nth, prefix = request["fault"]
        armed = ctypes.CDLL(None).fault_arm(kind.encode(), ctypes.c_long(nth), prefix.encode())
        assert armed == 0, kind
    import tensorflow

    from promot_t5x.cli import main as cli

    # AutoGraph would rewrite seqio's preprocessors, which need no rewriting, for a second.
    main = tensorflow.autograph.experimental.do_not_convert(cli.main)
    status = 1
    try:
        status = main(request["words"])
    except BaseException:
        import traceback

        traceback.print_exc()
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
