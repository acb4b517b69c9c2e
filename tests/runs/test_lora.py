"""LoRA through the command line: trained, resumed, attached, removed, merged, and as stage one."""

import json

import numpy as np
import pytest
import run_helpers

from promot_t5x.network.lora import is_adapter, merged, parts_of

pytestmark = pytest.mark.slow

SETTINGS = {"LORA_RANK": 2, "LORA_ALPHA": 3, "LORA_LEARNING_RATE": 0.1}
# Adapters as a method of its own and as stage one, in one run, from random weights.
BOTH = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import promot
from promot_t5x.runs import stages
STAGES = [@lora/stages.Stage(), @behind_lora/stages.Stage(), @on_lora/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @lora/promot.Row(), @behind_lora/promot.Row(), @kept/promot.Row(),
        @twice/promot.Row(), @on_lora/promot.Row()]
LORA_STEPS = 4
LORA_EVAL_PERIOD = 2
# Adapters that train further while the suite is asked of them.
on_lora/stages.Stage:
    name = 'on_lora'
    base = 'stage_one'
    trainable = ['.*attention/value/kernel']
    suite_period = 4
kept/promot.Row:
    label = 'kept'
    stage = 'stage_one'
twice/promot.Row:
    label = 'twice'
    stage = 'stage_one'
    prompts = ['stage_one']
on_lora/promot.Row:
    label = 'on LoRA'
    stage = 'on_lora'
"""


INFER = """\
from __gin__ import dynamic_registration
from promot_t5x import decoding
TASK_FEATURE_LENGTHS = {'inputs': 16, 'targets': 6}
BATCH_SIZE = 8
DECODING = @decoding.Greedy()
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("lora"))
    lab.write("suite.gin", run_helpers.SUITE.format("run_ends"))
    lab.write("both.gin", BOTH)
    lab.write("infer.gin", INFER)
    return lab


@pytest.fixture(scope="module")
def base(lab):
    """A checkpoint whose words differ."""
    given = {"MODEL_DIR": lab.directory / "base", "TRAIN_STEPS": 2}
    run_helpers.succeed(lab.words("train", "pretrain", "train", **given))
    return lab.directory / "base" / "checkpoint_2"


def words(lab, base, name, **macros):
    given = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": base, **SETTINGS}
    return lab.words("train", "lora", "train", **{**given, **macros})


@pytest.fixture(scope="module")
def trained(lab, base):
    out = run_helpers.succeed(words(lab, base, "trained"))
    assert "12 arrays, 384 parameters from scratch: adapters (seed 0)" in out
    assert "384 parameters train, 12,528 are frozen" in out
    return lab.directory / "trained"


@pytest.fixture(scope="module")
def answers(lab, base, trained):
    """Of an evaluation with and without the adapter: by mode, the log-probabilities."""
    given = {"CHECKPOINT_PATH": base, "ADAPTER_FILE": trained, "PROMPT_MODE": "both"}
    place = lab.directory / "eval"
    run_helpers.succeed(lab.words("eval", "eval", "eval", EVAL_OUTPUT_DIR=place, **given))
    return {mode: log_probs(place / f"adapter_{mode}") for mode in ("kept", "removed")}


def log_probs(directory, task="run_signs"):
    (path,) = (directory / "inference_eval").glob(f"{task}-[0-9]*.jsonl")
    return [record["log_prob"] for record in run_helpers.json_lines(path)]


def asked(lab, checkpoint, name):
    place = lab.directory / name
    given = {"CHECKPOINT_PATH": checkpoint, "EVAL_OUTPUT_DIR": place}
    run_helpers.succeed(lab.words("eval", "eval", "eval", **given))
    return log_probs(place)


def test_a_checkpoint_holds_the_adapters_only(trained):
    arrays = run_helpers.trained(trained / "checkpoint_4")
    assert len(arrays) == 12
    assert all(map(is_adapter, arrays))
    assert sum(array.nbytes for array in arrays.values()) == 384 * 4
    assert all(np.abs(array).max() > 0 for array in arrays.values())
    out = run_helpers.succeed(["ckpt", "show", str(trained / "checkpoint_4")])
    assert "adapter: {'rank': 2, 'alpha': 3, " in out


