"""Every shipped run file, run to its end on a tiny network: what it trains and what it leaves."""

import json

import numpy as np
import pytest
import run_helpers

from promot_t5x.checkpoints import hashing, prompt_file
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.distributed import partitioning
from promot_t5x.training import state

pytestmark = pytest.mark.slow

SMALL_PARAMETERS = 76_961_152  # T5 1.1 small
SMALL_PROMPT = 100 * 512
# The settings that a run file takes, where it has no stage of prompt tuning.
SETTINGS = {"finetune": "train"} | dict.fromkeys(
    ("joint", "fixed_random_prompt", "stage_two"), "joint"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("configs"))
    lab.write("suite.gin", run_helpers.SUITE.format("run_ends"))
    lab.write("tiny_suite.gin", run_helpers.SUITE.format("tiny_icl_1shot"))
    lab.write("two_stages.gin", run_helpers.TWO_STAGES)
    return lab


@pytest.fixture(scope="module")
def base(lab):
    """The checkpoint that `runs/pretrain.gin` leaves."""
    directory = lab.directory / "base"
    out = run_helpers.succeed(lab.words("train", "pretrain", "train", MODEL_DIR=directory))
    assert "28 arrays, 12,528 parameters from scratch (seed 0)" in out
    return chosen(directory)


def command(lab, base, verb, run, *files, name, **macros):
    macros = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": base, **macros}
    return lab.words(verb, run, SETTINGS.get(run, "prompt"), *files, **macros)


@pytest.fixture(scope="module")
def promot_words(lab, base):
    return command(lab, base, "promot", "promot", "suite.gin", name="promot")


@pytest.fixture(scope="module")
def promot_out(promot_words):
    return run_helpers.succeed(promot_words)


@pytest.fixture(scope="module")
def promot(lab, promot_out):
    return lab.directory / "promot"


def chosen(stage):
    """The checkpoint that a finished stage has chosen."""
    step = json.loads((stage / "stage.json").read_text())["step"]
    return stage / f"checkpoint_{step}"


def records(directory, task):
    """What the only step asked of a task left."""
    (path,) = (directory / "inference_eval").glob(f"{task}-[0-9]*.jsonl")
    return run_helpers.json_lines(path)


def log_probs(directory, task):
    return [record["log_prob"] for record in records(directory, task)]


def frozen_hash(checkpoint):
    return json.loads((checkpoint / "manifest.json").read_text())["metadata"]["frozen_hash"]


def changed(before, after):
    """Names of the arrays that are not the same bits any more."""
    assert before.keys() == after.keys()
    return {name for name in before if before[name].tobytes() != after[name].tobytes()}


def columns(report):
    return [cell.strip() for cell in report.read_text().splitlines()[0].split("|")[2:-1]]


# ------------------------------------------------------------------------ two stages


def test_stage_one_leaves_the_model_alone(promot, base):
    weights = state.flatten(open_checkpoint(base).read_tree())
    assert run_helpers.trained(chosen(promot / "stage_one")).keys() == {run_helpers.PROMPT_PATH}
    assert frozen_hash(chosen(promot / "stage_one")) == hashing.content_hash(
        state.unflatten(weights)
    )
    # Asked without its prompt, the prompt-tuned model answers with the very numbers of the base.
    rows = promot / "comparison"
    assert log_probs(rows / "prompt_tuning", "run_ends") == log_probs(
        rows / "pretrained", "run_ends"
    )
    # Behind its prompt it does not.
    assert log_probs(rows / "prompt_tuning", "run_signs") != log_probs(
        rows / "pretrained", "run_signs"
    )


def test_stage_two_leaves_the_prompt_alone(promot, base):
    weights = run_helpers.trained(base)
    after = run_helpers.trained(chosen(promot / "stage_two"))
    assert changed(weights, after) == weights.keys()
    table, _ = prompt_file.load_prompt(promot / "stage_one" / "prompt.npz")
    trained = run_helpers.trained(chosen(promot / "stage_one"))
    run_helpers.assert_same_arrays({run_helpers.PROMPT_PATH: table}, trained)
    assert frozen_hash(chosen(promot / "stage_two")) == hashing.content_hash(
        state.unflatten(trained)
    )
    assert not (promot / "stage_two" / "prompt.npz").exists()


def test_stage_two_is_converted_with_the_prompt_that_it_kept(promot, tmp_path):
    run_helpers.succeed(["convert", str(promot / "stage_two"), str(tmp_path), "--to", "t5x"])
    whole = state.flatten(open_checkpoint(tmp_path / chosen(promot / "stage_two").name).read_tree())
    (table,) = run_helpers.trained(chosen(promot / "stage_one")).values()
    np.testing.assert_array_equal(whole.pop(run_helpers.PROMPT_PATH), table)
    run_helpers.assert_same_arrays(whole, run_helpers.trained(chosen(promot / "stage_two")))
    adapter = tmp_path / "hf" / "prompt_adapter"
    words = ["convert", str(promot / "stage_two"), str(tmp_path / "hf"), "--to", "hf"]
    run_helpers.succeed(words)
    places = [adapter] if len(table) == 1 else sorted(adapter.iterdir())
    np.testing.assert_array_equal(prompt_file.load_prompt(places)[0], table)


