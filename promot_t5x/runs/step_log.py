"""The numbers of every training step: fetched now and then, written, and shown on one line."""

import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from promot_t5x.data.batches import counts, statistics
from promot_t5x.distributed import processes
from promot_t5x.progress import Progress, here
from promot_t5x.runs import goodput
from promot_t5x.runs.metric_writer import MetricWriter
from promot_t5x.runs.non_finite import NonFiniteSteps
from promot_t5x.training.step import Finite

FETCH_PERIOD = 10  # steps; a fetch waits for the device, so it is not made every step

_counts = jax.jit(counts)


class StepLog:
    """Collects the metrics of steps without making the device wait for the host.

    **Arguments:**

    - `label`: what the lines start with, such as `[stage_one]`.
    - `directory`: gets `train/` with TensorBoard events and JSON lines, from the primary process.
    - `start`: the step that training continues after.
    - `total`: the last step.
    - `non_finite`: judges each step's `Finite`.
    """

    def __init__(
        self,
        label: str,
        directory: epath.Path,
        start: int,
        total: int,
        non_finite: NonFiniteSteps,
    ):
        self._writer = MetricWriter(directory / "train", start) if processes.is_primary() else None
        self._label = f"{label} step"
        self._step = start
        self._non_finite = non_finite
        self._progress = Progress(self._label, total, start)
        # (step, metrics, whether they are finite, counts of its batch), still on the device
        self._pending: list[tuple[int, Mapping[str, Any], Finite, Mapping[str, Any]]] = []
        self._shapes: list[Mapping[str, Any]] = []  # of their batches
        self._fetched = time.monotonic()
        self._loss: float | None = None

    def add(
        self, step: int, metrics: Mapping[str, Any], finite: Finite, batch: Mapping[str, Any]
    ) -> None:
        """Take in what a step returned and its whole batch, all still on the devices."""
        self._step = step
        here(f"{self._label} {step}")
        self._shapes.append({n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.items()})
        self._pending.append((step, metrics, finite, _counts(batch)))
        if len(self._pending) == FETCH_PERIOD:
            self.fetch()

    def fetch(self) -> None:
        """Write everything pending.

        **Raises:** `NonFiniteError` at a step that is not finite and was not skipped; its row is
        the last one written.
        """
        if not self._pending:
            return
        fetched = jax.device_get(self._pending)
        rows = [
            (step, m, f, statistics(shapes, counted))
            for (step, m, f, counted), shapes in zip(fetched, self._shapes, strict=True)
        ]
        now = time.monotonic()
        elapsed = now - self._fetched
        self._fetched = now
        sides = ("real_tokens/encoder", "real_tokens/decoder")
        tokens = sum(full[side] for *_, full in rows for side in sides)
        for step, metrics, finite, full in rows:
            scalars = {name: float(value) for name, value in metrics.items()}
            self._take(step, {**scalars, **full}, finite)
        step = self._pending[-1][0]
        timing = {
            "steps_per_second": len(self._pending) / elapsed,
            "real_tokens_per_second": tokens / elapsed,
            **{f"share/{name}": share for name, share in goodput.current().shares().items()},
        }
        if self._writer:
            self._writer.write_timing(step, timing)
        loss = "–" if self._loss is None else f"{self._loss:.4f}"
        self._progress.update(step, f"loss {loss}  {tokens / elapsed:,.0f} real tokens/s")
        self._pending.clear()
        self._shapes.clear()

    def _take(self, step: int, row: Mapping[str, float], finite: Finite) -> None:
        skipped: Mapping[str, float] = {}
        try:
            skipped = self._non_finite.check(step, row, finite)
        finally:
            if self._writer:
                self._writer.write(step, {**row, **skipped})
        if finite.loss:
            # A short memory makes the shown loss steady; the files hold every step's own.
            loss = row["loss"]
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss

    def pause(self) -> None:
        """End the live line and stop the clock, while something else runs."""
        self.fetch()
        if self._writer:
            self._writer.flush()
        self._progress.close()
        here(f"{self._label} {self._step}, saving or evaluating")

    def resume(self) -> None:
        """Start the clock again."""
        self._fetched = time.monotonic()

    def close(self) -> None:
        """End the live line and close the files."""
        self._progress.close()
        if self._writer:
            self._writer.close()
