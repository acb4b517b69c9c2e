"""Metrics on disk: JSON lines that survive a kill and a resume, and events TensorBoard reads."""

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import tiny_config, training_batches
from etils import epath

from promot_t5x.data.batches import statistics
from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.errors import NonFiniteError, UserError
from promot_t5x.files import (
    append_json_line,
    keep_until,
    read_json,
    read_json_lines,
    write_atomically,
    write_json_lines,
)
from promot_t5x.runs.metric_writer import ALIGNMENT, EvaluationEvents, MetricWriter
from promot_t5x.runs.non_finite import NonFiniteSteps
from promot_t5x.runs.step_log import FETCH_PERIOD, StepLog
from promot_t5x.training.step import Finite


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


@pytest.mark.parametrize("damaged", [b'{"step": 1', b'{"ste\xb1": 1}'])
def test_a_broken_line_before_the_last_is_named(directory, damaged):
    path = directory / "rows.jsonl"
    path.write_bytes(b'{"step": 0}\n' + damaged + b'\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl is damaged: line 2 is no JSON"):
        read_json_lines(path)


@pytest.mark.parametrize("damaged", [b"", b"{", b"\xb1", b"[]", b'{"tokenz": 1}'])
def test_a_damaged_file_of_json_is_named(directory, damaged):
    path = directory / "stage.json"
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"stage\.json is damaged .*Delete it and start"):
        read_json(path, collections.namedtuple("Found", ["tokens"]))


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
    # The steps after the checkpoint were taken twice, and stand in the event files once.
    assert events(stopped) == shown


def test_evaluations_taken_again_replace_their_events(directory):
    """What a launch writes first, and all that an earlier one wrote after it, stands there once."""
    for first in (2, 4):
        written = EvaluationEvents()
        for step in range(first, 7, 2):
            written.write(directory, step, {"eval/accuracy": 100 / step})
            written.write(directory, step, {"gradient_alignment/MLP": 0.5}, ALIGNMENT)
        written.close()
    assert events(directory) == [
        row
        for step in (2, 4, 6)
        for row in (
            (step, "eval/accuracy", np.float32(100 / step), "scalars"),
            (step, "gradient_alignment/MLP", 0.5, "scalars"),
        )
    ]


def test_events_cut_short_by_a_kill_are_dropped(directory):
    writer = MetricWriter(directory)
    for step in (1, 2, 3):
        writer.write(step, {"loss": float(step)})
    writer.close()
    (path,) = directory.glob("events.out.tfevents.*")
    path.write_bytes(path.read_bytes()[:-5])
    MetricWriter(directory, start_step=2).close()
    assert [step for step, *_ in events(directory)] == [1, 2]


T5X_TAGS = {
    "loss", "loss_sum", "cross_ent_loss", "z_loss", "loss_per_nonpadding_target_token", "accuracy",
    "learning_rate", "non_padding_fraction/encoder", "non_padding_fraction/decoder",
    "non_padding_fraction/loss_weights", "non_padding_fraction/overall",
    "effective_batch_size/encoder", "effective_batch_size/decoder", "timing/steps_per_second",
}  # fmt: skip


def step_metrics(loss):
    names = ("loss", "cross_ent_loss", "z_loss", "accuracy", "learning_rate", "grad_norm")
    values = {name: jnp.float32(0.25) for name in names}
    sums = {"loss_sum": jnp.float32(8 * loss)}
    return (
        values | {n: jnp.float32(loss) for n in ("loss", "loss_per_nonpadding_target_token")} | sums
    )


def finite(loss=1.0, gradients=(True, True), parameters=(True, True)):
    return Finite(jnp.isfinite(loss), jnp.asarray(gradients), jnp.asarray(parameters))


def step_log(directory, start, total, limit=0, reports=None):
    return StepLog(
        "[stage_one]",
        directory,
        start,
        total,
        NonFiniteSteps(
            arrays=["wi", "wo"],
            limit=limit,
            examples=lambda step: [f"rte/train {step}"],
            newest=lambda: "The newest checkpoint is that of step 40.",
            report=(reports if reports is not None else []).append,
        ),
    )


@pytest.fixture(scope="module")
def batches():
    return training_batches(tiny_config(), 25)


def test_every_step_is_written_once_with_the_tags_of_t5x(directory, batches, capsys):
    log = step_log(directory, 0, 25)
    path = directory / "train" / "metrics.jsonl"
    for step in range(1, 25):
        log.add(step, step_metrics(step / 2), finite(), batches[step - 1])
        # Numbers are fetched together, and never later than ten steps on.
        assert len(read_json_lines(path)) == step // FETCH_PERIOD * FETCH_PERIOD
    log.pause()
    assert len(read_json_lines(path)) == 24
    log.resume()
    log.add(25, step_metrics(12.5), finite(), batches[24])
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


@pytest.mark.parametrize(
    ("bad", "wrong"),
    [
        ((math.nan,), "step 44 is not finite: loss nan."),
        ((math.inf,), "step 44 is not finite: loss inf."),
        (
            (1.0, (True, False)),
            "gradient norm 0.25, gradients of 1 of 2 arrays (wo).",
        ),
        ((1.0, (True, True), (False, False)), "parameters of 2 of 2 arrays (wi, wo)."),
    ],
)
def test_a_step_that_is_not_finite_ends_the_run(directory, batches, bad, wrong):
    log = step_log(directory, 40, 100)
    with pytest.raises(NonFiniteError) as raised:
        for step in range(41, 60):
            loss = bad[0] if step == 44 else 1.0
            flags = finite(*bad) if step == 44 else finite()
            log.add(step, step_metrics(loss), flags, batches[0])
    log.close()
    for words in (wrong, "Its batch held rte/train 44.", "newest checkpoint is that of step 40"):
        assert words in str(raised.value)
    rows = read_json_lines(directory / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [41, 42, 43, 44]
    assert {step for step, *_ in events(directory / "train")} == {41, 42, 43, 44}


def test_steps_are_skipped_up_to_a_number_in_a_row(directory, batches):
    """With a limit of 2, the third in a row ends the run; one that is finite starts anew."""
    reports: list[str] = []
    log = step_log(directory, 0, 100, limit=2, reports=reports)
    bad = (2, 3, 5, 6, 7)
    with pytest.raises(NonFiniteError, match="2 steps before it were skipped already"):
        for step in range(1, 11):
            loss = math.nan if step in bad else 1.0
            log.add(step, step_metrics(loss), finite(loss), batches[0])
    log.close()
    assert [line.partition(":")[0] for line in reports] == ["skipped"] * 4
    assert reports[3].endswith("2 in a row, 4 so far.")
    rows = read_json_lines(directory / "train" / "metrics.jsonl")
    assert [row.get("skipped") for row in rows] == [0, 1, 1, 0, 1, 1, None]
