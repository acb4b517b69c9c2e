"""The suite asked while a model trains: what is left of it, and that training does not notice."""

import json

import pytest
import run_lab

from promot_t5x import cli

SUITE = """\
from __gin__ import dynamic_registration
from promot_t5x import evaluate
SUITE = @suite/evaluate.EvalConfig()
suite/evaluate.EvalConfig:
    mixture_or_task_name = 'run_pair'
    task_feature_lengths = {'inputs': 12, 'targets': 6}
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_lab.Lab(tmp_path_factory.mktemp("suite"))
    lab.write("suite.gin", SUITE)
    return lab


def words(lab, name, *files, **macros):
    macros = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
    return lab.words("train", "joint_stage", "joint", *files, **macros)


@pytest.fixture(scope="module")
def runs(lab):
    """(without the suite, with it): stages that train a model behind a prompt."""
    lab.write(
        "joint_stage.gin",
        "from __gin__ import dynamic_registration\nfrom promot_t5x import stages\n"
        "include 'runs/finetune.gin'\ninclude 'prompts/uniform.gin'\n"
        "stages.Stage.prompt = %PROMPT_INIT\n",
    )

    def command(name, *files, **macros):
        return [
            word.replace("runs/joint_stage.gin", "joint_stage.gin")
            for word in words(lab, name, *files, **macros)
        ]

    run_lab.succeed(command("plain"))
    out = run_lab.succeed(command("asked", "suite.gin", SUITE_EVAL_PERIOD=3))
    return lab.directory / "plain", lab.directory / "asked", out, command


def test_the_suite_is_asked_from_step_0_to_the_last(runs):
    _, asked, out, _ = runs
    folder = asked / "suite_eval" / "inference_eval"
    assert {path.name for path in folder.iterdir()} == {
        f"run_{task}{suffix}"
        for task in ("signs", "ends")
        for suffix in (
            "-metrics.jsonl",
            *(f"-{step:06}.{kind}" for step in (0, 3, 4) for kind in ("json", "jsonl")),
        )
    }
    rows = run_lab.json_lines(folder / "run_ends-metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 4]
    assert out.count("suite's mean score") == 3
    summary = json.loads((folder / "run_ends-000003.json").read_text())
    assert summary["prompt"] is None and summary["examples"] == 4
    assert "SUITE_EVAL_PERIOD = 3" in summary["config"]
    target = json.loads((asked / "inference_eval" / "run_signs-000004.json").read_text())
    assert target["prompt"]["origin"] == "stage train, step 4" and len(target["prompt"]["hash"]) > 8


def test_training_does_not_notice(runs):
    plain, asked, *_ = runs
    run_lab.assert_same_arrays(
        run_lab.checkpoint_arrays(asked / "checkpoint_4"),
        run_lab.checkpoint_arrays(plain / "checkpoint_4"),
    )


def test_scores_come_from_the_records(runs, capsys):
    _, asked, *_ = runs
    assert cli.main(["score", str(asked), f"--module={run_lab.TASKS}"]) == 0
    # Two steps of the target, three of the suite's two tasks.
    assert capsys.readouterr().out.count("as stated") == 8


def test_a_suite_without_a_period_and_a_period_without_a_suite_are_refused(runs):
    *_, command = runs
    done = run_lab.here(command("refused", "suite.gin"))
    assert done.status == 2 and "set SUITE_EVAL_PERIOD" in done.err
    done = run_lab.here(command("refused", SUITE_EVAL_PERIOD=3))
    assert done.status == 2 and "there is no SUITE to evaluate" in done.err
