"""One owner of a run directory at a time, whoever dies, stops or races; real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gcs_server
import owner_helpers
import pytest
import run_helpers
from etils import epath

from promot_t5x.errors import EXIT_IN_USE, InUseError, UserError
from promot_t5x.runs import ownership

pytestmark = pytest.mark.slow


class Owners:
    """Processes that take directories, forked by `owner_helpers.py`."""

    def __init__(self, directory):
        self._directory = directory
        self._server = subprocess.Popen(
            [sys.executable, Path(owner_helpers.__file__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=run_helpers.environment(),
        )
        self.pids = []

    def start(self, directory, machine=""):
        """Fork one; returns its process id."""
        log = str(self._directory / f"log_{len(self.pids)}")
        self._server.stdin.write(json.dumps([str(directory), machine, log]) + "\n")
        self._server.stdin.flush()
        self.pids.append(int(self._server.stdout.readline()))
        return self.pids[-1]

    def said(self, pid, words="taken"):
        """Wait until one has said some words; returns all that it said."""
        log = self._directory / f"log_{self.pids.index(pid)}"
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if log.exists() and words in log.read_text():
                return log.read_text()
            time.sleep(0.02)
        raise AssertionError(log.read_text())

    def close(self):
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self._server.communicate()


@pytest.fixture(scope="module")
def owners(tmp_path_factory):
    owners = Owners(tmp_path_factory.mktemp("owners"))
    yield owners
    owners.close()


@pytest.fixture
def directory(tmp_path, monkeypatch):
    for name in ("HEARTBEAT_SECONDS", "TAKEOVER_SECONDS", "_POLL_SECONDS"):
        monkeypatch.setattr(ownership, name, getattr(owner_helpers, name.lstrip("_")))
    yield epath.Path(tmp_path / "run")
    ownership.release_all()


def take(directory):
    """Take a directory in this process; returns how long that took."""
    began = time.monotonic()
    ownership.take(directory)
    return time.monotonic() - began


def owner_of(directory):
    return json.loads((directory / ownership.FILE_NAME).read_text())


def test_a_directory_is_given_back(directory):
    take(directory)
    assert owner_of(directory)["process"] == os.getpid()
    take(directory)  # once more by its owner changes nothing
    ownership.release_all()
    assert not (directory / ownership.FILE_NAME).exists()
    take(directory)


@pytest.mark.parametrize("number", [None, signal.SIGSTOP])
def test_a_live_owner_on_this_host_is_named(directory, owners, number):
    pid = owners.start(directory)
    owners.said(pid)
    if number:
        os.kill(pid, number)
    started = owner_of(directory)["started"]
    with pytest.raises(InUseError, match=f"process {pid} on .*, started {re.escape(started)}"):
        take(directory)
    assert owner_of(directory)["process"] == pid


def test_a_dead_owner_on_this_host_is_followed_at_once(directory, owners):
    pid = owners.start(directory)
    owners.said(pid)
    os.kill(pid, signal.SIGKILL)
    assert take(directory) < 2.0
    assert owner_of(directory)["process"] == os.getpid()


def test_a_live_owner_elsewhere_is_known_by_its_heartbeat(directory, owners):
    pid = owners.start(directory, "elsewhere")
    owners.said(pid)
    with pytest.raises(InUseError, match=f"process {pid} on"):
        take(directory)


def test_a_dead_owner_elsewhere_is_followed_after_the_stated_time(directory, owners, capsys):
    pid = owners.start(directory, "elsewhere")
    owners.said(pid)
    os.kill(pid, signal.SIGKILL)
    assert take(directory) >= owner_helpers.TAKEOVER_SECONDS
    assert f"belongs to process {pid} on" in capsys.readouterr().err


def test_an_owner_that_was_given_up_ends_when_it_comes_back(directory, owners):
    pid = owners.start(directory, "elsewhere")
    owners.said(pid)
    os.kill(pid, signal.SIGSTOP)
    take(directory)
    os.kill(pid, signal.SIGCONT)
    said = owners.said(pid, "taken over")
    assert f"has been taken over by process {os.getpid()} on" in said
    assert owner_of(directory)["process"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", '{"host": "h"}', "[]"])
def test_a_file_that_says_nothing_counts_as_silence(directory, content):
    directory.mkdir()
    (directory / ownership.FILE_NAME).write_text(content)
    assert take(directory) >= owner_helpers.TAKEOVER_SECONDS


def test_of_several_that_race_for_a_dead_owners_directory_one_wins(directory, owners):
    pid = owners.start(directory)
    owners.said(pid)
    os.kill(pid, signal.SIGKILL)
    racers = [owners.start(directory) for _ in range(6)]
    said = [owners.said(pid, "e") for pid in racers]
    winners = [pid for pid, words in zip(racers, said, strict=True) if "taken\n" in words]
    assert len(winners) == 1
    assert owner_of(directory)["process"] == winners[0]


def test_a_deleted_file_is_written_again(directory):
    take(directory)
    (directory / ownership.FILE_NAME).unlink()
    end = time.monotonic() + 30
    while not (directory / ownership.FILE_NAME).exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert owner_of(directory)["process"] == os.getpid()


def test_a_directory_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written: "):
        ownership.take(epath.Path(tmp_path / "file" / "run"))


def test_a_second_run_is_refused_and_readers_are_not(directory, owners, tmp_path):
    lab = run_helpers.Lab(tmp_path)
    words = lab.words("train", "pretrain", "train", MODEL_DIR=Path(directory), TRAIN_STEPS=1)
    assert run_helpers.here(words).status == 0
    pid = owners.start(directory)
    owners.said(pid)
    before = run_helpers.tree(Path(directory))
    refused = run_helpers.here(words)
    assert refused.status == EXIT_IN_USE
    assert f"belongs to a run that is going on: process {pid} on" in refused.err
    assert "Traceback" not in refused.err
    after = run_helpers.tree(Path(directory))
    for found in (before, after):  # the owner's heartbeat, and its lock while it is written
        found.pop("owner.json", None)
        found.pop("owner.json.__lock", None)
    assert after == before
    reading = run_helpers.here(["ckpt", "verify", str(directory / "checkpoint_1")])
    assert reading.status == 0, reading.err


BUCKET = """
import os, sys
import owner_helpers
from etils import epath
from promot_t5x.errors import InUseError
from promot_t5x.runs import ownership
owner_helpers.shorten(ownership, "elsewhere" if len(sys.argv) > 1 else "")
try:
    ownership.take(epath.Path("gs://mine/run"))
except InUseError as error:
    print(error, flush=True)
    os._exit(73)
print("taken", flush=True)
sys.stdin.read()
ownership.release_all()
"""


def test_buckets_are_taken_by_conditional_writes(tmp_path):
    with gcs_server.serve(tmp_path) as (url, _):
        environment = {**run_helpers.environment(), "TENSORSTORE_GCS_HTTP_URL": url}
        environment["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
        environment["PYTHONPATH"] = str(Path(owner_helpers.__file__).parent)

        def start(*words):
            return subprocess.Popen(
                [sys.executable, "-c", BUCKET, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )

        first = start("elsewhere")
        assert first.stdout.readline() == "taken\n"
        said, _ = start().communicate(timeout=60)
        assert f"gs://mine/run belongs to a run that is going on: process {first.pid} on" in said
        first.kill()
        first.communicate()
        third = start()
        assert third.stdout.readline() == "taken\n"
        owner = json.loads((tmp_path / "mine" / "run" / ownership.FILE_NAME).read_text())
        assert owner["process"] == third.pid
        third.communicate("")
        assert third.returncode == 0
        assert not (tmp_path / "mine" / "run" / ownership.FILE_NAME).exists()
