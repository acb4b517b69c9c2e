"""Start-up chatter is dropped, and nothing else is."""

import os

import pytest

from promot_t5x import quiet


def test_chatter_is_dropped_and_the_rest_comes_through(capfd):
    with quiet.imports():
        os.write(2, b"I0000 00:00:1 port.cc:153] oneDNN custom operations are on.\n")
        os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called\n")
        os.write(2, b"E0000 00:00:1 something is wrong\nplain words")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "E0000 00:00:1 something is wrong\nplain words"
    os.write(2, b"I0000 afterwards\n")
    assert capfd.readouterr().err == "I0000 afterwards\n"


def test_an_exception_loses_nothing(capfd):
    with pytest.raises(RuntimeError), quiet.imports():
        os.write(2, b"before the fault\n")
        raise RuntimeError
    assert capfd.readouterr().err == "before the fault\n"


def test_the_users_environment_wins(monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    quiet.set_defaults()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"
    monkeypatch.delenv("GRPC_VERBOSITY")
