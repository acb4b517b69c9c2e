"""Bad input: exit status 2, one message that names the value and the mend, nothing written."""

import json

import numpy as np
import pytest
import run_helpers

pytestmark = pytest.mark.slow

LATER_STAGE = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import stages
prompt_tuning/stages.Stage.base = 'stage_two'
"""
# Tasks whose training rows are in order, and whose validation fails: in a row, or in the metric.
FAILING_LATE = """\
import pathlib
from promot_t5x.tasks import jsonl, register, text_task

HERE = pathlib.Path(__file__).parent
TRAIN, LATE = str(HERE / "late_train.jsonl"), str(HERE / "late_validation.jsonl")

def fussy(targets, predictions):
    return {{"fussy": 100.0 / sum(target == "maybe" for target in targets)}}

SETTINGS = {{"inputs": "{{q}}?", "target": "{{label}}", "labels": ["no", "yes"]}}
SOURCES = {{"late_row": jsonl(train=TRAIN, validation=LATE), "late_metric": jsonl(train=TRAIN,
           validation=TRAIN)}}
METRICS = {{"late_row": None, "late_metric": [fussy]}}
register(text_task(name="{name}", source=SOURCES["{task}"], metrics=METRICS["{task}"], **SETTINGS))
"""
OTHER_PROMPT = "include 'prompts/from_file.gin'\nPROMPT_LENGTH = 4\n"


@pytest.fixture
def lab(tmp_path):
    lab = run_helpers.Lab(tmp_path)
    lab.write("later_stage.gin", LATER_STAGE)
    lab.write("prompt_file.gin", OTHER_PROMPT)
    np.save(tmp_path / "prompt.npy", np.zeros((3, 16), np.float32))
    return lab


def command(lab, *files, **macros):
    given = {"MODEL_DIR": lab.directory / "run", "INITIAL_CHECKPOINT_PATH": None, **macros}
    return lab.words("promot", "promot", "prompt", *files, **given)


# Macros (and more files) of a run that is otherwise in order -> what the message must say.
CASES = {
    "unknown_task": ({"MIXTURE_OR_TASK_NAME": "run_sings"}, ["'run_sings'", "mean 'run_signs'?"]),
    "unknown_split": (
        {"EVAL_SPLIT": "validaton"},
        ["'run_signs'", "'validaton'", "mean 'validation'?"],
    ),
    "unknown_module": (
        {"MIXTURE_OR_TASK_MODULE": "nowhere.tasks"},
        ["MIXTURE_OR_TASK_MODULE 'nowhere.tasks'", "or the path of a .py file"],
    ),
    "misspelled_macro": ({"BATCHSIZE": 8}, ["command line", "BATCHSIZE", "mean 'BATCH_SIZE'?"]),
    "misspelled_feature": (
        {"TASK_FEATURE_LENGTHS": {"input": 16, "targets": 6}},
        ["TASK_FEATURE_LENGTHS", "'input'", "mean 'inputs'?"],
    ),
    "missing_feature": (
        {"TASK_FEATURE_LENGTHS": {"inputs": 16}},
        ["TASK_FEATURE_LENGTHS", "{'inputs': 16}", "add", "'targets'"],
    ),
    "missing_checkpoint": (
        {"INITIAL_CHECKPOINT_PATH": "/nowhere/checkpoint_7"},
        ["/nowhere/checkpoint_7 does not exist", "checkpoint_<step>"],
    ),
    "misspelled_base": (
        {"INITIAL_CHECKPOINT_PATH": "tiny_wrold"},
        ["'tiny_wrold'", "mean 'tiny_world'?"],
    ),
    "prompt_too_long": (
        {"PROMPT_LENGTH": 16},
        ["PROMPT_LENGTH = 16", "TASK_FEATURE_LENGTHS['inputs'] = 16"],
    ),
    "mesh_does_not_divide_batch": (
        {"BATCH_SIZE": 12},
        ["BATCH_SIZE = 12", "8 devices", "use 16 or 8"],
    ),
    "mesh_does_not_divide_questions": (
        {"EVAL_BATCH_SIZE": 12},
        ["batch_size = 12", "multiple of 8"],
    ),
    "mesh_does_not_divide_model": (
        {"NUM_PARTITIONS": 8},
        ["num_partitions", "'heads' has size 2", "divides 2"],
    ),
    "no_such_mesh": ({"NUM_PARTITIONS": 3}, ["num_partitions = 3", "divisor of 8"]),
    "other_vocabulary": (
        {"MIXTURE_OR_TASK_NAME": "run_other_vocabulary"},
        ["'run_other_vocabulary'", "(size 264)", "(size 384)", "set VOCABULARY to the task's"],
    ),
    "embedding_too_small": (
        {"NUM_EMBEDDINGS": 100},
        ["384 ids", "NUM_EMBEDDINGS = 100", "raise NUM_EMBEDDINGS"],
    ),
    "too_few_prompts": (
        {"MIXTURE_OR_TASK_NAME": "run_pair"},
        ["'run_pair' has 2 tasks", "NUM_PROMPTS = 1", "set NUM_PROMPTS = 2"],
    ),
    "no_probability": (
        {"PROMPT_DROPOUT_RATE": 1.5},
        ["stage 'stage_one'", "dropout_rate = 1.5", "in [0, 1)"],
    ),
    "nothing_to_quantize": (
        {"FROZEN_DTYPE": "int8"},
        ["stage 'stage_two'", "'int8'", "none is frozen where ['model'] trains", "at 'float32'"],
    ),
    "unknown_storage": ({"PROMPT_FROZEN_DTYPE": "int4"}, ["frozen_dtype", "'int4'", "or 'int8'"]),
    "unknown_ties": ({"BEST_TIES": "lost"}, ["best_ties", "'lost'", "mean 'loss'?"]),
    "no_slice": ({"EVAL_SPLIT": "validation[3]"}, ["'validation[3]' is no slice", "'train[:100]'"]),
    "empty_batch": ({"BATCH_SIZE": 0}, ["BATCH_SIZE", "positive integer, got 0"]),
    "no_questions": ({"EVAL_NUM_EXAMPLES": 0}, ["num_examples", "positive integer, got 0"]),
    "unknown_normalizer": (
        {"LOSS_NORMALIZING_FACTOR": "NUM_REAL_TARGETS"},
        ["'NUM_REAL_TARGETS'", "mean 'NUM_REAL_TARGET_TOKENS'?"],
    ),
}


def messages(done):
    """The lines on stderr but the one that names the devices."""
    return [line for line in done.err.splitlines() if not line.startswith("promot-t5x: devices: ")]


def assert_refused(done, wanted):
    """Exit status 2 and nothing but one message, which says all of `wanted`."""
    assert done.status == 2, done
    assert done.out == ""
    assert messages(done)[0].startswith("promot-t5x: error: ")
    assert "Traceback" not in done.err
    assert "In call to configurable" not in done.err
    for words in wanted:
        assert words in done.err, (words, done.err)


@pytest.mark.parametrize("case", CASES)
def test_is_refused_before_anything_is_written(lab, case):
    macros, wanted = CASES[case]
    before = run_helpers.tree(lab.directory)
    done = run_helpers.here(command(lab, **macros), devices=8)
    assert_refused(done, wanted)
    assert len(messages(done)) == 1
    assert run_helpers.tree(lab.directory) == before
    assert not (lab.directory / "run").exists()


def test_a_task_is_in_the_target_or_in_the_suite(lab):
    lab.write("suite.gin", run_helpers.SUITE.format("run_ends"))
    done = run_helpers.here(command(lab, "suite.gin", MIXTURE_OR_TASK_NAME="run_ends"))
    assert_refused(done, ["'run_ends' twice", "leave it out of one"])


def test_unused_binding(lab):
    words = [*command(lab), "--gin_bindings=decoding.BeamSearch.alpha = 0.1"]
    assert_refused(run_helpers.here(words), ["decoding.BeamSearch.alpha", "never calls"])
    assert not (lab.directory / "run").exists()


def test_prompt_file_of_another_shape(lab):
    path = lab.directory / "prompt.npy"
    done = run_helpers.here(command(lab, "prompt_file.gin", PROMPT_FILE=path))
    assert_refused(done, [str(path), "[1, 3, 16]", "[1, 4, 16]", "set NUM_PROMPTS and"])
    assert not (lab.directory / "run").exists()


def test_missing_checkpoint_of_an_evaluation(lab):
    path, out = lab.directory / "checkpoint_1", lab.directory / "answers"
    macros = {"CHECKPOINT_PATH": path, "EVAL_OUTPUT_DIR": out}
    assert_refused(
        run_helpers.here(lab.words("eval", "eval", "eval", **macros)), [f"{path} does not"]
    )
    assert not out.exists()


def test_stage_that_needs_a_later_one(lab):
    done = run_helpers.here(command(lab, "later_stage.gin"))
    assert_refused(done, ["base = 'stage_two'", "runs later", "list it before"])
    assert not (lab.directory / "run").exists()


def test_model_dir_of_another_run(lab):
    directory = lab.directory / "run"
    printed = run_helpers.here([*command(lab, LEARNING_RATE=0.25), "--dry_run"])
    assert printed.status == 0
    assert not directory.exists()
    directory.mkdir()
    (directory / "config.gin").write_text(printed.out)
    before = run_helpers.tree(directory)
    done = run_helpers.here(command(lab, LEARNING_RATE=0.5))
    assert_refused(done, [str(directory), "LEARNING_RATE: was 0.25, now 0.5", "MODEL_DIR of its"])
    assert run_helpers.tree(directory) == before


@pytest.mark.parametrize("damage", [b"from promot_t5x import n%twork\n", b"A = '\xff'\n"])
def test_model_dir_whose_configuration_is_damaged(lab, damage):
    path = lab.directory / "run" / "config.gin"
    path.parent.mkdir()
    path.write_bytes(damage)
    done = run_helpers.here(command(lab))
    assert_refused(
        done, [f"{path}, the configuration of the run", "is damaged", "remove that file"]
    )
    assert path.read_bytes() == damage


def test_model_dir_that_is_a_file(lab):
    path = lab.write("notes.txt", "mine")
    done = run_helpers.here(command(lab, MODEL_DIR=path))
    assert_refused(done, [str(path), "is a file", "name a directory"])
    assert path.read_text() == "mine"


@pytest.mark.parametrize("place", ["target", "suite"])
@pytest.mark.parametrize(
    ("task", "wanted"),
    [
        ("late_row", ["late_row", "'validation'", "label 2 is none of no, yes", "field 'label'"]),
        ("late_metric", ["late_metric", "'validation'", "ZeroDivisionError", "tasks check"]),
    ],
)
def test_what_validation_and_suite_ask_is_read_before_step_1(lab, task, wanted, place):
    rows = [json.dumps({"q": n, "label": n % 2}) for n in range(32)]
    lab.write("late_train.jsonl", "\n".join(rows))
    lab.write("late_validation.jsonl", "\n".join([*rows[:2], '{"q": 2, "label": 2}', *rows[3:]]))
    name = f"{task}_of_{place}"  # modules and tasks are known to the whole process
    module = lab.write(f"{name}.py", FAILING_LATE.format(name=name, task=task))
    if place == "target":
        words = command(lab, MIXTURE_OR_TASK_MODULE=module, MIXTURE_OR_TASK_NAME=name)
    else:
        lab.write("suite.gin", run_helpers.SUITE.format(name))
        words = command(lab, "suite.gin")
        words.append(f"--gin_bindings=suite/evaluate.EvalConfig.module = '{module}'")
    done = run_helpers.here(words)
    assert done.status == 2, done
    assert "Traceback" not in done.err
    assert len(messages(done)) == 1
    for said in wanted:
        assert said in messages(done)[0]
    assert not list((lab.directory / "run").rglob("checkpoint_*"))
    assert "step compiled" not in done.out


def test_processes_end_with_status_2_and_one_line(lab):
    """As the shell sees it: the native libraries' chatter is no part of stderr either."""
    text_for_number = {"TASK_FEATURE_LENGTHS": {"inputs": "16", "targets": 6}}
    cases = [
        (1, text_for_number, ["TASK_FEATURE_LENGTHS", "'16'", "positive integer"]),
        (8, *CASES["mesh_does_not_divide_batch"]),
    ]
    for devices, macros, wanted in cases:
        done = run_helpers.process(command(lab, **macros), devices=devices, cwd=lab.directory)
        assert_refused(done, wanted)
        assert len(messages(done)) == 1, done.err
        assert not (lab.directory / "run").exists()
