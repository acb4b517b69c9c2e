"""A process ends with its command's status, and Python takes nothing down."""

import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from promot_t5x.cli import ending

class Last:
    def __del__(self):
        print("taken down")

def command():
    atexit.register(print, "exit function")
    print("command")
    {end}

last = Last()
ending.run_and_exit(command)
"""


def ended(end):
    words = [sys.executable, "-c", PROGRAM.format(end=end)]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("status", [0, 75])
def test_exit_functions_run_and_nothing_is_taken_down(status):
    assert ended(f"return {status}") == (status, ["command", "exit function"], "")


def test_an_exception_ends_as_python_has_it():
    status, out, err = ended("sys.exit('no status')")
    assert (status, err) == (1, "no status\n")
    assert out == ["command", "exit function", "taken down"]


@pytest.mark.parametrize(("words", "status"), [("--version", 0), ("no_such_command", 2)])
def test_the_program_ends_so(words, status):
    done = subprocess.run([sys.executable, "-m", "promot_t5x", words], capture_output=True)
    assert done.returncode == status
