"""The likeliest first mistakes, each through the command line: one message that says what to do."""

import json
import os
import re
import subprocess
import sys

import pytest
import run_helpers

from promot_t5x.cli.main import main

pytestmark = pytest.mark.slow

MODEL, RUN = "--gin_file=demo/model.gin", "--gin_file=runs/finetune.gin"
TASK = "--gin.MIXTURE_OR_TASK_NAME='tiny_rte'"
LENGTHS = "--gin.TASK_FEATURE_LENGTHS={'inputs': 20, 'targets': 4}"
CHECKPOINT = "--gin.INITIAL_CHECKPOINT_PATH='tiny_world'"
DIRECTORY = "--gin.MODEL_DIR='run'"
GIVEN = (TASK, LENGTHS, CHECKPOINT, DIRECTORY)
COMPLETE = (MODEL, RUN, *GIVEN)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory, and the import path as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def refusal(capsys, command, *words):
    """The message with which a command line is refused, before anything is written."""
    before = sorted(os.listdir())
    assert main([command, *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    err = re.sub(r"^promot-t5x: devices: .*\n", "", err)  # which a start names first
    assert err.startswith("promot-t5x: error: ")
    assert "Traceback" not in err
    assert sorted(os.listdir()) == before
    return err.removeprefix("promot-t5x: error: ").rstrip("\n")


def test_no_model(capsys):
    message = refusal(capsys, "train", RUN)
    assert message.startswith("no model file was named, and none defines MODEL.")
    assert "\n  --gin_file=models/t5_1_1_small.gin --gin_file=runs/finetune.gin\n" in message
    assert "byt5, flan_t5, mt5, mt5_lm_adapted, t5_1_0, t5_1_1, t5_1_1_lm_adapted" in message
    assert message.endswith(
        "(--gin.NAME=VALUE): MODEL_DIR, MIXTURE_OR_TASK_NAME, TASK_FEATURE_LENGTHS, "
        "INITIAL_CHECKPOINT_PATH."
    )
    # What follows from it is not said: dropout that nothing uses, for one.
    assert "DROPOUT_RATE" not in message
    assert "problems" not in message


def test_an_architecture_in_place_of_a_model(capsys):
    message = refusal(capsys, "train", "--gin_file=models/mt5.gin", RUN, *GIVEN)
    assert message.startswith("the model has no size")
    assert "models/mt5_base.gin or models/mt5_large.gin" in message


def test_no_run_file(capsys):
    message = refusal(capsys, "train", MODEL, *GIVEN)
    assert message.startswith("no run file was named.")
    assert (
        "\n  promot-t5x train --gin_file=demo/model.gin --gin_file=runs/finetune.gin\n" in message
    )
    assert "runs/prompt_tune.gin" in message


def test_the_run_file_of_another_command(capsys):
    message = refusal(capsys, "train", MODEL, "--gin_file=runs/eval.gin", *GIVEN[:2])
    assert message.startswith(
        "demo/model.gin, runs/eval.gin configure `promot-t5x eval`, not train."
    )
    assert "runs/finetune.gin" in message


def test_no_pretrained_checkpoint(capsys):
    message = refusal(capsys, "train", MODEL, RUN, TASK, LENGTHS, DIRECTORY)
    assert re.match(r"INITIAL_CHECKPOINT_PATH must be given \(runs/stage.gin:\d+\): ", message)
    assert "None starts from random weights" in message
    assert message.endswith("Give it by --gin.INITIAL_CHECKPOINT_PATH=VALUE")


def test_a_pretrained_checkpoint_that_does_not_exist(capsys):
    message = refusal(capsys, "train", *COMPLETE, "--gin.INITIAL_CHECKPOINT_PATH='/no/where'")
    assert "/no/where does not exist" in message
    message = refusal(capsys, "train", *COMPLETE, "--gin.INITIAL_CHECKPOINT_PATH='t5_1_1_smal'")
    assert "Did you mean 't5_1_1_small'?" in message


def test_no_directory_for_the_run(capsys):
    message = refusal(capsys, "train", MODEL, RUN, TASK, LENGTHS, CHECKPOINT)
    assert message.startswith("MODEL_DIR must be given")
    assert "gs://" in message


@pytest.mark.parametrize("command", ["train", "promot"])
def test_everything_that_is_missing_is_named_at_once(command, capsys):
    run = {"train": RUN, "promot": "--gin_file=runs/promot.gin"}[command]
    message = refusal(capsys, command, MODEL, run)
    assert message.startswith("the configuration has 4 problems:")
    assert re.findall(r"^- (\w+) must be given", message, re.MULTILINE) == [
        "MODEL_DIR",
        "MIXTURE_OR_TASK_NAME",
        "TASK_FEATURE_LENGTHS",
        "INITIAL_CHECKPOINT_PATH",
    ]


def test_the_model_after_the_run_file(capsys):
    message = refusal(capsys, "train", RUN, MODEL, *GIVEN)
    assert "models/model.gin is read after runs/stage.gin and takes back" in message
    assert "LABEL_SMOOTHING (runs/stage.gin:" in message
    assert message.endswith("Name demo/model.gin before runs/finetune.gin.")
    # Dropout from the command line hides the one half of it, and not the other.
    message = refusal(capsys, "train", RUN, MODEL, *GIVEN, "--gin.DROPOUT_RATE=0.1")
    assert "LABEL_SMOOTHING" in message
    assert "DROPOUT_RATE" not in message


def test_a_file_of_ones_own_before_the_run_file(here, capsys):
    (here / "mine.gin").write_text(
        "MIXTURE_OR_TASK_NAME = 'tiny_rte'\nBATCH_SIZE = 8\nTRAIN_STEPS = 1000\n"
    )
    words = [MODEL, "--gin_file=mine.gin", RUN, LENGTHS, CHECKPOINT, DIRECTORY]
    message = refusal(capsys, "train", *words)
    assert message.startswith("Later gin files override earlier ones, and runs/stage.gin is read")
    assert "MIXTURE_OR_TASK_NAME (mine.gin:1 says 'tiny_rte', runs/stage.gin:" in message
    assert "BATCH_SIZE (mine.gin:2 says 8, runs/stage.gin:" in message
    assert "TRAIN_STEPS" not in message  # both say the same
    assert message.endswith("Name mine.gin after runs/finetune.gin.")
    # In the other order, as T5X has it, it holds; so does the command line.
    assert main(["train", MODEL, RUN, "--gin_file=mine.gin", *words[3:], "--dry_run"]) == 0
    assert "BATCH_SIZE = 8  # mine.gin:2\n" in capsys.readouterr().out
    given = ["--gin.BATCH_SIZE=4", TASK]
    assert main(["train", *words, *given, "--dry_run"]) == 0
    assert "BATCH_SIZE = 4  # command line\n" in capsys.readouterr().out


def test_a_value_of_ones_own_before_an_include(here, capsys):
    (here / "mine.gin").write_text(
        "include 'demo/model.gin'\nBATCH_SIZE = 8\ninclude 'runs/finetune.gin'\n"
    )
    message = refusal(capsys, "train", "--gin_file=mine.gin", *GIVEN)
    assert message.endswith("In mine.gin, include first and set values after it.")


def test_a_file_that_is_named_for_what_it_changes_says_so(here, capsys):
    (here / "mine.gin").write_text("include 'demo/model.gin'\nDIALECT = 'span_corruption'\n")
    files = ["--gin_file=mine.gin", "--gin_file=models/byte_vocabulary.gin", RUN]
    assert main(["train", *files, *GIVEN, "--dry_run"]) == 0
    assert re.fullmatch(
        r"models/byte_vocabulary.gin:\d+: DIALECT = 'lm' overrides 'span_corruption' of "
        r"mine.gin:2\n",
        capsys.readouterr().err,
    )


def test_quotes_forgotten(capsys):
    message = refusal(capsys, "train", MODEL, RUN, "--gin.MIXTURE_OR_TASK_NAME=tiny_rte")
    assert "--gin.MIXTURE_OR_TASK_NAME='\"tiny_rte\"'" in message


def test_a_task_misspelled(capsys):
    wrong = "--gin.MIXTURE_OR_TASK_NAME='tiny_rt'"
    for dry in ([], ["--dry_run"]):
        message = refusal(capsys, "train", *COMPLETE, wrong, *dry)
        assert "No task or mixture is named 'tiny_rt' (MIXTURE_OR_TASK_NAME)" in message
        assert "Did you mean 'tiny_rte'?" in message


def test_an_unknown_macro(capsys):
    message = refusal(capsys, "train", *COMPLETE, "--gin.LEARNINGRATE=0.1")
    assert "nothing in this run uses the macro LEARNINGRATE" in message
    assert "Did you mean 'LEARNING_RATE'?" in message


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/such.model", "there is no such file."),
        ("damaged.model", "cannot be read: "),
        ("gs://bucket", "cannot be read: GCS path doesn't contain an object name"),
    ],
)
def test_a_vocabulary_out_of_reach(here, capsys, path, said):
    (here / "damaged.model").write_text("not SentencePiece")
    words = ["--gin_file=models/t5_1_1_small.gin", RUN, *GIVEN]
    binding = f"--gin_bindings=vocabularies.sentencepiece.path = {path!r}"
    message = refusal(capsys, "train", *words, binding)
    assert message.startswith(f"vocabularies.sentencepiece.path = {path!r}")
    assert said in message
    assert "--gin_bindings='vocabularies.sentencepiece.path = " in message
    assert "models/byte_vocabulary.gin" in message
    assert ("curl -O https://storage.googleapis.com/bucket" in message) == ("gs:" in path)


