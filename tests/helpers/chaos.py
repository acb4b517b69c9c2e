"""Faults in whole runs, drawn at random: what the same command makes of what they leave.

    python tests/helpers/chaos.py --trials 1000 --seed 0

prints a table of faults and outcomes. A trial runs one of the workloads (both stages with their
comparison, a stage here, in a bucket and in two processes, an evaluation, answers to a file, a
conversion) with one fault, and then the same command until it ends well or refuses. Its files must
then be those of the undisturbed run; only where a file was damaged may it refuse, in words and with
a documented status.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import fork_helpers
import gcs_server
import run_helpers
from clean_environment import xla_flags
from fork_helpers import Ended

from promot_t5x import errors
from promot_t5x.checkpoints.promot_checkpoint import BrokenCheckpointError
from promot_t5x.progress import duration

SHIM = Path(__file__).with_name("faulty_calls.c")
HUNG_SEC = 180.0
STEPS, PERIOD = 4, 2
BUCKET = "gs://mine/run"
CONVERTED = "exists already; name another, or remove it."
MOST_REQUESTS = 400  # to a bucket, likewise
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGSTOP")
SILENT, SLOW = "bucket silent", "bucket slow"
BUCKET_TROUBLE = ("bucket 429", "bucket 500", SILENT, SLOW)
MOST_CALLS = 400  # of a kind that a run makes, roughly; later ones never fail
# What may differ: wall-clock times, how orbax names and dates its files, and what a token cache was
# building when it died, which later ones remove after a day.
FREE = ("timing.jsonl", "launches.jsonl", "events.out.tfevents", "/state/", "_CHECKPOINT_METADATA",
        "owner.json", "/.building-")  # fmt: skip
DOCUMENTED = (
    errors.EXIT_USER_ERROR, errors.EXIT_IN_USE, errors.EXIT_NOT_SAVED, errors.EXIT_START_AGAIN,
    errors.EXIT_NON_FINITE, errors.EXIT_INTERRUPTED, -signal.SIGKILL, -signal.SIGTERM,
    -signal.SIGINT, 0,
)  # fmt: skip
# Outcomes, and those that must not occur.
SAME, REFUSED, AT_REST = "same bytes", "refused in words", "only the damaged file"
LOST, DIFFERENT, FAULT, HUNG = "lost", "silently different", "status 1", "hung"
# A fault that has passed leaves nothing to refuse; only damage does.
STUCK = "refused for ever"
UNWANTED = (LOST, DIFFERENT, FAULT, STUCK, HUNG)
OUTCOMES = (SAME, REFUSED, AT_REST, *UNWANTED)


def determined(tree: dict[str, bytes]) -> dict[str, bytes]:
    """What a run's input alone determines; of a manifest, all but what it says of orbax's files."""
    found = {}
    for name, content in tree.items():
        if any(part in f"/{name}" for part in FREE):
            continue
        if name.endswith("manifest.json"):
            manifest = json.loads(content)
            content = json.dumps([manifest["arrays"], manifest["metadata"]]).encode()
        if "inference_eval/" in name and name.endswith(".json"):
            content = json.dumps({**json.loads(content), "timings": None}).encode()
        found[name] = content
    return found


@dataclasses.dataclass
class Workload:
    """A command line, the directory that it writes, and what an undisturbed run leaves there."""

    name: str
    words: list[str]
    directory: Path
    how: dict[str, Any] = dataclasses.field(default_factory=dict)  # it is started
    straight: dict[str, bytes] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def compared(self) -> tuple[list[str], list[str]]:
        """Names of files that are missing, and of those that are different."""
        found = run_helpers.tree(self.directory)
        missing, different = [], []
        readable = {}
        for name, content in found.items():
            try:
                readable |= determined({name: content})
            except (ValueError, KeyError, TypeError):
                different.append(name)
        for name, content in self.straight.items():
            if name not in found:
                # A cache that could not be read goes, and is made again when it is needed.
                missing += [name] * ("token_cache/" not in name)
            elif name in readable and readable[name] != content:
                different.append(name)
        for manifest in self.directory.rglob("checkpoint_*/manifest.json"):
            step = manifest.parent
            try:
                run_helpers.checkpoint_arrays(step)
            except (BrokenCheckpointError, OSError, ValueError, KeyError, TypeError):
                different.append(f"{step.relative_to(self.directory)}/")
        return missing, sorted({*different, *(readable.keys() - self.straight.keys())})


class SurpriseError(Exception):
    """Something ended as nothing should, whatever comes after it."""


class Trouble:
    """What a bucket's server answers: for some requests in a row, not what it should."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.begin(None, 0, 0)

    def begin(self, kind: str | None, first: int, count: int) -> None:
        """Have trouble of a kind from the nth request on, with so many."""
        with self._lock:
            self._kind, self._seen, self._numbers = kind, 0, range(first, first + count)

    def __call__(self) -> int | None:
        with self._lock:
            self._seen += 1
            kind = self._kind if self._seen in self._numbers else None
        if kind in (SILENT, SLOW):
            time.sleep(2)
        if kind is None or kind == SLOW:
            return None
        return 0 if kind == SILENT else int(kind.split()[-1])


