"""A run on a machine that one reaches by ssh: the scripts that install, start and follow it.

All of them lie in one directory of the worker's home, with the package, its environment and the
run's log, so that what is typed on a command line is a file's name and nothing to be quoted twice.
"""

import shlex
from collections.abc import Mapping, Sequence

from promot_t5x.launch.commands import HIDDEN
from promot_t5x.launch.package import CONSTRAINTS

_INSTALL = """\
#!/bin/bash
# Installs the package beside this file, in a virtual environment of its own.
set -euo pipefail
cd "$(dirname "$0")"
chmod 600 environment
if [ ! -x venv/bin/python ]; then
  python=$(command -v python3.12 || command -v python3.11 || true)
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
cd "$HOME" || exit 1
{command}
echo $? > {directory}/status.part
mv {directory}/status.part {directory}/status
"""

_FOLLOW = """\
#!/bin/bash
# Shows the log from a line on until the run ends, and ends with its status.
cd "$(dirname "$0")" || exit 1
tail -n "+$1" --pid="$(cat pid)" -F log
exit "$(cat status 2> /dev/null || echo 1)"
"""


class Run:
    """A run's directory on the workers, the files in it, and the commands that use them.

    **Arguments:**

    - `name`: of the run.
    - `words`: what follows `promot-t5x` on every worker.
    - `environment`: variables to set; they are in a file of their own, and in no command.
    """

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str]):
        self.directory = f"promot-t5x-{name}"
        self._words, self._environment = list(words), dict(environment)
        self.install = f"bash {self.directory}/install.sh"
        self.start = f"bash {self.directory}/start.sh"
        self.status = f"cat {self.directory}/status 2> /dev/null"
        self.alive = f'kill -0 -- "-$(cat {self.directory}/pid)" 2> /dev/null'

    def follow(self, seen: int) -> str:
        """Show the log after the lines already seen."""
        return f"bash {self.directory}/follow.sh {seen + 1}"

    def files(self, wheel: str) -> dict[str, str]:
        """The directory's files by name."""
        environment = "".join(
            f"{name}={shlex.quote(value)}\n" for name, value in self._environment.items()
        )
        command = shlex.join([f"{self.directory}/venv/bin/promot-t5x", *self._words])
        return {
            "environment": environment,
            "install.sh": _INSTALL.format(wheel=wheel, constraints=CONSTRAINTS),
            "start.sh": _START,
            "run.sh": _RUN.format(command=command, directory=self.directory),
            "follow.sh": _FOLLOW,
        }

    def hidden(self, name: str, text: str) -> str:
        """A file as it may be shown: of the environment, names only."""
        if name != "environment":
            return text
        return "".join(f"{variable}={HIDDEN}\n" for variable in self._environment)
