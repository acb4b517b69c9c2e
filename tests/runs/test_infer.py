"""`promot-t5x infer`: what goes in comes out answered, in its order, whatever interrupts it."""

import io
import json

import pytest
import run_helpers

from promot_t5x.cli import main
from promot_t5x.evaluation import journal
from promot_t5x.tasks.tiny.episodes import target_rows

pytestmark = pytest.mark.slow


def words(directory, source, *more, **macros):
    macros = {
        "CHECKPOINT_PATH": "tiny_world",
        "INFER_OUTPUT_DIR": directory,
        "INPUT_FILE": str(source),
        "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 6},
        "BATCH_SIZE": 8,
        **macros,
    }
    given = [f"--gin.{name}={run_helpers.gin_value(value)}" for name, value in macros.items()]
    return ["infer", "--gin_file=demo/model.gin", "--gin_file=runs/infer.gin", *more, *given]


@pytest.fixture(scope="module")
def questions():
    return list(target_rows("entailment", 200, split="validation")["inputs"][:40])


@pytest.fixture(scope="module")
def place(questions, tmp_path_factory):
    directory = tmp_path_factory.mktemp("infer")
    (directory / "ask.txt").write_text("\n".join(questions) + "\n")
    rows = [{"number": i, "inputs": text} for i, text in enumerate(questions)]
    (directory / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


@pytest.fixture(scope="module")
def answered(place):
    """The lines that a JSONL file's answers have."""
    out = run_helpers.succeed(words(place / "straight", place / "ask.jsonl"))
    assert "40 answers are in" in out
    return run_helpers.json_lines(place / "straight" / "answers.jsonl")


def test_weights_in_int8_answer_likewise(place, answered):
    run_helpers.succeed(words(place / "int8", place / "ask.jsonl", FROZEN_DTYPE="int8"))
    lines = run_helpers.json_lines(place / "int8" / "answers.jsonl")
    changes = [a["log_prob"] - b["log_prob"] for a, b in zip(answered, lines, strict=True)]
    assert 0 < max(map(abs, changes)) < 0.3


def test_a_line_comes_out_for_each_that_went_in(answered, questions):
    assert [line["number"] for line in answered] == list(range(40))
    assert [line["inputs"] for line in answered] == questions
    for line in answered:
        assert list(line) == ["number", "inputs", "output", "prediction", "log_prob"]
        assert line["prediction"] == line["output"].strip()
        assert line["log_prob"] < 0
    assert len({line["output"] for line in answered}) > 1


def test_text_and_standard_input_are_answered_alike(place, answered, monkeypatch):
    wanted = [{k: v for k, v in line.items() if k != "number"} for line in answered]
    run_helpers.succeed(words(place / "text", place / "ask.txt"))
    assert run_helpers.json_lines(place / "text" / "answers.jsonl") == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO((place / "ask.jsonl").read_text()))
    out = run_helpers.succeed(words(None, "-"))
    assert [json.loads(line) for line in out.splitlines()] == answered


def test_an_interrupted_run_goes_on_where_it_was(place, answered, monkeypatch):
    add, patience = journal.Journal.add, iter(range(2))

    def interrupted(self, batch, answers):
        if next(patience, None) is None:
            raise KeyboardInterrupt
        add(self, batch, answers)

    command = words(place / "again", place / "ask.jsonl")
    with monkeypatch.context() as patched:
        patched.setattr(journal.Journal, "add", interrupted)
        assert run_helpers.here(command).status == main.EXIT_INTERRUPTED
    assert not (place / "again" / "answers.jsonl").exists()
    kept = (place / "again" / "answers.jsonl.partial").read_text()
    assert kept.count("\n") == 3
    run_helpers.succeed(command)
    assert run_helpers.json_lines(place / "again" / "answers.jsonl") == answered
    assert not (place / "again" / "answers.jsonl.partial").exists()


def test_every_hypothesis_is_given_if_asked(place, answered):
    (place / "few.txt").write_text("\n".join(line["inputs"] for line in answered[:3]))
    run_helpers.succeed(words(place / "all", place / "few.txt", ALL_DECODES=True))
    for line, wanted in zip(
        run_helpers.json_lines(place / "all/answers.jsonl"), answered, strict=False
    ):
        assert line["output"] == wanted["output"]
        assert len(line["decodes"]) == 4
        assert line["decodes"][0]["log_prob"] == line["log_prob"]
        log_probs = [decode["log_prob"] for decode in line["decodes"]]
        assert log_probs == sorted(log_probs, reverse=True)


def test_long_inputs_are_named_and_cut_only_if_asked(place, questions):
    short, long = "is it so ?", " ".join([questions[0]] * 7)
    (place / "long.txt").write_text("\n".join([short, long, short, long]))
    done = run_helpers.here(words(place / "long", place / "long.txt"))
    assert done.status == 2
    assert "2 of 4 inputs have more tokens" in done.err
    assert "LONG_INPUTS = 'cut'" in done.err
    assert "2 (" in done.err
    assert "4 (" in done.err
    assert not (place / "long").exists()
    run_helpers.succeed(words(place / "long", place / "long.txt", LONG_INPUTS="cut"))
    lines = run_helpers.json_lines(place / "long" / "answers.jsonl")
    assert [line.get("inputs_cut", False) for line in lines] == [False, True, False, True]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"inputs": "a"}\n{"inputs": 3}\n', "line 2 is no object with a text field 'inputs'"),
        ('{"inputs": "a"}\nb\n', "line 2 is not JSON"),
        ('{"inputs": "a", "output": "b"}\n', "has a field 'output', which is what an answer is"),
        ("", "holds no inputs"),
        (None, "there is no such file"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(content, said, place, tmp_path):
    if content is not None:
        (tmp_path / "bad.jsonl").write_text(content)
    done = run_helpers.here(words(tmp_path / "out", tmp_path / "bad.jsonl"))
    assert done.status == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["RankClassification", "Likelihood"])
def test_methods_that_need_a_tasks_answers_are_refused(method, place, tmp_path):
    command = words(tmp_path / "out", place / "ask.txt")
    done = run_helpers.here([*command, f"--gin.DECODING=@decoding.{method}()"])
    assert done.status == 2
    assert f"DECODING = {method}" in done.err
    assert "takes decoding.Greedy" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()
