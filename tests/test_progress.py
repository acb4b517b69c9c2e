"""Progress on a terminal and in a log, by a clock that the test turns."""

import io

import pytest

from promot_t5x import progress
from promot_t5x.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def stderr(monkeypatch):
    """Puts a stream in the place of stderr, and returns it."""

    def put(stream):
        monkeypatch.setattr(progress.sys, "stderr", stream)
        return stream

    return put


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75.2, "1m15s"), (3599.7, "1h00m"),
     (7384.0, "2h03m")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_log_gets_a_line_now_and_then_and_the_last_one(clock, stderr):
    stream = stderr(io.StringIO())
    shown = Progress("asking", 100)
    for done in range(1, 101):
        clock.now += 0.25
        shown.update(done, f"loss {done}")
    shown.close()
    assert stream.getvalue().splitlines() == [
        "asking  40/100  loss 40  4.0/s  15s left",
        "asking  80/100  loss 80  4.0/s  5s left",
        "asking  100/100  loss 100  4.0/s  25s",
    ]


def test_a_terminal_gets_one_line_that_is_rewritten(clock, stderr):
    stream = stderr(Terminal())
    shown = Progress("x", 3)
    clock.now += 0.1
    shown.update(1)
    assert stream.getvalue() == ""
    clock.now += 0.4
    shown.update(2, "a long note")
    clock.now += 0.5
    shown.update(3)
    first, second = "x  2/3  a long note  4.0/s  0s left", "x  3/3  3.0/s  1s"
    # The shorter line covers the longer one.
    assert stream.getvalue() == f"\r{first}\r{second.ljust(len(first))}"
    shown.close()
    assert stream.getvalue().endswith("\n")


def test_a_resumed_count_has_the_rate_of_this_launch(clock, stderr):
    stream = stderr(io.StringIO())
    shown = Progress("step", 1000, 900)
    clock.now += 10
    shown.update(950)
    assert stream.getvalue() == "step  950/1000  5.0/s  10s left\n"


def test_nothing_done_has_no_rate(clock, stderr):
    stream = stderr(io.StringIO())
    shown = Progress("step", 1000, 900)
    clock.now += 10
    shown.update(900)
    assert stream.getvalue() == "step  900/1000\n"
    shown.close()
    assert stream.getvalue().count("\n") == 1


def test_closing_a_terminal_without_a_line_prints_nothing(clock, stderr):
    stream = stderr(Terminal())
    Progress("x", 3).close()
    assert stream.getvalue() == ""


def test_a_line_closed_twice_ends_once(clock, stderr):
    stream = stderr(Terminal())
    shown = Progress("x", 2)
    clock.now += 1
    shown.update(1)
    shown.close()
    shown.close()
    assert stream.getvalue().count("\n") == 1
    # What is shown next starts a line of its own, no wider than itself.
    clock.now += 1
    shown.update(2)
    assert stream.getvalue().split("\n")[1] == "\rx  2/2  1.0/s  2s"
