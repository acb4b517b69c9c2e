"""Metrics of a run as TensorBoard events (T5X's tags and directories) and as JSON lines.

`<directory>/metrics.jsonl` holds one object per step with the numbers that training determines,
so that a resumed run leaves the same bytes as one that was never stopped; wall-clock timings go
to `<directory>/timing.jsonl` and to TensorBoard. Event files hold each step once, too: what was
written after the step that a run resumes from is removed from them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.files import append_json_line, keep_until
from promot_t5x.runs import loggers

EVENTS = "events.out.tfevents."
TRAINING = ".v2"  # the end of the names of event files, which is TensorFlow's own
ALIGNMENT = ".alignment"  # beside the training's, whose steps are resumed elsewhere


class EventWriter:
    """Writes scalars as TensorBoard events, after removing those that this run writes anew.

    **Arguments:**

    - `directory`: gets an event file; created if need be.
    - `first_step`: events of this step and later ones, of an earlier launch, are removed.
    - `suffix`: the end of the names of its files; files with other ends are left alone.
    """

    def __init__(self, directory: epath.Path, first_step: int, suffix: str = TRAINING):
        directory.mkdir(parents=True, exist_ok=True)
        self._tf, self._directory = import_tensorflow(), directory
        for path in sorted(directory.glob(f"{EVENTS}*{suffix}")):
            remove_events_from(path, first_step)
        self._events = self._tf.summary.create_file_writer(str(directory), filename_suffix=suffix)
        self._scalar = self._tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": "scalars"}, data_class="DATA_CLASS_SCALAR"
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Record scalars by tag, here and in the run's loggers."""
        loggers.send(self._directory, step, scalars)
        with self._events.as_default():
            for tag, value in scalars.items():
                # `tf.summary.scalar` wants TensorBoard installed; this writes what it writes.
                tensor = self._tf.constant(value, self._tf.float32)
                self._tf.summary.write(tag, tensor, step=step, metadata=self._scalar)

    def flush(self) -> None:
        """Put what was written on disk."""
        self._events.flush()

    def close(self) -> None:
        """Put what was written on disk and close the file."""
        self._events.close()


def remove_events_from(path: epath.Path, step: int) -> None:
    """Remove the events of a step and of later ones from an event file, in one replacement.

    A file without other events is removed; an event that a kill cut short goes too.
    """
    tf = import_tensorflow()
    header, kept, dropped = [], [], False
    for record in _records(tf, path):
        event = None if record is None else tf.compat.v1.Event.FromString(record)
        if event is None or (event.HasField("summary") and event.step >= step):
            dropped = True
        elif event.HasField("summary"):
            kept.append(record)
        else:
            header.append(record)  # the format's version
    if not kept:
        path.unlink()
    elif dropped:
        part = path.with_name("events.part")  # no name that TensorBoard looks for
        with tf.io.TFRecordWriter(str(part)) as writer:
            for record in [*header, *kept]:
                writer.write(record)
        part.replace(path)


def _records(tf: Any, path: epath.Path) -> Iterator[bytes | None]:
    """Yield a file's records; last None, where a kill has cut its end short."""
    try:
        yield from tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    except tf.errors.DataLossError:
        yield None


class MetricWriter:
    """Writes one directory of training metrics, continuing after `start_step`.

    **Arguments:**

    - `directory`: gets `metrics.jsonl`, `timing.jsonl` and an event file.
    - `start_step`: rows and events of later steps, of an earlier launch, are removed.
    """

    def __init__(self, directory: epath.Path, start_step: int = 0):
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = directory / "metrics.jsonl"
        self._timing = directory / "timing.jsonl"
        for path in (self._metrics, self._timing):
            keep_until(path, start_step)
        self._events = EventWriter(directory, start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record numbers that are a function of the run's configuration."""
        append_json_line(self._metrics, {"step": step, **metrics})
        self._events.write(step, metrics)

    def write_timing(self, step: int, timing: Mapping[str, float]) -> None:
        """Record wall-clock numbers, tagged `timing/…`."""
        append_json_line(self._timing, {"step": step, **timing})
        self._events.write(step, {f"timing/{name}": value for name, value in timing.items()})

    def flush(self) -> None:
        """Put what was written on disk."""
        self._events.flush()

    def close(self) -> None:
        """Put what was written on disk and close the event file."""
        self._events.close()


class EvaluationEvents:
    """TensorBoard scalars of a stage's evaluations, in the directories where T5X writes them.

    A directory's writer is opened at its first step of this launch; what an earlier launch wrote
    of that step and later ones is removed.
    """

    def __init__(self) -> None:
        self._writers: dict[str, EventWriter] = {}

    def write(
        self, directory: epath.Path, step: int, scalars: Mapping[str, float], suffix: str = TRAINING
    ) -> None:
        """Record a step's scalars and put them on disk."""
        key = f"{directory} {suffix}"
        if key not in self._writers:
            self._writers[key] = EventWriter(directory, step, suffix)
        self._writers[key].write(step, scalars)
        self._writers[key].flush()

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers.values():
            writer.close()