def test_stage_two_on_its_own_is_that_of_the_whole_run(lab, base, promot):
    words = command(
        lab, base, "train", "stage_two", name="stage_two_alone", PROMPT_FILE=promot / "stage_one"
    )
    run_helpers.succeed(words)
    alone = run_helpers.trained(chosen(lab.directory / "stage_two_alone"))
    run_helpers.assert_same_arrays(alone, run_helpers.trained(chosen(promot / "stage_two")))


def test_stage_one_saves_less_than_a_hundredth_of_a_real_model(promot):
    arrays = run_helpers.checkpoint_arrays(chosen(promot / "stage_one"))
    prompt = arrays[f"target/{run_helpers.PROMPT_PATH}"].size
    others = sum(array.size for array in arrays.values()) - prompt
    # The optimizer keeps one number a parameter and a few scalars.
    assert prompt <= others <= prompt + 8
    on_disk = sum(map(len, run_helpers.tree(chosen(promot / "stage_one")).values()))
    overhead = on_disk - 4 * (prompt + others)
    assert 4 * 2 * SMALL_PROMPT + overhead < 0.01 * 4 * SMALL_PARAMETERS


def test_table_and_records(promot, promot_out):
    assert columns(promot / "report.md") == [
        *("run_signs", "run_ends", "mean", "change", "target's format"),
    ]
    lines = (promot / "report.md").read_text().splitlines()
    labels = [line.split("|")[1].strip() for line in lines if line.startswith("| ")][3:]
    assert labels == ["pretrained", "prompt tuning", "standard fine-tuning", "ProMoT"]
    shown = promot_out.splitlines()
    assert [line.split("  ")[0] for line in shown if line.split("  ")[0] in labels] == labels
    assert shown[-1].startswith("wall time ")
    assert shown[-2].startswith("  promot-t5x report ")
    found = records(promot / "comparison" / "ProMoT", "run_signs")
    assert [record["inputs"] for record in found] == [f"sign {7 * n}" for n in range(48, 52)]
    assert [record["target"] for record in found] == ["even", "odd", "even", "odd"]


def test_finished_run_only_prints_its_table_again(promot, promot_words):
    before = run_helpers.tree(promot)
    renewed = ("report.md", "launches.jsonl")
    files = [path for path in promot.rglob("*") if path.is_file() and path.name not in renewed]
    times = {path: path.stat().st_mtime_ns for path in files}
    out = run_helpers.succeed(promot_words)
    assert out.count("finished before") == 3
    assert "step compiled" not in out
    assert "\nprompt tuning  " in out
    after = run_helpers.tree(promot)
    # Every launch is recorded.
    assert after.pop("launches.jsonl").startswith(before.pop("launches.jsonl"))
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in files} == times


# ------------------------------------------------------------------- one stage at a time


def test_prompt_tune_is_stage_one(lab, base, promot):
    run_helpers.succeed(command(lab, base, "train", "prompt_tune", name="prompt_tune"))
    directory = lab.directory / "prompt_tune"
    run_helpers.assert_same_arrays(
        run_helpers.checkpoint_arrays(chosen(directory)),
        run_helpers.checkpoint_arrays(chosen(promot / "stage_one")),
    )


def test_finetune_is_the_baseline(lab, base, promot):
    run_helpers.succeed(command(lab, base, "train", "finetune", name="finetune"))
    directory = lab.directory / "finetune"
    metrics = (directory / "train" / "metrics.jsonl").read_bytes()
    assert metrics == (promot / "standard" / "train" / "metrics.jsonl").read_bytes()
    weights = run_helpers.trained(base)
    assert changed(weights, run_helpers.trained(chosen(directory))) == weights.keys()


def test_of_equally_good_checkpoints_the_latest_is_handed_on_if_asked(lab, base):
    run_helpers.succeed(command(lab, base, "train", "finetune", name="latest", BEST_TIES="latest"))
    directory = lab.directory / "latest"
    scores = run_helpers.json_lines(directory / "inference_eval" / "run_signs-metrics.jsonl")
    assert [row["share_equal"] for row in scores] == [scores[0]["share_equal"]] * 2
    assert json.loads((directory / "stage.json").read_text())["step"] == 4
    done = run_helpers.here(command(lab, base, "train", "finetune", name="no", BEST_TIES="last"))
    assert done.status == 2
    assert "'earliest' or 'latest', got 'last'" in done.err