def test_data_that_are_not_prepared(here):
    words = [
        *(MODEL, "--gin_file=models/byte_vocabulary.gin", RUN, *GIVEN),
        *("--gin.MIXTURE_OR_TASK_NAME='rte'", "--gin.INITIAL_CHECKPOINT_PATH=None"),
        *("--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 8}", f"--tfds_data_dir={here}"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "promot_t5x", "train", *words], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"`promot-t5x tasks prepare rte --tfds_data_dir={here}`" in done.stderr


# ------------------------------------------------ values: a dry run refuses what a start refuses

VALUES = {
    "TASK_FEATURE_LENGTHS=None": 'as in {"inputs": 512, "targets": 8}',
    "TASK_FEATURE_LENGTHS={'inputs': 0, 'targets': 4}": "must be a positive integer, got 0",
    "RANDOM_SEED=4294967296": "a whole number from 0 to 2**31 - 1, got 4294967296",
    "RANDOM_SEED=-1": "a whole number from 0 to 2**31 - 1, got -1",
    "LEARNING_RATE=-0.1": "a finite number, not below 0, got -0.1",
    "LEARNING_RATE='0.1'": "a finite number, not below 0, got '0.1'",
    "LEARNING_RATE=1e999": "got inf",
    "DROPOUT_RATE=1.5": "must be in [0, 1)",
    "DROPOUT_RATE='none'": "a value of T5Config is wrong",
    "BATCH_SIZE=True": "BATCH_SIZE must be a positive integer, got True",
    "DECODING=@decoding.Greedy": "write @…Greedy() with the parentheses",
    "DECODING='greedy'": "as in @decoding.Greedy()",
    "DECODING=@decoding.Sample()": "Did you mean 'Sampling'?",
    "INITIAL_CHECKPOINT_PATH=3": "INITIAL_CHECKPOINT_PATH = 3 is no path",
    "MIXTURE_OR_TASK_NAME=7": "MIXTURE_OR_TASK_NAME = 7 is no name",
    "MODEL_DIR=None": "MODEL_DIR = None is no path",
    "MODEL_DIR=''": "MODEL_DIR = '' is empty",
    "MODEL_DIR='gs:/bucket/run'": "write gs://bucket/directory",
    "MODEL_DIR='$HOME/run'": "$HOME is the name of a variable",
    "MODEL_DIR='https://host/run'": "not https://",
}
# One process for all: here, arguments of another type than a signature's are errors of the tests.
ALL = """
import contextlib, io, json, sys
from promot_t5x.cli.main import main
for words in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        status = main(words)
    print(json.dumps([status, err.getvalue()]))
"""


def test_values_that_no_run_can_have(here):
    lines = [["train", *COMPLETE, f"--gin.{value}", "--dry_run"] for value in VALUES]
    done = subprocess.run(
        [sys.executable, "-c", ALL], input=json.dumps(lines), capture_output=True, text=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(VALUES), done.stderr
    for (value, said), (status, err) in zip(VALUES.items(), results, strict=True):
        assert status == 2, value
        assert err.startswith("promot-t5x: error: "), value
        assert said in err, value
    assert os.listdir(here) == []


def test_a_start_refuses_them_too(capsys):
    assert "got -0.1" in refusal(capsys, "train", *COMPLETE, "--gin.LEARNING_RATE=-0.1")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("['encoder/layer_0/.*']", "The nearest is 'encoder/layer"),
        ("['encoder/prompt/.*']", "A prompt exists only where PROMPT_LENGTH and NUM_PROMPTS"),
        ("['(']", "which is no regular expression"),
        ("'encoder/.*'", "must be a list of patterns"),
    ],
)
def test_patterns_of_what_trains(capsys, pattern, said):
    binding = f"--gin_bindings=stages.Stage.trainable = {pattern}"
    message = refusal(capsys, "train", *COMPLETE, binding, "--dry_run")
    assert said in message
    assert "TRAINABLE" not in message  # which is no macro