def test_the_first_loss_is_that_of_full_fine_tuning_and_what_is_frozen_may_be_smaller(
    lab, base, trained
):
    given = {"MODEL_DIR": lab.directory / "full", "INITIAL_CHECKPOINT_PATH": base, "TRAIN_STEPS": 1}
    run_helpers.succeed(lab.words("train", "finetune", "train", **given, EVAL_PERIOD=1))
    full, found = (run_helpers.losses(place) for place in (lab.directory / "full", trained))
    assert found[0] == pytest.approx(full[0], rel=1e-6)
    before = run_helpers.tree(base)
    for dtype in ("bfloat16", "int8"):
        given = {"LORA_FROZEN_DTYPE": dtype, "PACK": "batch"}
        out = run_helpers.succeed(words(lab, base, dtype, **given))
        assert "384 parameters train, 12,528 are frozen" in out
        losses = run_helpers.losses(lab.directory / dtype)
        assert losses[0] != found[0] == pytest.approx(losses[0], rel=1e-2)
        held = run_helpers.checkpoint_arrays(lab.directory / dtype / "checkpoint_4")
        wanted = run_helpers.checkpoint_arrays(trained / "checkpoint_4")
        assert {p: (a.shape, a.dtype) for p, a in held.items()} == {
            p: (a.shape, a.dtype) for p, a in wanted.items()
        }
    assert run_helpers.tree(base) == before


def test_an_adapter_is_merged_into_int8(lab, base, trained, answers):
    given = {"CHECKPOINT_PATH": base, "ADAPTER_FILE": trained, "FROZEN_DTYPE": "int8"}
    place = lab.directory / "eval_int8"
    run_helpers.succeed(lab.words("eval", "eval", "eval", EVAL_OUTPUT_DIR=place, **given))
    found = log_probs(place)
    # Measured: 0.012 from the merged model in float32, and up to 4.4 from that without the adapter.
    assert np.abs(np.subtract(found, answers["kept"])).max() < 0.05
    assert np.abs(np.subtract(found, answers["removed"])).max() > 1


def test_a_run_that_was_stopped_goes_on_bit_for_bit(lab, base, trained):
    run_helpers.succeed(words(lab, base, "parts", TRAIN_STEPS=2))
    run_helpers.succeed(words(lab, base, "parts"))
    run_helpers.assert_same_arrays(
        *(
            run_helpers.checkpoint_arrays(p / "checkpoint_4")
            for p in (lab.directory / "parts", trained)
        )
    )


def test_an_adapter_is_attached_and_removed(lab, base, trained, answers):
    assert answers["removed"] == asked(lab, base, "plain")
    assert answers["kept"] != answers["removed"]
    given = {"CHECKPOINT_PATH": base, "INPUT_FILE": lab.directory / "in.txt"}
    (lab.directory / "in.txt").write_text("+ +\n- +\n")
    found = []
    for name, adapter in (("with", trained), ("without", None)):
        place = lab.directory / name
        run_helpers.succeed(
            lab.words(
                "infer", "infer", "infer", ADAPTER_FILE=adapter, INFER_OUTPUT_DIR=place, **given
            )
        )
        found.append([row["log_prob"] for row in run_helpers.json_lines(place / "answers.jsonl")])
    assert len(found[0]) == 2
    assert found[0] != found[1]


