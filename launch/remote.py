"""A run on a machine that one reaches by ssh: the scripts that install, start and follow it.

All of them lie in one directory of the worker's home, with the package, its environment and the
run's log, so that what is typed on a command line is a file's name and nothing to be quoted twice.
"""

import dataclasses
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from promot_t5x.launch.commands import HIDDEN
from promot_t5x.launch.package import CONSTRAINTS

_DIGITS = 16  # of a command's digest

_INSTALL = """\
#!/bin/bash
# Installs the package beside this file, in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "$0")"
chmod 600 environment
if [ ! -x venv/bin/python ]; then
  python=$(command -v python3.13 || command -v python3.12 || command -v python3.11 || true)
  if [ -z "$python" ] || ! "$python" -m venv venv 2> /dev/null; then
    rm -rf venv
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 venv
  fi
fi
constraints=(); if [ -f {constraints} ]; then constraints=(--constraint {constraints}); fi
venv/bin/python -m pip install --quiet --force-reinstall --no-deps {wheel}
venv/bin/python -m pip install --quiet "${{constraints[@]}}" '{wheel}[tpu]'
venv/bin/promot-t5x --version
"""

_START = """\
#!/bin/bash
# Starts the run in the background, after ending what is left of an earlier start.
cd "$(dirname "$0")" || exit 1
if [ -f pid ]; then
  kill -TERM -- "-$(cat pid)" 2> /dev/null
  for _ in $(seq 30); do kill -0 -- "-$(cat pid)" 2> /dev/null || break; sleep 1; done
  kill -KILL -- "-$(cat pid)" 2> /dev/null
fi
rm -f status log
setsid nohup bash run.sh > log 2>&1 < /dev/null &
echo $! > pid
"""

_RUN = """\
#!/bin/bash
cd "$(dirname "$0")" || exit 1
set -a; . ./environment; set +a
mkdir -p files && cd files || exit 1
{command}
echo $? > ../status.part
mv ../status.part ../status
"""

_REPORT = """\
#!/bin/bash
# Says how the run is: "running", with the seconds since its last line and a digest of its command;
# "ended", with its status; or "absent".
cd "$(dirname "$0")" || exit 1
if [ -f pid ] && kill -0 -- "-$(cat pid)" 2> /dev/null; then
  echo "running $(( $(date +%s) - $(stat -c %Y log) )) $(sha256sum < run.sh | cut -c 1-{digits})"
elif [ -f status ]; then
  echo "ended $(cat status)"
else
  echo "absent"
fi
"""

_FOLLOW = """\
#!/bin/bash
# Shows the log from a line on until the run ends, and ends with its status.
cd "$(dirname "$0")" || exit 1
tail -n "+$1" --pid="$(cat pid)" -F log
exit "$(cat status 2> /dev/null || echo 1)"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What the workers say of a run; every list is of those that have answered.

    **Attributes:**

    - `quiet_seconds`: of the workers where it is running, the seconds since its last line.
    - `statuses`: of the workers where it has ended, the exit statuses.
    - `absent`: the number of workers where it is neither.
    - `digests`: of the commands that are running.
    """

    quiet_seconds: tuple[int, ...]
    digests: frozenset[str]
    statuses: tuple[int, ...]
    absent: int

    @classmethod
    def parse(cls, text: str) -> "Report | None":
        """Read the answers of `Run.report`; None where there is none."""
        running = re.findall(r"^running (-?\d+) (\w+)$", text, re.MULTILINE)
        ended = tuple(int(each) for each in re.findall(r"^ended (\d+)$", text, re.MULTILINE))
        absent = len(re.findall(r"^absent$", text, re.MULTILINE))
        if not running and not ended and not absent:
            return None
        return cls(
            quiet_seconds=tuple(int(seconds) for seconds, _ in running),
            digests=frozenset(digest for _, digest in running),
            statuses=ended,
            absent=absent,
        )


class Run:
    """A run's directory on the workers, the files in it, and the commands that use them.

    **Arguments:**

    - `name`: the name of the run.
    - `words`: what follows `promot-t5x` on every worker.
    - `environment`: variables to set; they are in a file of their own, and in no command.
    - `local_files`: relative name -> file, copied below the run's working directory.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[str],
        environment: Mapping[str, str],
        local_files: Mapping[str, Path],
    ):
        self.directory = f"promot-t5x-{name}"
        self.local_files = {f"files/{name}": path for name, path in local_files.items()}
        self._environment = dict(environment)
        self.install = f"bash {self.directory}/install.sh"
        self.start = f"bash {self.directory}/start.sh"
        script = f"{self.directory}/report.sh"
        self.report = f"if [ -f {script} ]; then bash {script}; else echo absent; fi"
        self._script = _RUN.format(command=shlex.join(["../venv/bin/promot-t5x", *words]))
        self.digest = hashlib.sha256(self._script.encode()).hexdigest()[:_DIGITS]

    def follow(self, seen: int) -> str:
        """Show the log after the lines already seen."""
        return f"bash {self.directory}/follow.sh {seen + 1}"

    def files(self, wheel: str) -> dict[str, str]:
        """Return the directory's files by name."""
        environment = "".join(
            f"{name}={shlex.quote(value)}\n" for name, value in self._environment.items()
        )
        return {
            "environment": environment,
            "install.sh": _INSTALL.format(wheel=wheel, constraints=CONSTRAINTS),
            "start.sh": _START,
            "run.sh": self._script,
            "report.sh": _REPORT.replace("{digits}", str(_DIGITS)),
            "follow.sh": _FOLLOW,
        }

    def hidden(self, name: str, text: str) -> str:
        """Return a file as it may be shown: of the environment, names only."""
        if name != "environment":
            return text
        return "".join(f"{variable}={HIDDEN}\n" for variable in self._environment)
