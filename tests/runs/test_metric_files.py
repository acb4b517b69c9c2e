"""Metrics on disk: JSON lines that survive a kill and a resume, and events TensorBoard reads."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import tiny_config, training_batches
from etils import epath

from promot_t5x.data.batches import statistics
from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.files import (
    append_json_line,
    keep_until,
    read_json_lines,
    write_atomically,
    write_json_lines,
)
from promot_t5x.runs.metric_writer import MetricWriter
from promot_t5x.runs.step_log import FETCH_PERIOD, StepLog


@pytest.fixture
def directory(tmp_path):
    return epath.Path(tmp_path)


def test_lines_come_back_as_they_were_written(directory):
    path = directory / "rows.jsonl"
    rows = [{"step": 1, "text": 'naïve ½\n\u2028 "x"'}, {"step": 2, "text": ""}]
    write_json_lines(path, rows[:1])
    append_json_line(path, rows[1])
    assert read_json_lines(path) == rows
    assert path.read_text().count("\n") == 2
    assert "naïve" in path.read_text()
    assert read_json_lines(directory / "nothing.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3, "loss": 1.5}', "{"])
def test_a_torn_last_line_is_dropped_and_a_resumed_run_writes_it_anew(directory, torn):
    path = directory / "rows.jsonl"
    rows = [{"step": step, "loss": 1.5} for step in (1, 2)]
    write_json_lines(path, rows)
    with path.open("a") as file:
        file.write(torn)
    assert read_json_lines(path) == rows
    keep_until(path, 2)
    append_json_line(path, {"step": 3, "loss": 1.5})
    assert [row["step"] for row in read_json_lines(path)] == [1, 2, 3]


def test_a_broken_line_before_the_last_is_an_error(directory):
    path = directory / "rows.jsonl"
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read_json_lines(path)


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_rows_of_later_steps_are_dropped(directory, step, kept):
    path = directory / "rows.jsonl"
    write_json_lines(path, [{"step": number} for number in (1, 2, 3)])
    keep_until(path, step)
    assert [row["step"] for row in read_json_lines(path)] == kept
    keep_until(directory / "nothing.jsonl", step)
    assert not (directory / "nothing.jsonl").exists()


def test_a_file_is_replaced_as_a_whole(directory, monkeypatch):
    path = directory / "config.gin"
    write_atomically(path, "old")

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(path), "replace", killed)
        write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "new")
    assert [file.name for file in directory.iterdir()] == ["config.gin"]
    assert path.read_text() == "new"


def events(directory):
    """(step, tag, value, plug-in) of every scalar in the event files, in order of step."""
    tf = import_tensorflow()
    found = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor))
                plugin = value.metadata.plugin_data.plugin_name
                found.append((event.step, value.tag, number, plugin))
    return sorted(found)


def test_a_resumed_writer_leaves_the_bytes_of_one_that_never_stopped(directory):
    def write(path, start, stop, writer):
        for step in range(start + 1, stop + 1):
            writer.write(step, {"loss": 1 / step, "accuracy": 0.5})
            writer.write_timing(step, {"steps_per_second": 3.0})

    whole, stopped = directory / "whole", directory / "stopped"
    writer = MetricWriter(whole)
    write(whole, 0, 6, writer)
    writer.close()
    writer = MetricWriter(stopped)
    write(stopped, 0, 5, writer)
    writer.flush()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    writer.close()
    # The last checkpoint was that of step 3.
    writer = MetricWriter(stopped, start_step=3)
    assert [row["step"] for row in read_json_lines(stopped / "timing.jsonl")] == [1, 2, 3]
    write(stopped, 3, 6, writer)
    writer.close()
    for name in ("metrics.jsonl", "timing.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert read_json_lines(whole / "metrics.jsonl")[1] == {"step": 2, "loss": 0.5, "accuracy": 0.5}
    shown = events(whole)
    assert len(shown) == 18
    assert (2, "loss", 0.5, "scalars") in shown
    assert (2, "timing/steps_per_second", 3.0, "scalars") in shown
    # The steps after the checkpoint were taken twice, and TensorBoard shows the later ones.
    assert set(events(stopped)) == set(shown)


T5X_TAGS = {
    "loss", "cross_ent_loss", "z_loss", "loss_per_nonpadding_target_token", "accuracy",
    "learning_rate", "non_padding_fraction/encoder", "non_padding_fraction/decoder",
    "non_padding_fraction/loss_weights", "non_padding_fraction/overall",
    "effective_batch_size/encoder", "effective_batch_size/decoder", "timing/steps_per_second",
}  # fmt: skip


def step_metrics(loss):
    names = ("loss", "cross_ent_loss", "z_loss", "accuracy", "learning_rate", "grad_norm")
    values = {name: jnp.float32(0.25) for name in names}
    per_token = {"loss_per_nonpadding_target_token": jnp.float32(loss / 8)}
    return values | {"loss": jnp.float32(loss)} | per_token


@pytest.fixture(scope="module")
def batches():
    return training_batches(tiny_config(), 25)


def test_every_step_is_written_once_with_the_tags_of_t5x(directory, batches, capsys):
    log = StepLog("stage_one", directory, 0, 25)
    path = directory / "train" / "metrics.jsonl"
    for step in range(1, 25):
        log.add(step, step_metrics(step / 2), batches[step - 1])
        # Numbers are fetched together, and never later than ten steps on.
        assert len(read_json_lines(path)) == step // FETCH_PERIOD * FETCH_PERIOD
    log.pause()
    assert len(read_json_lines(path)) == 24
    log.resume()
    log.add(25, step_metrics(12.5), batches[24])
    log.pause()
    log.close()
    rows = read_json_lines(path)
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert [row["loss"] for row in rows] == [step / 2 for step in range(1, 26)]
    for row, batch in zip(rows, batches, strict=True):
        assert statistics(batch).items() <= row.items()
    timing = read_json_lines(directory / "train" / "timing.jsonl")
    assert [row["step"] for row in timing] == [10, 20, 24, 25]
    assert all(row["steps_per_second"] > 0 for row in timing)
    tags = {tag for _, tag, _, _ in events(directory / "train")}
    assert tags >= T5X_TAGS, T5X_TAGS - tags
    assert "[stage_one] step  25/25" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(directory, batches, bad):
    log = StepLog("stage_one", directory, 40, 100)
    with pytest.raises(FloatingPointError, match=r"loss of step 44 is (nan|inf)"):
        for step in range(41, 60):
            log.add(step, step_metrics(bad if step == 44 else 1.0), batches[0])
    log.close()
    rows = read_json_lines(directory / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [41, 42, 43, 44]
    assert not np.isfinite(rows[-1]["loss"])
