"""SIGTERM and Ctrl-C in real processes, where Python would lose or delay them too."""

import signal
import subprocess
import sys
import time

import pytest

from promot_t5x.errors import EXIT_INTERRUPTED, EXIT_START_AGAIN

PROGRAM = """
import gc, hashlib, os, signal, sys, time
from promot_t5x.distributed import preemption
from promot_t5x.errors import Preempted

# The tests may run in the background, where Ctrl-C is ignored, and so in all their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

def ready():
    print("ready", flush=True)

def at_once():
    ready()
    time.sleep(30)

def postponed():
    with preemption.postponed():
        ready()
        for _ in range(300):
            if preemption.reached():
                print("saved", flush=True)
                return
            time.sleep(0.1)

def swallowed():
    # An exception that a callback of the garbage collection raises goes no further.
    sent = []
    def callback(phase, info):
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    gc.callbacks.append(callback)
    gc.collect()
    gc.callbacks.remove(callback)
    time.sleep(30)

def native():
    with preemption.postponed():
        ready()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)

try:
    with preemption.watched():
        globals()[sys.argv[1]]()
except Preempted as stop:
    print(stop)
    sys.exit(75)
"""


class Program:
    """The program above, running."""

    def __init__(self, what):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, what],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ready(self):
        assert self.process.stdout.readline() == "ready\n"
        return self

    def end(self, *numbers):
        with self.process:
            for number in numbers:
                self.process.send_signal(number)
                time.sleep(0.3)  # two at once would be one
            said = self.process.stdout.read()
        return self.process.returncode, said


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_what_holds_nothing_unsaved_stops_at_once(number, name):
    status, said = Program("at_once").ready().end(number)
    assert status == EXIT_START_AGAIN
    assert f"stopped by {name}\n" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_must_be_saved_is_saved_first(number):
    status, said = Program("postponed").ready().end(number)
    assert status == EXIT_START_AGAIN
    assert "saved\n" in said
    assert ("a second one ends it at once" in said) == (number == signal.SIGINT)


def test_a_signal_that_a_callback_swallows_is_raised_again():
    status, said = Program("swallowed").end()
    assert status == EXIT_START_AGAIN, said
    assert "stopped by Ctrl-C\n" in said


def test_a_second_interrupt_ends_what_never_returns_to_python():
    status, said = Program("native").ready().end(signal.SIGINT, signal.SIGINT)
    assert status == EXIT_INTERRUPTED
    assert said.endswith("promot-t5x: interrupted at once\n")
