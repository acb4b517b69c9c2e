"""Metrics of a run as TensorBoard events (T5X's tags) and as JSON lines.

`<directory>/metrics.jsonl` holds one object a step with the numbers that training determines,
so that a resumed run leaves the same bytes as one that was never stopped; wall-clock timings go
to `<directory>/timing.jsonl` and to TensorBoard.
"""

from collections.abc import Mapping

from etils import epath

from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.files import append_json_line, keep_until


class MetricWriter:
    """Writes one directory of metrics, continuing after `start_step`."""

    def __init__(self, directory: epath.Path, start_step: int = 0):
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = directory / "metrics.jsonl"
        self._timing = directory / "timing.jsonl"
        for path in (self._metrics, self._timing):
            keep_until(path, start_step)
        self._tf = import_tensorflow()
        self._events = self._tf.summary.create_file_writer(str(directory))
        self._scalar = self._tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers that are a function of the run's configuration."""
        append_json_line(self._metrics, {"step": step, **metrics})
        self._write_events(step, metrics)

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        """Record wall-clock numbers, tagged `timing/…`."""
        append_json_line(self._timing, {"step": step, **timing})
        self._write_events(step, {f"timing/{name}": value for name, value in timing.items()})

    def _write_events(self, step: int, scalars: Mapping[str, float]) -> None:
        with self._events.as_default():
            for tag, value in scalars.items():
                # `tf.summary.scalar` wants TensorBoard installed; this writes what it writes.
                tensor = self._tf.constant(value, self._tf.float32)
                self._tf.summary.write(tag, tensor, step=step, metadata=self._scalar)

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()
