"""The suite asked while a model trains: what is left of it, and that training does not notice."""

import json
from pathlib import Path

import pytest
import run_helpers

from promot_t5x.cli import main
from promot_t5x.data.lazy import import_tensorflow

pytestmark = pytest.mark.slow

SUITE = """\
from __gin__ import dynamic_registration
from promot_t5x.evaluation import evaluator as evaluate
SUITE = @suite/evaluate.EvalConfig()
suite/evaluate.EvalConfig:
    mixture_or_task_name = 'run_pair'
    task_feature_lengths = {'inputs': 12, 'targets': 6}
"""


BEHIND_A_PROMPT = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import stages
include 'prompts/uniform.gin'
PROMPT_LENGTH = 4
stages.Stage.prompt = %PROMPT_INIT
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command line of a stage that trains a model behind a prompt."""
    lab = run_helpers.Lab(tmp_path_factory.mktemp("suite"))
    lab.write("suite.gin", SUITE)
    lab.write("behind.gin", BEHIND_A_PROMPT)

    def command(name, *files, **macros):
        macros = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
        return lab.words("train", "finetune", "train", "behind.gin", *files, **macros)

    return command


@pytest.fixture(scope="module")
def runs(command):
    """(directory without the suite, directory with it, what the latter's run said)."""
    run_helpers.succeed(command("plain"))
    words = command("asked", "suite.gin", SUITE_EVAL_PERIOD=3)
    out = run_helpers.succeed(words)
    (asked,) = (Path(w.split("'")[1]) for w in words if w.startswith("--gin.MODEL_DIR"))
    return asked.parent / "plain", asked, out


def test_the_suite_is_asked_from_step_0_to_the_last(runs):
    _, asked, out = runs
    folder = asked / "suite_eval" / "inference_eval"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        f"run_{task}{suffix}"
        for task in ("signs", "ends")
        for suffix in (
            "-metrics.jsonl",
            *(f"-{step:06}.{kind}" for step in (0, 3, 4) for kind in ("json", "jsonl")),
        )
    }
    rows = run_helpers.json_lines(folder / "run_ends-metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert out.count("suite's mean score") == 3
    summary = json.loads((folder / "run_ends-000003.json").read_text())
    assert summary["prompt"] is None
    assert summary["examples"] == 4
    assert "SUITE_EVAL_PERIOD = 3" in summary["config"]
    target = json.loads((asked / "inference_eval" / "run_signs-000004.json").read_text())
    assert target["prompt"]["origin"] == "this run: stage train, step 4"
    assert len(target["prompt"]["hash"]) > 8


@pytest.mark.parametrize(
    ("place", "tag", "steps"),
    [
        ("train", "learning_rate", [1, 2, 3, 4]),
        ("training_eval/run_signs", "loss", [2, 4]),
        ("inference_eval/run_signs", "eval/share_equal", [2, 4]),
        ("suite_eval/inference_eval/run_ends", "eval/share_equal", [0, 3, 4]),
    ],
)
def test_tensorboard_finds_every_score_where_t5x_users_look(runs, place, tag, steps):
    _, asked, _ = runs
    tf = import_tensorflow()
    found = []
    for path in (asked / place).glob("events.out.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            found += [event.step for value in event.summary.value if value.tag == tag]
    assert found == steps


def test_training_does_not_notice(runs):
    plain, asked, _ = runs
    run_helpers.assert_same_arrays(
        run_helpers.checkpoint_arrays(asked / "checkpoint_4"),
        run_helpers.checkpoint_arrays(plain / "checkpoint_4"),
    )


def test_scores_come_from_the_records(runs, capsys):
    _, asked, _ = runs
    assert main.main(["score", str(asked), f"--module={run_helpers.TASKS}"]) == 0
    # Two steps of the target, three of the suite's two tasks.
    assert capsys.readouterr().out.count("as stated") == 8


def test_a_suite_without_a_period_and_a_period_without_a_suite_are_refused(command):
    done = run_helpers.here(command("refused", "suite.gin"))
    assert done.status == 2
    assert "set SUITE_EVAL_PERIOD" in done.err
    done = run_helpers.here(command("refused", SUITE_EVAL_PERIOD=3))
    assert done.status == 2
    assert "there is no SUITE to evaluate" in done.err
