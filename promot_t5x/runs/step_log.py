"""The numbers of every training step: fetched now and then, written, and shown on one line."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from promot_t5x.data.batches import counts, statistics
from promot_t5x.progress import Progress, here
from promot_t5x.runs.metric_writer import MetricWriter

FETCH_PERIOD = 10  # steps; a fetch waits for the device, so it is not made every step

_counts = jax.jit(counts)


class StepLog:
    """Collects the metrics of steps without making the device wait for the host."""

    def __init__(self, label: str, directory: epath.Path, start: int, total: int):
        """**Arguments:**

        - `directory`: gets `train/` with TensorBoard events and JSON lines, from process 0.
        - `start`: the step that training continues after.
        - `total`: the last step.
        """
        leads = jax.process_index() == 0
        self._writer = MetricWriter(directory / "train", start) if leads else None
        self._label = f"[{label}] step"
        self._progress = Progress(self._label, total, start)
        # (step, metrics, counts of its batch), the arrays still on the device
        self._pending: list[tuple[int, Mapping[str, Any], Mapping[str, Any]]] = []
        self._shapes: dict[str, Any] = {}  # of a batch
        self._fetched = time.monotonic()
        self._loss: float | None = None

    def add(self, step: int, metrics: Mapping[str, Any], batch: Mapping[str, Any]) -> None:
        """Take in one step's metrics and its whole batch, both still on the devices."""
        here(f"{self._label} {step}")
        self._shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in batch.items()}
        self._pending.append((step, metrics, _counts(batch)))
        if len(self._pending) == FETCH_PERIOD:
            self.fetch()

    def fetch(self) -> None:
        """Write everything pending.

        **Raises** `FloatingPointError` if a loss is not finite, naming the step.
        """
        if not self._pending:
            return
        fetched = jax.device_get(self._pending)
        rows = [(step, m, statistics(self._shapes, counted)) for step, m, counted in fetched]
        now = time.monotonic()
        elapsed = now - self._fetched
        self._fetched = now
        sides = ("real_tokens/encoder", "real_tokens/decoder")
        tokens = sum(full[side] for _, _, full in rows for side in sides)
        for step, metrics, full in rows:
            scalars = {name: float(value) for name, value in metrics.items()}
            if self._writer:
                self._writer.write(step, {**scalars, **full})
            if not math.isfinite(scalars["loss"]):
                raise FloatingPointError(
                    f"The loss of step {step} is {scalars['loss']}; the last checkpoint is intact. "
                    "Lower the learning rate, or use float32 activations."
                )
            loss = scalars["loss_per_nonpadding_target_token"]
            # A short memory makes the shown loss steady; the files hold every step's own.
            self._loss = loss if self._loss is None else 0.9 * self._loss + 0.1 * loss
        step = self._pending[-1][0]
        timing = {
            "steps_per_second": len(self._pending) / elapsed,
            "real_tokens_per_second": tokens / elapsed,
        }
        if self._writer:
            self._writer.write_timing(step, timing)
        self._progress.update(step, f"loss {self._loss:.4f}  {tokens / elapsed:,.0f} real tokens/s")
        self._pending.clear()

    def pause(self) -> None:
        """End the live line and stop the clock, while something else has the floor."""
        self.fetch()
        if self._writer:
            self._writer.flush()
        self._progress.close()

    def resume(self) -> None:
        """Start the clock again."""
        self._fetched = time.monotonic()

    def close(self) -> None:
        self._progress.close()
        if self._writer:
            self._writer.close()
