"""Weights & Biases and trackio themselves, without a network: `make test-hf`."""

import json
import sqlite3
import struct

import pytest
import run_helpers
from wandb.proto import wandb_internal_pb2

LOGGERS = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import loggers
LOGGERS = [@loggers.WeightsAndBiases(), @loggers.Trackio()]
loggers.WeightsAndBiases.project = 'tests'
loggers.Trackio.project = 'tests'
"""
BLOCK, FULL, LAST = 32768, 1, 4


def wandb_records(path):
    """The records of an offline run: LevelDB's log format behind a header of seven bytes."""
    data, records, parts, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (FULL, LAST):
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
    return records


def history(records):
    rows = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            names = [item.key or "/".join(item.nested_key) for item in items]
            rows.append({n: json.loads(i.value_json) for n, i in zip(names, items, strict=True)})
    return rows


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """(directory of the run, its output, trackio's files): a run that went on once."""
    home = tmp_path_factory.mktemp("loggers")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(home / "none"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRACKIO_DIR", str(home / "trackio"))
        lab = run_helpers.Lab(home)
        lab.write("two_stages.gin", run_helpers.TWO_STAGES)
        lab.write("loggers.gin", LOGGERS)
        words = lab.words(
            "promot", "promot", "prompt", "two_stages.gin", "loggers.gin",
            MODEL_DIR=home / "run", INITIAL_CHECKPOINT_PATH=None,
        )  # fmt: skip
        first = run_helpers.process(words)
        assert first.status == 0, first.err
        more = run_helpers.process([*words, "--gin.TRAIN_STEPS=6"])
        assert more.status == 0, more.err
    return home / "run", first.out + more.out, home / "trackio"


def test_wandb_has_both_launches_as_one_run(logged):
    directory, said, _ = logged
    assert "nothing more is logged" not in said
    run_id = (directory / "logger_run_id.txt").read_text().strip()
    paths = sorted(directory.glob("wandb/offline-run-*/run-*.wandb"))
    assert [path.name for path in paths] == [f"run-{run_id}.wandb"] * 2
    assert said.count("`wandb sync` sends it") == 2
    first, more = (wandb_records(path) for path in paths)
    for records in (first, more):
        (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
        assert (run.project, run.run_id, run.display_name) == ("tests", run_id, "run")
        config = {each.key: json.loads(each.value_json) for each in run.config.update}
        assert config["BATCH_SIZE"] == "8"
    losses = {
        row["stage_two/train/step"]: row["stage_two/train/loss"]
        for row in [*history(first), *history(more)]
        if "stage_two/train/loss" in row
    }
    rows = run_helpers.json_lines(directory / "stage_two" / "train" / "metrics.jsonl")
    assert losses == {row["step"]: pytest.approx(row["loss"]) for row in rows}
    assert len(losses) == 6
    scores = [row for row in history(more) if "comparison/ProMoT/run_signs" in row]
    assert len(scores) == 1
    for place in (path.parent / "files" for path in paths):
        assert (place / "report.md").read_text().count("ProMoT")
        assert "BATCH_SIZE = 8" in (place / "config.gin").read_text()


def test_trackio_has_both_launches_as_one_run(logged):
    directory, _, place = logged
    (path,) = place.glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
    run_id = (directory / "logger_run_id.txt").read_text().strip()
    assert {name for name, *_ in rows} == {f"run-{run_id}"}
    found = [(step, json.loads(metrics)) for _, step, metrics in rows]
    steps = [step for step, metrics in found if "stage_two/train/loss" in metrics]
    assert steps == [1, 2, 3, 4, 5, 6]
    reports = [m["report.md"]["_value"] for _, m in found if "report.md" in m]
    assert len(reports) == 2
    assert "ProMoT" in reports[1]