class Trials:
    """Workloads in a directory of their own, a server to run them, and each trial's chance."""

    def __init__(self, directory: Path, seed: str, names: Collection[str]):
        self.directory, self.seed, self.rng = directory, seed, random.Random()
        library = directory / "faulty_calls.so"
        compiler = os.environ.get("CC", "cc")
        subprocess.run(
            [compiler, "-O1", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True
        )
        environment = {
            **run_helpers.environment(),
            "LD_PRELOAD": str(library),
            "XLA_FLAGS": xla_flags(optimized=False),
        }
        self.trouble = Trouble()
        self._buckets = contextlib.ExitStack()
        self._url, _ = self._buckets.enter_context(gcs_server.serve(directory, self.trouble))
        self._server = fork_helpers.Server(environment)
        self._started: list[fork_helpers.Process] = []
        self.workloads = self._prepared(run_helpers.Lab(directory), names)

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.close()
        self._buckets.close()

    def _prepared(self, lab: run_helpers.Lab, names: Collection[str]) -> list[Workload]:
        home = self.directory
        lab.write("two_stages.gin", run_helpers.TWO_STAGES)
        (home / "ask.jsonl").write_text(
            "".join(json.dumps({"inputs": f"sign {n}"}) + "\n" for n in range(16))
        )
        base = home / "base"
        pretrain = lab.words("train", "pretrain", "train", MODEL_DIR=base, TRAIN_STEPS=1)
        assert self._server.run(pretrain).status == 0
        macros = {
            "INITIAL_CHECKPOINT_PATH": base / "checkpoint_1",
            "TRAIN_STEPS": STEPS,
            "EVAL_PERIOD": PERIOD,
            "DROPOUT_RATE": 0.1,
        }
        prompted = {"PROMPT_STEPS": STEPS, "PROMPT_EVAL_PERIOD": PERIOD}
        answering = {"CHECKPOINT_PATH": home / "kept"}

        def training(directory: Path | str) -> list[str]:
            return lab.words("train", "finetune", "train", MODEL_DIR=directory, **macros)

        found = [
            ("train", training(home / "train")),
            ("bucket", training(BUCKET)),
            ("local", ["launch", "local", "--processes=2", "--cpu_devices=1", "--max_restarts=1",
                       "--backoff=0.1", "--", *training(home / "local")]),
            ("promot", lab.words("promot", "promot", "prompt", "two_stages.gin",
                                 MODEL_DIR=home / "promot", **macros, **prompted)),
            ("eval", lab.words("eval", "eval", "eval", EVAL_OUTPUT_DIR=home / "eval",
                               **answering)),
            ("infer", lab.words("infer", "infer", "infer", INFER_OUTPUT_DIR=home / "infer",
                                INPUT_FILE=home / "ask.jsonl", **answering)),
            ("convert", ["convert", str(home / "kept"), str(home / "convert"),
                         "--to", "t5x"]),
        ]  # fmt: skip
        lab.write("infer.gin", INFER)
        workloads = [Workload(name, words, home / name) for name, words in found if name in names]
        for workload in workloads:  # the first one trains, and the others take what it trained
            # The bucket's run is the first one's, elsewhere.
            configuration = "train" if workload.name == "bucket" else workload.name
            programs = home / f"programs_{configuration}"
            programs.mkdir(exist_ok=True)
            if workload.name == "bucket":
                workload.directory = home / BUCKET.removeprefix("gs://")
                workload.how = {"buckets": home, "environ": {
                    "TENSORSTORE_GCS_HTTP_URL": self._url, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token"
                }}  # fmt: skip
            elif workload.name == "local":
                workload.how = {"forks": 4}
            trees = []
            for keep in (True, False):  # the second time, nothing is traced or compiled
                shutil.rmtree(workload.directory, ignore_errors=True)
                if workload.name != "local":
                    workload.how["programs"] = (programs, keep and workload.name != "bucket")
                began = time.monotonic()
                ended = self._server.run(workload.words, **workload.how)
                assert ended.status == 0, (workload.name, ended.said)
                workload.seconds = time.monotonic() - began
                trees.append(determined(run_helpers.tree(workload.directory)))
            workload.straight, again = trees
            assert again == workload.straight, workload.name
            if workload.name == "train":
                shutil.copytree(workload.directory, home / "kept")
        return workloads

    def run(self, number: int) -> dict[str, object]:
        """A trial: what was done, what came of it, and what was said where that is a surprise."""
        began = time.monotonic()
        self.rng.seed(f"{self.seed}/{number}")
        fault, workloads = "", []
        while not workloads:
            fault = self.rng.choice(list(FAULTS))
            workloads = [each for each in self.workloads if fault in faults_of(each.name)]
        weights = [WEIGHTS[each.name] for each in workloads]
        (workload,) = self.rng.choices(workloads, weights)
        shutil.rmtree(workload.directory, ignore_errors=True)
        said: list[str] = []
        with self._limited(HUNG_SEC + 20 * workload.seconds) as hung:
            try:
                damaged = FAULTS[fault](self, workload, said)
                outcome, detail = self._outcome(workload, damaged, said)
            except SurpriseError as error:
                outcome, detail = FAULT, str(error)
        if hung:
            outcome = HUNG
        return {
            "number": number,
            "fault": fault,
            "workload": workload.name,
            "outcome": outcome,
            "detail": detail,
            "seconds": round(time.monotonic() - began, 1),
            "said": "" if outcome in (SAME, AT_REST) else "\n".join(said)[-4000:],
        }

    def launch(self, workload: Workload, said: list[str], **how: object) -> Ended:
        """Run the command to its end with a fault of `fork_helpers`."""
        return self.ended(self.start(workload, **how), said)

    def start(self, workload: Workload, **how: object) -> fork_helpers.Process:
        process = self._server.start(workload.words, **workload.how, **how)
        self._started.append(process)
        return process

    def ended(self, process: fork_helpers.Process, said: list[str]) -> Ended:
        ended = process.wait()
        self._started.remove(process)
        said.append(f"--- status {ended.status}\n{ended.said[-3000:]}")
        return ended

    @contextlib.contextmanager
    def _limited(self, seconds: float) -> Iterator[list[int]]:
        """Kill what runs longer than a trial may; the list then holds its process ids."""
        hung: list[int] = []

        def kill() -> None:
            for process in self._started:
                hung.append(process.pid)
                process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield hung
        finally:
            timer.cancel()

    def _outcome(
        self, workload: Workload, damaged: Path | None, said: list[str]
    ) -> tuple[str, str]:
        status, left = 0, 3.0
        while left > 0:
            status = self.launch(workload, said).status
            if status in (0, errors.EXIT_USER_ERROR):
                break
            # A launcher that was killed has left processes that own the directory for a while.
            time.sleep(status == errors.EXIT_IN_USE)
            left -= 0.05 if status == errors.EXIT_IN_USE else 1
        # A conversion that had ended when the fault came refuses to write over what it wrote.
        if status != 0 and CONVERTED not in said[-1]:
            words = said[-1].splitlines()
            spoken = any(line.startswith("promot-t5x: error: ") for line in words)
            refused = spoken and status in DOCUMENTED and "Traceback" not in said[-1]
            outcome = (STUCK if damaged is None else REFUSED) if refused else FAULT
            return outcome, f"status {status}: {words[-1][:300]}"
        missing, different = workload.compared()
        if not missing and not different:
            return SAME, ""
        if damaged is not None:
            name = str(damaged.relative_to(workload.directory))
            rest = [n for n in (*missing, *different) if not name.startswith(n.rstrip("/"))]
            if not rest:
                return AT_REST, name
        if missing:
            return LOST, ", ".join(missing[:5])
        return DIFFERENT, ", ".join(different[:5])


INFER = run_helpers.SETTINGS.replace("MIXTURE_OR_TASK_NAME = 'run_signs'\n", "").replace(
    f"MIXTURE_OR_TASK_MODULE = '{run_helpers.TASKS}'\n", ""
)
Fault = Callable[[Trials, Workload, list[str]], Path | None]


def _signaled(number: int, trials: Trials, workload: Workload, said: list[str]) -> None:
    process = trials.start(workload)
    time.sleep(trials.rng.uniform(0, workload.seconds))
    pids = [process.pid]
    if "JAX_PROCESS_ID=1" in process.said:  # a launcher, which has started its processes
        pids += process.children[:2]
    pid = trials.rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(trials.rng.uniform(0.1, 1.0))
            os.kill(pid, signal.SIGCONT)
    trials.ended(process, said)


def _failing_call(kind: str, trials: Trials, workload: Workload, said: list[str]) -> None:
    nth = int(MOST_CALLS ** trials.rng.uniform(0, 1))
    trials.launch(workload, said, fault=[kind, nth, str(workload.directory)])


def _clock_set_back(trials: Trials, workload: Workload, said: list[str]) -> None:
    _signaled(signal.SIGKILL, trials, workload, said)
    trials.launch(workload, said, fault=["clock", 86_400, str(workload.directory)])


def _bucket_trouble(kind: str, trials: Trials, workload: Workload, said: list[str]) -> None:
    trials.trouble.begin(kind, trials.rng.randint(1, MOST_REQUESTS), trials.rng.randint(1, 6))
    trials.launch(workload, said)
    trials.trouble.begin(None, 0, 0)


def _spoiled_step(kind: str, trials: Trials, workload: Workload, said: list[str]) -> None:
    trials.launch(workload, said, step_fault=[kind, trials.rng.randint(1, STEPS)])


def _damaged(how: str, trials: Trials, workload: Workload, said: list[str]) -> Path | None:
    """Kill a run, or let it end, and flip a byte of one of its files or cut it."""
    if trials.rng.random() < 0.8:
        _signaled(signal.SIGKILL, trials, workload, said)
    else:
        trials.launch(workload, said)
    files = [p for p in sorted(workload.directory.rglob("*")) if p.is_file() and p.stat().st_size]
    if not files:
        return None
    chosen = trials.rng.choice(files)
    content = bytearray(chosen.read_bytes())
    place = trials.rng.randrange(len(content))
    if how == "cut":
        content = content[:place]
    else:
        content[place] ^= 1 << trials.rng.randrange(8)
    chosen.write_bytes(content)
    said.append(f"--- {how} {chosen} at {place} of {len(content)}")
    return chosen


def _second_run(trials: Trials, workload: Workload, said: list[str]) -> None:
    first = trials.start(workload)
    time.sleep(trials.rng.uniform(0, workload.seconds))
    second = trials.start(workload)
    trials.ended(first, said)
    other = trials.ended(second, said)
    if other.status not in (0, errors.EXIT_IN_USE) and CONVERTED not in other.said:
        raise SurpriseError(f"the second run ended with status {other.status}")


FAULTS: dict[str, Fault] = {
    **{name: functools.partial(_signaled, signal.Signals[name]) for name in SIGNALS},
    **{
        kind: functools.partial(_failing_call, kind)
        for kind in ("write_eio", "write_short", "sync_eio", "read_eio", "disk_full", "read_only")
    },
    "clock set back": _clock_set_back,
    "nan": functools.partial(_spoiled_step, "nan"),
    "memory": functools.partial(_spoiled_step, "memory"),
    "flipped bit": functools.partial(_damaged, "flip"),
    "cut file": functools.partial(_damaged, "cut"),
    "second run": _second_run,
    **{kind: functools.partial(_bucket_trouble, kind) for kind in BUCKET_TROUBLE},
}
# The dearest least often.
WEIGHTS = {"promot": 2, "train": 6, "bucket": 2, "local": 1, "eval": 4, "infer": 6, "convert": 8}


def faults_of(name: str) -> list[str]:
    """Those that a workload can meet; the files of a bucket are its server's."""
    never = () if name in ("promot", "train", "bucket", "local") else ("nan", "memory")
    if name == "bucket":
        return [*SIGNALS, *BUCKET_TROUBLE, "nan", "memory", "second run"]
    return [fault for fault in FAULTS if fault not in (*never, *BUCKET_TROUBLE)]


def table(results: list[dict[str, object]]) -> str:
    """Faults by outcomes, in Markdown."""
    counts = collections.Counter((r["fault"], r["outcome"]) for r in results)
    lines = [
        "| fault | trials | " + " | ".join(OUTCOMES) + " |",
        "|---" * (len(OUTCOMES) + 2) + "|",
    ]
    for fault in [*FAULTS, "all"]:
        row = [
            sum(n for (f, o), n in counts.items() if fault in (f, "all") and o == outcome)
            for outcome in OUTCOMES
        ]
        lines.append(f"| {fault} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time")
    parser.add_argument(
        "--log", type=Path, help="a line of JSON for each trial; those in it are not made again"
    )
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    began = time.monotonic()
    results: list[dict[str, object]] = []
    if arguments.log and arguments.log.exists():
        results += map(json.loads, arguments.log.read_text().splitlines())
    done = {result["number"] for result in results}
    left = [number for number in range(arguments.trials) if number not in done]

    def job(numbers: Sequence[int]) -> None:
        with (
            tempfile.TemporaryDirectory() as directory,
            Trials(Path(directory), str(arguments.seed), WEIGHTS) as trials,
        ):
            for number in numbers:
                report(trials.run(number))

    def report(result: dict[str, object]) -> None:
        results.append(result)
        if arguments.log:
            with arguments.log.open("a") as log:
                log.write(json.dumps(result) + "\n")
        if result["outcome"] in UNWANTED:
            print({key: value for key, value in result.items() if key != "said"})
        made = len(results) - len(done)
        if made % 20 == 0:
            rest = (time.monotonic() - began) / made * (len(left) - made)
            print(f"{len(results)}/{arguments.trials}  {duration(rest)} left", flush=True)

    shares = [left[n :: arguments.jobs] for n in range(min(arguments.jobs, len(left)))]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(job, shares))
    print(table(results))
    took = duration(sum(result["seconds"] for result in results) / arguments.jobs)
    print(f"{len(results):,} trials, seed {arguments.seed}, {took} in {arguments.jobs} at a time")
    return int(any(result["outcome"] in UNWANTED for result in results))


if __name__ == "__main__":
    sys.exit(main())
