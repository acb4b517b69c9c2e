"""A trace of some training steps, as TensorBoard and XProf open it: `--profile START:STOP`."""

import re
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from promot_t5x.errors import UserError

_asked: range | None = None


def ask(steps: str | None) -> None:
    """Take the flag's value for the stages that this process will train; none ends profiling.

    **Raises:** `UserError` unless it names a first and a last step, as in `20:24`.
    """
    global _asked
    if steps is None:
        _asked = None
        return
    found = re.fullmatch(r"(\d+):(\d+)", steps)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(
            f"--profile={steps!r} must be START:STOP, the first and the last step of each stage to "
            "trace, counted from 1, as in --profile=20:24."
        )
    _asked = range(int(found[1]), int(found[2]) + 1)


class Profile:
    """Traces the steps of one stage that `ask` has named.

    **Arguments:**

    - `directory`: of the stage; the trace goes to `train/plugins/profile/`, where TensorBoard
      finds it beside the stage's scalars.
    - `report`: prints a line.
    """

    def __init__(self, directory: epath.Path, report: Callable[[str], None]):
        self._directory, self._report = directory / "train", report
        self._steps = _asked
        self._first = self._last = 0

    def step(self, number: int, take: Callable[[], Any]) -> Any:
        """Take a step and return what came of it; trace it if it was asked for."""
        if self._steps is None or number not in self._steps:
            return take()
        if not self._first:
            jax.profiler.start_trace(str(self._directory))
            self._first = number
        self._last = number
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            result = take()
        if number == self._steps[-1]:
            jax.block_until_ready(result)
            self.close()
        return result

    def close(self) -> None:
        """Write the trace of the steps so far, or say that there is none."""
        if self._steps is None:
            return
        asked, self._steps = f"{self._steps[0]}:{self._steps[-1]}", None
        if not self._first:
            self._report(f"profile: this launch takes no step of {asked}; there is no trace")
            return
        jax.profiler.stop_trace()
        self._report(
            f"profile: steps {self._first} to {self._last} are in {self._directory}; "
            f"`tensorboard --logdir {self._directory}` shows them (pip install xprof)"
        )
