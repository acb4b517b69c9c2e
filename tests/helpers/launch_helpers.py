"""Fake clouds: programs named as real ones on PATH, which record their calls and fail on cue.

The fake gcloud gives every worker a home directory and runs there, in a real shell, what is sent by
ssh; the package that the workers have is a program that records its arguments and does as it is
told.
"""

import contextlib
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from promot_t5x.cli import main
from promot_t5x.tasks import registry
from promot_t5x.tasks.sources import Files

# A "#!" line would break at a space in Python's path, and where it is long.
_PYTHON = """\
#!/bin/bash
exec {python} -IS {script} "$@"
"""

_GCLOUD = """\
import json, os, shutil, subprocess, sys
lab = os.environ["LAUNCH_LAB"]
words = sys.argv[1:]
with open(lab + "/calls", "a") as file:
    file.write(json.dumps(["gcloud", *words]) + "\\n")

def next_of(name, default):
    path = f"{lab}/{name}"
    left = json.load(open(path)) if os.path.exists(path) else [default]
    if len(left) > 1:
        json.dump(left[1:], open(path, "w"))
    return left[0]

flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
kind, verb, name = words[2:5]
workers = [0, 1] if flags.get("--worker") == "all" else [0]
homes = [f"{lab}/home/{name.rstrip(':')}/{worker}" for worker in workers]
if verb == "describe":
    state = next_of("states", "ACTIVE")
    if not state:
        sys.exit("NOT_FOUND")
    if state.startswith("error:"):
        sys.exit(state)
    print(state)
elif verb in ("create", "delete"):
    sys.exit(next_of(verb, 0))
elif verb == "scp":
    source = words[5]
    for home in [f"{lab}/home/{words[6].rstrip(':')}/{worker}" for worker in (0, 1)]:
        shutil.copytree(source, f"{home}/{os.path.basename(source)}", dirs_exist_ok=True)
        venv = f"{home}/{os.path.basename(source)}/venv/bin"
        os.makedirs(venv, exist_ok=True)
        for program in ("python", "promot-t5x"):
            shutil.copy(f"{lab}/{program}", venv)
elif verb == "ssh":
    command = flags["--command"]
    broken, status = next_of("follow", 0) if "follow.sh" in command else 0, 255
    if isinstance(broken, list):
        broken, status = broken
    if "report.sh" in command and (failure := next_of("report", 0)):
        sys.exit(failure)
    for worker, home in zip(workers, homes):
        os.makedirs(home, exist_ok=True)
        environ = {**os.environ, "HOME": home, "WORKER": str(worker)}
        run = subprocess.run(["bash", "-c", flags["--command"]], env=environ, cwd=home,
                             stdout=subprocess.PIPE if broken else None)
        if broken:
            # The connection breaks after so many lines.
            lines = run.stdout.splitlines(keepends=True)
            sys.stdout.buffer.write(b"".join(lines[:broken]))
            sys.exit(status)
        if run.returncode:
            sys.exit(run.returncode)
"""

# What a worker has instead of the package: notes how it was called, and obeys its cue.
_PACKAGE = """\
import json, os, sys, time
lab = os.environ["LAUNCH_LAB"]
me = os.environ.get("WORKER", os.environ.get("SLURM_PROCID", "0"))
if sys.argv[1:] == ["--version"]:
    sys.exit()
with open(f"{lab}/ran", "a") as file:
    files = sorted(os.path.join(d, f)[2:] for d, _, names in os.walk(".") for f in names)
    note = {"worker": me, "words": sys.argv[1:], "token": os.environ.get("HF_TOKEN")}
    if os.environ.get("WORKER"):
        note["files"] = files
    file.write(json.dumps(note) + "\\n")
path = f"{lab}/cues.{me}"
cues = json.load(open(path)) if os.path.exists(path) else [0]
json.dump(cues[1:] or cues, open(path, "w"))
for number in range(3):
    print(f"line {number} of worker {me} {os.environ.get('HF_TOKEN', '')}", flush=True)
if cues[0] == "stuck":
    time.sleep(60)
sys.exit(cues[0])
"""