def test_merged_equals_attached_and_pefts_files_go_both_ways(lab, base, trained, answers):
    run_helpers.succeed(["convert", str(trained), str(lab.directory / "merged"), "--to", "promot"])
    whole = lab.directory / "merged" / "checkpoint_4"
    assert asked(lab, whole, "eval_merged") == pytest.approx(answers["kept"], rel=1e-5)
    before, parts = run_helpers.trained(base), run_helpers.trained(trained / "checkpoint_4")
    for path, array in run_helpers.trained(whole).items():
        a, b = parts_of(path)
        expected = merged(before[path], parts[a], parts[b], 1.5) if a in parts else before[path]
        assert array.tobytes() == expected.tobytes(), path

    peft = lab.directory / "peft"
    run_helpers.succeed(["convert", str(trained), str(peft), "--to", "peft"])
    said = json.loads((peft / "adapter_config.json").read_text())
    assert (said["peft_type"], said["r"], said["lora_alpha"]) == ("LORA", 2, 3.0)
    again = lab.directory / "again"
    run_helpers.succeed(
        ["convert", str(base), str(again), "--adapter", str(peft), "--to", "promot"]
    )
    run_helpers.assert_same_arrays(
        run_helpers.trained(again / "checkpoint_2"), run_helpers.trained(whole)
    )


@pytest.fixture(scope="module")
def promot(lab, base):
    given = {"MODEL_DIR": lab.directory / "promot", "INITIAL_CHECKPOINT_PATH": base, **SETTINGS}
    files = ("suite.gin", "both.gin")
    run_helpers.succeed(lab.words("promot", "lora_stage_one", "train", *files, **given))
    return lab.directory / "promot"


def test_stage_two_trains_behind_frozen_adapters_that_are_removed(promot):
    weights = run_helpers.trained(promot / "stage_two" / "checkpoint_4")
    assert len(weights) == 28
    assert not any(map(is_adapter, weights))
    rows = promot / "comparison"
    removed, pretrained = rows / "LoRA_removed", rows / "pretrained"
    assert log_probs(removed, "run_ends") == log_probs(pretrained, "run_ends")
    assert log_probs(removed) != log_probs(pretrained)
    assert log_probs(rows / "ProMoT_with_LoRA", "run_ends") != log_probs(pretrained, "run_ends")


def test_what_a_stage_trained_is_a_part_of_its_weights_once(promot):
    rows = promot / "comparison"
    assert log_probs(rows / "kept") == log_probs(rows / "twice") == log_probs(rows / "LoRA_removed")
    assert log_probs(rows / "kept", "run_ends") != log_probs(rows / "pretrained", "run_ends")
    # A stage on top of it, which trained value kernels alone, starts with the merged ones.
    record = next((rows / "on_LoRA" / "inference_eval").glob("run_ends-[0-9]*.json"))
    origin = json.loads(record.read_text())["checkpoint"]["origin"]
    assert "with the adapter of this run: stage stage_one, step" in origin
    (first,) = (promot / "on_lora" / "suite_eval" / "inference_eval").glob("run_ends-*0.jsonl")
    asked_first = [each["log_prob"] for each in run_helpers.json_lines(first)]
    assert asked_first == pytest.approx(log_probs(rows / "kept", "run_ends"), rel=1e-5)


@pytest.mark.parametrize(
    ("macros", "message"),
    [
        ({"LORA_KERNELS": ["querry"]}, "LoRA.kernels has 'querry', which matches none"),
        ({"LORA_RANK": 0}, "LoRA.rank must be a positive integer"),
    ],
)
def test_adapters_of_nothing_are_refused(lab, base, macros, message):
    done = run_helpers.here(words(lab, base, "no", **macros))
    assert done.status == 2
    assert message in done.err


def test_what_holds_no_adapter_is_refused(lab, base):
    given = {"CHECKPOINT_PATH": base, "EVAL_OUTPUT_DIR": lab.directory / "no_eval"}
    done = run_helpers.here(lab.words("eval", "eval", "eval", ADAPTER_FILE=base, **given))
    assert done.status == 2
    assert "holds no adapter: name a stage that trained one" in done.err
    for source in (base, lab.directory / "base"):
        done = run_helpers.here(["convert", str(source), str(lab.directory / "x"), "--to", "peft"])
        assert done.status == 2
        assert "holds no adapter" in done.err
