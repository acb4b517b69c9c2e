"""A stage's own dropout, label smoothing and slices of splits, through the command line."""

import json

import pytest
import run_helpers

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return run_helpers.Lab(tmp_path_factory.mktemp("settings"))


def tune(lab, name, *more, **macros):
    given = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
    words = lab.words("train", "prompt_tune", "prompt", PROMPT_STEPS=2, **given)
    run_helpers.succeed([*words, *more])
    return run_helpers.losses(lab.directory / name)


def test_a_prompts_regularization_is_that_of_a_run_with_it_everywhere(lab):
    everywhere = tune(lab, "everywhere", DROPOUT_RATE=0.0, LABEL_SMOOTHING=0.0)
    shared = {"DROPOUT_RATE": 0.3, "LABEL_SMOOTHING": 0.2}
    own = tune(lab, "own", PROMPT_DROPOUT_RATE=0.0, PROMPT_LABEL_SMOOTHING=0.0, **shared)
    assert own == everywhere
    assert tune(lab, "shared", **shared) != everywhere


def test_a_checkpoint_is_chosen_on_rows_held_back_from_training(lab):
    # Named last, as the file says; the numbers are the command line's.
    file = "--gin_file=runs/held_back.gin"
    splits = {"TRAIN_SPLIT": "train[:75%]", "EVAL_SPLIT": "train[75%:]"}
    tune(lab, "held_back", file, EVAL_NUM_EXAMPLES=None, **splits)
    stage = lab.directory / "held_back"
    assert json.loads((stage / "stage.json").read_text())["selection_split"] == {
        "run_signs": "train[75%:]"
    }
    records = run_helpers.json_lines(stage / "inference_eval" / "run_signs-000002.jsonl")
    # Of 48 training rows the last twelve; row n asks for 7 n.
    assert [record["inputs"] for record in records] == [f"sign {7 * n}" for n in range(36, 48)]
    manifest = json.loads((stage / "checkpoint_2" / "manifest.json").read_text())
    (examples,) = manifest["metadata"]["data"]["examples"].values()
    assert examples["examples"] == 36
