"""What an evaluation leaves on disk, and what can be made of it without model or data."""

import dataclasses
import json

import numpy as np
import pytest
from etils import epath

from promot_t5x.cli import main
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.evaluation.records import EvalRun, TaskResult, mean_score
from promot_t5x.tasks import metrics as task_metrics
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.metrics import accuracy, macro_f1

LABELS = ("yes", "no", "perhaps")


def result_of(task, metrics, targets, predictions):
    said = {}
    for metric in metrics:
        said |= metric(targets, predictions)
    scores = records.example_scores(metrics[0], targets, predictions)
    return TaskResult(
        task=task,
        split="test",
        metrics=said,
        metric_specs=[task_metrics.spec(metric) for metric in metrics],
        records=[
            {"task": task, "id": str(i), "target": t, "prediction": p, "score": s}
            for i, (t, p, s) in enumerate(zip(targets, predictions, scores, strict=True))
        ],
        labels=list(LABELS) if task == "cb" else [],
    )


def cb(seed=0):
    draw = np.random.default_rng(seed)
    targets, predictions = draw.choice(LABELS, (2, 40)).tolist()
    return result_of("cb", (accuracy, macro_f1(LABELS)), targets, predictions)


def ende():
    targets = ["Das ist ein kleines Haus am See.", ["Guten Tag!", "Grüß Gott!"]]
    return result_of("ende", (Bleu(),), targets, ["Das ist ein Haus am See.", "Grüß Gott, Welt!"])


def run_in(directory, step=0):
    return EvalRun(
        directory=epath.Path(directory),
        step=step,
        checkpoint={"path": "/base", "hash": "ab", "origin": "base"},
        config="A = 1",
    )


def test_results_are_written_under_the_names_of_t5x(tmp_path):
    for step in (100, 200, 300):
        records.write(run_in(tmp_path, step), [cb(step), ende()], seeds={"shots": 0})
    # A run that is resumed from step 100 writes the later rows anew.
    records.forget_after(epath.Path(tmp_path), 100)
    records.write(run_in(tmp_path, 200), [cb(7)])
    folder = tmp_path / "inference_eval"
    assert {path.name for path in folder.iterdir()} == {
        *(f"{task}-{step:06}.jsonl" for task in ("cb", "ende") for step in (100, 200, 300)),
        "cb-000100.json",
        "cb-000200.json",
        "ende-000100.json",
        "cb-metrics.jsonl",
        "ende-metrics.jsonl",
    }
    summary = json.loads((folder / "ende-000100.json").read_text())
    assert summary["examples"] == 2
    assert summary["primary"] == "bleu"
    assert summary["step"] == 100
    assert summary["checkpoint"] == {"path": "/base", "hash": "ab", "origin": "base"}
    assert summary["prompt"] is None
    assert summary["config"] == "A = 1"
    assert summary["seeds"] == {"shots": 0}
    lines = [json.loads(line) for line in (folder / "cb-metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 100, **cb(100).metrics}, {"step": 200, **cb(7).metrics}]


def test_what_is_read_is_what_was_written(tmp_path):
    for place, step in (("a", 5), ("run/stage/suite_eval", 1_000_000)):
        records.write(run_in(tmp_path / place, step), [cb(), ende()], timings={"seconds": 1.5})
    found = list(records.find(epath.Path(tmp_path)))
    assert [(each.task, each.step) for each in found] == [
        ("cb", 5),
        ("ende", 5),
        ("cb", 1_000_000),
        ("ende", 1_000_000),
    ]
    for recorded, result in zip(found, (cb(), ende()), strict=False):
        as_json = json.loads(json.dumps(dataclasses.asdict(result)))
        assert dataclasses.asdict(recorded.result()) == as_json
    assert found[0].summary()["timings"] == {"seconds": 1.5}
    assert records.read(run_in(tmp_path / "a", 5), "cb") == found[0]
    assert records.read(run_in(tmp_path / "a", 6), "cb") is None
    other = dataclasses.replace(run_in(tmp_path / "a", 5), checkpoint={"hash": "cd"})
    assert records.read(other, "cb") is None
    lines = (tmp_path / "a/inference_eval/cb-000005.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a/inference_eval/cb-000005.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="holds 39 records, but cb-000005.json speaks of 40"):
        found[0].records()


def test_scores_are_computed_again_from_records_alone(tmp_path, capsys):
    records.write(run_in(tmp_path), [cb(), ende()])
    for recorded in records.find(epath.Path(tmp_path)):
        summary = recorded.summary()
        assert records.recomputed(summary, recorded.records()) == summary["metrics"]
    assert main.main(["score", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.count("as stated") == 4
    assert "bleu_13a" in said
    # One answer is changed: the accuracy moves by 2.5, and the command says so.
    path = tmp_path / "inference_eval" / "cb-000000.jsonl"
    lines = path.read_text().splitlines()
    first = json.loads(lines[0])
    first["prediction"] = "nothing" if first["score"] else first["target"]
    path.write_text("\n".join([json.dumps(first), *lines[1:], ""]))
    assert main.main(["score", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.count("but the summary states") == 2
    assert f"states {cb().metrics['accuracy']!r}" in said
    assert main.main(["score", str(tmp_path / "nowhere")]) == 2
    (tmp_path / "empty").mkdir()
    assert main.main(["score", str(tmp_path / "empty")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_every_record_has_its_own_score():
    result = cb()
    right = [100.0 * (r["target"] == r["prediction"]) for r in result.records]
    assert [record["score"] for record in result.records] == right
    assert 0 < ende().records[0]["score"] < 100

    def needs_two(targets, predictions):
        del predictions
        return {"pair": 1.0 / (len(targets) - 1)}

    assert records.example_scores(needs_two, ["a", "b"], ["a", "b"]) == [None, None]


def test_the_mean_is_that_of_the_primary_metrics():
    def scored(score):
        return TaskResult(task="a", metrics={"accuracy": score, "other": 1.0}, records=[])

    assert mean_score([scored(10.0), scored(40.0)]) == 25.0
    assert scored(10.0).score == 10.0
    assert scored(10.0).primary == "accuracy"
    nothing = TaskResult(task="c", metrics={}, records=[])
    assert nothing.primary is None
    assert np.isnan(nothing.score)
    assert np.isnan(mean_score([scored(1.0), nothing]))