def test_the_other_commands_check_their_values_too(capsys):
    seeds = "--gin.SEEDS=[0, 4294967296]"
    words = [MODEL, "--gin_file=runs/promot.gin", *GIVEN, "--dry_run"]
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 120, 'targets': 4}"
    message = refusal(capsys, "promot", *words, lengths, seeds)
    assert "give whole numbers from 0 to 2**31 - 1" in message
    words = [MODEL, "--gin_file=runs/eval.gin", TASK, LENGTHS, "--gin.CHECKPOINT_PATH='x'"]
    message = refusal(capsys, "eval", *words, "--gin.EVAL_OUTPUT_DIR=''", "--dry_run")
    assert message.startswith("EVAL_OUTPUT_DIR = '' is empty")
    words = [MODEL, "--gin_file=runs/infer.gin", LENGTHS, "--gin.CHECKPOINT_PATH='x'"]
    words += ["--gin.INPUT_FILE='-'", "--gin.INFER_OUTPUT_DIR='out'", "--dry_run"]
    message = refusal(capsys, "infer", *words, "--gin.DECODING=@decoding.Likelihood()")
    assert message.startswith("DECODING = Likelihood compares given answers")


def test_a_directory_that_cannot_be_written(here, capsys):
    (here / "file").write_text("")
    message = refusal(capsys, "train", *COMPLETE, "--gin.MODEL_DIR='file/run'")
    assert message.startswith("MODEL_DIR = 'file/run' cannot be written (Not a directory)")
    message = refusal(capsys, "train", *COMPLETE, "--gin.MODEL_DIR='/proc/run'")
    assert message.startswith("MODEL_DIR = '/proc/run' cannot be written")


def test_a_home_directory_is_one_place(here, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HOME", str(here / "home"))
    (here / "home").mkdir()
    (here / "home/mine.gin").write_text("BATCH_SIZE = 16\n")
    lab = run_helpers.Lab(tmp_path_factory.mktemp("lab"))
    words = lab.words("train", "pretrain", "train", MODEL_DIR="~/run", TRAIN_STEPS=1)
    run_helpers.succeed([*words, "--gin_file=~/mine.gin"])
    assert sorted(os.listdir(here)) == ["home"]
    assert (here / "home/run/stage.json").exists()
    assert "BATCH_SIZE = 16" in (here / "home/run/config.gin").read_text()