_KUBECTL = """\
import json, os, sys
lab = os.environ["LAUNCH_LAB"]
with open(lab + "/calls", "a") as file:
    file.write(json.dumps(["kubectl", *sys.argv[1:]]) + "\\n")
if sys.argv[1] == "apply":
    open(lab + "/manifest", "w").write(sys.stdin.read())
    sys.exit(int(os.environ.get("APPLY", "0")))
if sys.argv[1] == "logs":
    print("a line of the log")
if sys.argv[1] == "get":
    left = json.load(open(lab + "/conditions"))
    json.dump(left[1:] or left, open(lab + "/conditions", "w"))
    if left[0].startswith("error:"):
        sys.exit(left[0])
    print("conditions", left[0])
if sys.argv[1] == "delete":
    sys.exit(int(os.environ.get("DELETE", "0")))
"""

_SBATCH = """\
import os, sys
open(os.environ["LAUNCH_LAB"] + "/script", "w").write(sys.stdin.read())
print(4711)
"""
_SRUN = """\
#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
SLURM_PROCID=0 "$@"
"""
_SCONTROL = '#!/bin/bash\necho "$*" >> "$LAUNCH_LAB/requeued"\n'


class Launched(NamedTuple):
    """What the launcher printed, and its exit status."""

    status: int
    out: str
    err: str


class Cloud:
    """The fakes, what they have recorded, and what they shall do."""

    def __init__(self, directory: Path, monkeypatch):
        self.directory = directory
        # A launcher's process has no tasks of other files' tests, whose data would not travel.
        shipped = {
            name: each
            for name, each in registry._definitions().items()
            if not isinstance(getattr(each, "source", None), Files)
        }
        monkeypatch.setattr(registry, "_DEFINITIONS", shipped)
        (directory / "bin").mkdir()
        programs = {"gcloud": _GCLOUD, "kubectl": _KUBECTL, "sbatch": _SBATCH}
        programs |= {"srun": _SRUN, "scontrol": _SCONTROL}
        for name, text in programs.items():
            self._program(f"bin/{name}", text)
        self._program("promot-t5x", _PACKAGE)
        self._program("python", "#!/bin/bash\nexit 0\n")
        monkeypatch.setenv("PATH", f"{directory}/bin{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("LAUNCH_LAB", str(directory))

    def _program(self, name: str, text: str) -> None:
        path = self.directory / name
        if not text.startswith("#!"):
            script = path.with_name(f"{path.name}.py")
            script.write_text(text)
            words = {"python": sys.executable, "script": str(script)}
            text = _PYTHON.format(**{key: shlex.quote(word) for key, word in words.items()})
        path.write_text(text)
        path.chmod(0o755)
        if not os.access(path, os.X_OK):
            pytest.skip(f"programs cannot be started from {path.parent}: it is mounted noexec")

    def cue(self, **lists: Sequence) -> None:
        """What the fakes do, each in turn, the last one for ever.

        **Arguments:**

        - `states`: of the resource; '' for none, `error: …` for a failure.
        - `create`, `delete`: exit statuses, or messages of failures.
        - `follow`: lines after which the connection breaks, or [lines, gcloud's status then].
        - `report`: gcloud's status where the workers are asked how the run is.
        - `conditions`: of a JobSet; `error: (NotFound)` for none.
        - `worker_<i>`: exit statuses of the package.
        """
        for name, values in lists.items():
            (self.directory / name.replace("worker_", "cues.")).write_text(json.dumps(list(values)))

    def calls(self) -> list[list[str]]:
        """The calls of the fakes, in order."""
        return self._noted("calls")

    def verbs(self) -> list[str]:
        """The same in short: what gcloud was asked to do, of ssh which script it ran."""
        found = []
        for words in self.calls():
            script = re.search(r"(\w+)\.sh", words[-1])
            found.append(script[1] if words[4] == "ssh" and script else words[4])
        return [verb for verb in found if verb != "describe"]

    def ran(self) -> list[dict]:
        """How the package was called on the workers."""
        return self._noted("ran")

    def _noted(self, name: str) -> list:
        path = self.directory / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def launch(*words: str) -> Launched:
    """`promot-t5x launch …` in this process, the output of what it starts included."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main.main(["launch", *words])
    return Launched(status, out.getvalue(), err.getvalue())
