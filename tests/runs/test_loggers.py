"""Other loggers beside TensorBoard and JSON lines: what they get, and that they stop no run."""

import dataclasses
import json
import threading

import pytest
import run_helpers
from etils import epath

from promot_t5x.errors import UserError
from promot_t5x.runs import loggers
from promot_t5x.runs.metric_writer import EvaluationEvents, MetricWriter

CONFIG = "A = 1\nfrom promot_t5x.runs import stages\nstages.Stage.name = 'x'\n"


@dataclasses.dataclass
class Kept:
    """A logger that keeps what it gets in a file of JSON lines; it fails where it is told to."""

    module = "json"

    path: str
    fails: str = ""
    hangs: threading.Event = dataclasses.field(default_factory=threading.Event)

    def open(self, run):
        self.where = self.path
        self._keep("open", run.name, run.id, dict(run.settings))
        return self

    def log(self, prefix, step, scalars):
        self._keep("log", prefix, step, dict(scalars))

    def attach(self, name, text):
        self._keep("attach", name, text)

    def close(self):
        self._keep("close")

    def _keep(self, what, *values):
        if what == self.fails:
            raise ConnectionError("no route\nto host")
        if f"hang in {what}" == self.fails:
            self.hangs.wait()
        with open(self.path, "a") as file:
            file.write(json.dumps([what, *values]) + "\n")


class Missing(Kept):
    module = "nowhere"

    def __init__(self):
        super().__init__("")


def kept(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def some_run(directory, listed, first=0):
    with loggers.running(listed, directory, CONFIG):
        writer = MetricWriter(directory / "stage_one" / "train", first)
        writer.write(first + 1, {"loss": 0.5})
        writer.write_timing(first + 1, {"share/steps": 0.25})
        writer.close()
        events = EvaluationEvents()
        events.write(directory / "stage_one" / "inference_eval" / "rte", 1, {"eval/accuracy": 50.0})
        events.close()
        loggers.attach("report.md", "# scores")


def test_a_run_is_one_run_there_and_its_next_launch_continues_it(tmp_path, capsys):
    directory, path = epath.Path(tmp_path) / "rte", tmp_path / "kept.jsonl"
    directory.mkdir()
    some_run(directory, [Kept(str(path))])
    run_id = (directory / loggers.RUN_ID).read_text().strip()
    first = kept(path)
    assert first == [
        ["open", "rte", run_id, {"A": "1", "stages.Stage.name": "'x'"}],
        ["attach", "config.gin", CONFIG],
        ["log", "stage_one/train", 1, {"loss": 0.5}],
        ["log", "stage_one/train", 1, {"timing/share/steps": 0.25}],
        ["log", "stage_one/inference_eval/rte", 1, {"eval/accuracy": 50.0}],
        ["attach", "report.md", "# scores"],
        ["close"],
    ]
    path.unlink()
    some_run(directory, [Kept(str(path))], first=1)
    assert kept(path)[0] == first[0]
    assert f"[Kept] {path}" in capsys.readouterr().out
    # Nothing goes to loggers outside of a run.
    loggers.send(directory, 9, {"loss": 1.0})
    assert kept(path)[-1] == ["close"]


@pytest.mark.parametrize("fails", ["open", "log", "attach", "close"])
def test_a_logger_that_fails_stops_nothing(tmp_path, capsys, fails):
    directory = epath.Path(tmp_path)
    other = tmp_path / "other.jsonl"
    some_run(directory, [Kept(str(tmp_path / "bad.jsonl"), fails), Kept(str(other))])
    assert len(kept(other)) == 7
    assert len(run_helpers.json_lines(tmp_path / "stage_one/train/metrics.jsonl")) == 1
    some_run(directory, [Missing()])
    said = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert [line.partition(";")[0] for line in said] == [
        "[Kept] warning: nothing more is logged there (ConnectionError: no route)",
        "[Missing] warning: nothing more is logged there (ModuleNotFoundError: No module named "
        "'nowhere')",
    ]


@pytest.mark.parametrize("where", ["open", "log"])
def test_a_logger_that_never_answers_stops_nothing(tmp_path, capsys, monkeypatch, where):
    logger = Kept(str(tmp_path / "kept.jsonl"), f"hang in {where}")
    run = loggers.LoggedRun(name="x", id="1", directory=epath.Path(tmp_path), settings={})
    monkeypatch.setattr(loggers, "_WAITING", 3)
    feed = loggers.Feed(logger, run, patience=0.1)
    for step in range(9):
        feed.put(lambda sink, step=step: sink.log("train", step, {}))
    feed.close()
    said = capsys.readouterr().out
    assert said.count("warning") == 1
    assert "3 messages wait for it" in said
    logger.hangs.set()


def test_what_is_no_logger_or_not_installed_is_refused():
    for wrong in ("wandb", ["wandb"], [loggers.Trackio], None):
        with pytest.raises(UserError, match="LOGGERS = "):
            loggers.check(wrong)
    loggers.check([])
    with pytest.raises(UserError, match=r"pip install 'promot-t5x\[nowhere\]'"):
        loggers._check_installed(Missing())
    with pytest.raises(UserError, match="'online', 'offline' or None|not installed"):
        loggers.WeightsAndBiases(mode="of line")
