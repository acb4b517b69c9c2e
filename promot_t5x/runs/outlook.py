"""How long the whole run will take: what is left of all its stages and of its comparison.

A step of a stage that has not begun is taken to last as long as those of the stages so far, their
evaluations included; a row of the comparison as long as the rows so far. Before the first row it is
the time of a validation, which asks less: then the line says "at least".
"""

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping

from promot_t5x import progress
from promot_t5x.progress import duration
from promot_t5x.runs import goodput


class Outlook:
    """The parts of a run, and how fast those went that are done.

    **Arguments:**

    - `steps`: training steps of each stage that is not finished, by its directory.
    - `rows`: directories of the rows of the comparison that are still to be evaluated.
    """

    def __init__(self, steps: Mapping[str, int], rows: Collection[str]):
        self._steps, self._rows = dict(steps), set(rows)
        self._step_seconds = self._row_seconds = 0.0
        self._trained = self._evaluated = 0
        self._stage, self._done, self._began = "", 0, time.monotonic()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Let the lines of progress of the block end with the time left of the run."""
        progress.foresee(self.line)
        try:
            yield
        finally:
            progress.foresee(str)

    @contextlib.contextmanager
    def training(self, stage: str) -> Iterator[None]:
        """Train a stage in the block."""
        self._stage, self._done, self._began = stage, 0, time.monotonic()
        try:
            yield
        finally:
            self._step_seconds += self._since() if self._done else 0.0
            self._trained += self._done
            self._steps.pop(stage, None)
            self._stage, self._done = "", 0

    def begin(self, start: int) -> None:
        """Say that the stage under way goes on after this step, once all is compiled."""
        self._began, self._done = time.monotonic(), 0
        if self._stage in self._steps:
            self._steps[self._stage] -= start

    def step(self) -> None:
        """Count a step of the stage under way."""
        self._done += 1

    @contextlib.contextmanager
    def evaluating(self, row: str) -> Iterator[None]:
        """Evaluate a row of the comparison in the block."""
        self._began = time.monotonic()
        yield
        if row in self._rows:
            self._rows.remove(row)
            self._row_seconds += self._since()
            self._evaluated += 1

    def line(self) -> str:
        """Return what is known of the time left: `run 1h02m left`, or an empty text."""
        seconds, exact = 0.0, True
        if steps := sum(self._steps.values()) - self._done:
            trained = self._trained + self._done
            if not trained:
                return ""
            spent = self._step_seconds + (self._since() if self._stage else 0.0)
            seconds += steps * spent / trained
        if self._rows:
            of_row, exact = self._seconds_of_a_row()
            seconds += len(self._rows) * of_row
            if not self._stage and exact:
                seconds -= min(self._since(), of_row)
        if not (self._steps or self._rows):
            return ""
        return f"run {'' if exact else 'at least '}{duration(seconds)} left"

    def _seconds_of_a_row(self) -> tuple[float, bool]:
        """Return how long a row takes, and whether that was measured."""
        if self._evaluated:
            return self._row_seconds / self._evaluated, True
        account = goodput.current()
        measured = account.spans[goodput.EVALUATION]
        return account.seconds[goodput.EVALUATION] / max(measured, 1), False

    def _since(self) -> float:
        return time.monotonic() - self._began