def test_eval_with_a_prompt_and_without(lab, promot):
    macros = {"CHECKPOINT_PATH": chosen(promot / "stage_two"), "NUM_EXAMPLES": 4, "BATCH_SIZE": 8}
    prompt = {"PROMPT_FILE": promot / "stage_one" / "prompt.npz"}
    prompt |= {"NUM_PROMPTS": 1, "PROMPT_LENGTH": 4}
    with_prompt, without = lab.directory / "with", lab.directory / "without"
    for directory, more in ((with_prompt, prompt), (without, {})):
        words = lab.words("eval", "eval", "eval", EVAL_OUTPUT_DIR=directory, **macros, **more)
        assert "run_signs  share_equal" in run_helpers.succeed(words)
    found = np.array(log_probs(with_prompt, "run_signs"))
    assert not np.isclose(found, log_probs(without, "run_signs"), rtol=1e-4).any()
    # The comparison asked the same model the same questions behind the same prompt.
    asked = log_probs(promot / "comparison" / "ProMoT", "run_signs")
    np.testing.assert_allclose(found, asked, rtol=1e-5)


# ---------------------------------------------------------------------- other methods


def test_joint_on_the_tiny_world_with_its_suite(lab):
    """Prompt and model train together, from random weights, and the suite has eight columns."""
    words = command(
        lab,
        None,
        "promot",
        "joint",
        "tiny_suite.gin",
        name="joint",
        model="words",
        MIXTURE_OR_TASK_NAME="tiny_rte",
        TASK_FEATURE_LENGTHS={"inputs": 48, "targets": 6},
        EVAL_NUM_EXAMPLES=2,
        KEEP=2,
    )
    run_helpers.succeed(words)
    directory = lab.directory / "joint"
    assert len(columns(directory / "report.md")) == 1 + 8 + 3
    first, last = (run_helpers.trained(directory / "joint" / f"checkpoint_{n}") for n in (2, 4))
    assert run_helpers.PROMPT_PATH in first
    assert len(first) > 20
    assert changed(first, last) == first.keys()
    assert (directory / "joint" / "prompt.npz").exists()


def test_fixed_random_prompt(lab, base):
    run_helpers.succeed(command(lab, base, "promot", "fixed_random_prompt", name="fixed"))
    directory = lab.directory / "fixed"
    weights = run_helpers.trained(base)
    after = run_helpers.trained(chosen(directory / "fixed_random_prompt"))
    assert changed(weights, after) == weights.keys()
    assert columns(directory / "report.md") == ["run_signs"]


def test_multitask_gives_every_example_the_prompt_of_its_task(lab, base, monkeypatch):
    batches = []
    place = partitioning.Partitioner.place_batch

    def watched(self, batch):
        batches.append(batch)
        return place(self, batch)

    monkeypatch.setattr(partitioning.Partitioner, "place_batch", watched)
    names = {"name": "multitask", "MIXTURE_OR_TASK_NAME": "run_pair"}
    words = command(lab, base, "promot", "multitask", "two_stages.gin", PROMPT_STEPS=4, **names)
    run_helpers.succeed(words)
    rows = np.concatenate([batch["encoder_input_tokens"] for batch in batches])
    rows = rows[rows[:, 0] > 0]  # the last batch of a validation loss has empty rows
    # Bytes are ids from 3 on; prompt k is the four ids after the 384 of the model and k others.
    number_of = {ord("s") + 3: 0, ord("e") + 3: 1}
    numbers = np.array([number_of[row[4]] for row in rows])
    wanted = 384 + 4 * numbers[:, None] + np.arange(4)
    np.testing.assert_array_equal(rows[:, :4], wanted)
    assert 0 < numbers.mean() < 1
    directory = lab.directory / "multitask"
    table, info = prompt_file.load_prompt(directory / "stage_one" / "prompt.npz")
    assert table.shape == (2, 4, 16)
    assert info.tasks == ("run_signs", "run_ends")
    assert columns(directory / "report.md") == ["run_signs", "run_ends"]


def test_sequential_goes_on_from_the_first_model(lab, base):
    targets = {"FIRST_TARGET": "run_signs", "SECOND_TARGET": "run_ends"}
    run_helpers.succeed(command(lab, base, "promot", "sequential", name="sequential", **targets))
    directory = lab.directory / "sequential"
    first = run_helpers.trained(chosen(directory / "first_model"))
    assert frozen_hash(chosen(directory / "second_prompt")) == hashing.content_hash(
        state.unflatten(first)
    )
    second = run_helpers.trained(chosen(directory / "second_model"))
    assert changed(first, second) == first.keys()
    assert columns(directory / "report.md") == ["run_signs", "run_ends"]
    assert "second_prompt" not in json.dumps(list(first))
