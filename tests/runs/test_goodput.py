"""Where a run's time went, how much is left, and the trace of some of its steps."""

import concurrent.futures
import threading

import jax
import pytest
import run_helpers
from etils import epath

from promot_t5x import progress
from promot_t5x.errors import UserError
from promot_t5x.runs import goodput, outlook, profiling


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    for module in (goodput, outlook):
        monkeypatch.setattr(module.time, "monotonic", lambda: Clock.now)
    return Clock


def test_each_second_counts_for_the_innermost_activity(clock):
    account = goodput.WallTime()
    clock.now += 1
    with account.spent("steps"):
        clock.now += 6
        with account.spent("evaluation"):
            clock.now += 5
            account.compiled(3.0)
        with account.spent("saves"):
            clock.now += 2
        clock.now += 4
        with account.spent("data"):
            clock.now += 2
    assert account.seconds == {
        "steps": 10, "data": 2, "compile": 3, "saves": 2, "evaluation": 2, "other": 1
    }  # fmt: skip
    assert account.shares()["steps"] == 0.5
    assert account.summary() == (
        "wall time 20s: steps 50.0%, compile 15.0%, data 10.0%, saves 10.0%, evaluation 10.0%, "
        "other 5.0%"
    )


def test_compilation_is_counted_where_nobody_says_so():
    account = goodput.WallTime()
    with goodput.accounted():
        with goodput.current().spent("evaluation"):
            jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7)))
        found = goodput.current().seconds
    assert found["compile"] > found["evaluation"] > 0
    assert goodput.current() is not account


class Slow:
    """An array that is still being computed until it is told."""

    ready = False

    def is_ready(self):
        return self.ready


def test_waiting_for_data_counts_only_while_the_devices_wait_too():
    with goodput.accounted():
        for busy, activity in ((True, "steps"), (False, "data")):
            last, upcoming = Slow(), concurrent.futures.Future()
            last.ready = not busy
            threading.Timer(0.1, upcoming.set_result, ["batch"]).start()
            assert goodput.wait_for_batch(upcoming, {"loss": last}) == "batch"
            assert goodput.current().seconds[activity] >= 0.09


def test_the_time_left_of_a_whole_run(clock):
    """Two stages of 10 and 20 steps and two rows: 2 s a step, 3 s a validation, 8 s a row."""
    left = outlook.Outlook({"a": 10, "b": 20}, ["x", "y"])
    with goodput.accounted(), left.training("a"):
        assert left.line() == ""  # nothing was measured
        clock.now += 100  # reading, compiling
        left.begin(5)
        clock.now += 2
        left.step()
        assert left.line() == "run at least 48s left"  # 24 steps
        with goodput.current().spent("evaluation"):
            clock.now += 3
        for _ in range(4):
            clock.now += 2
            left.step()
        # 13 s for 5 steps, for each of 20; two rows of 3 s.
        assert left.line() == "run at least 58s left"
    with left.training("b"):
        left.begin(0)
        for _ in range(20):
            clock.now += 2
            left.step()
    with left.evaluating("done before"):
        pass
    with left.evaluating("x"):
        clock.now += 8
    with left.evaluating("y"):
        clock.now += 2
        assert left.line() == "run 6s left"
    assert left.line() == ""
    with left.shown():
        shown = progress.Progress("rows", 2)
        assert shown._line(1, shown._began + 1, "") == "rows  1/2  1.0/s  1s left"


@pytest.mark.parametrize("steps", ["3", "0:4", "5:4", "a:b", "1:2:3", ""])
def test_steps_that_cannot_be_traced_are_refused(steps):
    with pytest.raises(UserError, match="START:STOP"):
        profiling.ask(steps)


@pytest.mark.slow
def test_a_run_says_where_its_time_went_and_traces_its_steps(tmp_path):
    lab = run_helpers.Lab(tmp_path)
    words = lab.words("train", "pretrain", "train", MODEL_DIR=tmp_path / "run", EVAL_PERIOD=4)
    out = run_helpers.succeed([*words, "--profile=2:3"])
    (line,) = [line for line in out.splitlines() if line.startswith("wall time ")]
    assert all(f"{activity} " in line for activity in goodput.ACTIVITIES)
    rows = run_helpers.json_lines(tmp_path / "run" / "train" / "timing.jsonl")
    for row in rows:
        shares = [row[f"share/{activity}"] for activity in goodput.ACTIVITIES]
        assert sum(shares) == pytest.approx(1)
        assert row["share/compile"] > row["share/saves"]

    # Where TensorBoard's plugin looks, and as its reader reads it.
    (trace,) = epath.Path(tmp_path).glob("run/train/plugins/profile/*/*.xplane.pb")
    read = jax.profiler.ProfileData.from_file(str(trace))
    events = [e for plane in read.planes for line in plane.lines for e in line.events]
    steps = {dict(event.stats).get("step_num") for event in events if event.name == "train"}
    assert steps == {2, 3}
    assert "[train] profile: steps 2 to 3 are in " in out

    grown = run_helpers.succeed([*words, "--gin.TRAIN_STEPS=5", "--profile=2:3"])
    assert "profile: this launch takes no step of 2:3" in grown


def test_other_commands_take_no_profile():
    for command, takes_it in (("eval", False), ("train", True)):
        done = run_helpers.here([command, "--gin_file=any.gin", "--profil=1:2"])
        assert done.status == 2
        assert f"{command} does not take '--profil=1:2'" in done.err
        assert ("--profile" in done.err) == takes_it, done.err
