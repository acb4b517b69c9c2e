"""A decoder-only base through the command line: both stages, a kill, evaluation, inference."""

import signal

import fork_helpers
import pytest
import run_helpers
from fork_helpers import Death

pytestmark = pytest.mark.slow

MODEL = """\
from __gin__ import dynamic_registration
include 'models/gemma2.gin'
EMBED_DIM = 16
NUM_HEADS = 2
NUM_KV_HEADS = 1
HEAD_DIM = 8
MLP_DIM = 32
NUM_DECODER_LAYERS = 2
SLIDING_WINDOW = 8
SCAN_LAYERS = True
ACTIVATION_DTYPE = 'float32'
include 'models/byte_vocabulary.gin'
"""
INFER = """\
from __gin__ import dynamic_registration
from promot_t5x import decoding
DECODING = @decoding.Greedy()
"""
LENGTHS = {"inputs": 24, "targets": 12}
STAGES = ("stage_one", "stage_two")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("causal"))
    lab.write("causal.gin", MODEL)
    lab.write("two_stages.gin", run_helpers.TWO_STAGES)
    lab.write("infer.gin", INFER)
    return lab


@pytest.fixture(scope="module")
def runs(lab):
    """A straight run, and one that was killed in the midst of its second stage."""
    model_dir, straight = lab.directory / "run", lab.directory / "straight"
    words = lab.words(
        "promot",
        "promot",
        "prompt",
        "two_stages.gin",
        model="causal",
        MODEL_DIR=model_dir,
        INITIAL_CHECKPOINT_PATH=None,
        DROPOUT_RATE=0.1,
        PACK=True,
        TASK_FEATURE_LENGTHS=LENGTHS,
    )
    server, programs = fork_helpers.shared(), lab.directory / "programs"
    programs.mkdir()
    ended = server.run(words, programs=(programs, True))
    assert ended.status == 0, ended.said
    assert "64 parameters train" in ended.said
    model_dir.rename(straight)
    death = Death("promot_t5x.checkpoints.saving:write_manifest", after=True, call=3)
    assert server.run(words, death=death, programs=(programs, False)).status == -signal.SIGKILL
    assert (model_dir / "stage_one" / "stage.json").exists()
    ended = server.run(words, programs=(programs, False))
    assert ended.status == 0, ended.said
    assert "resumes after step 2" in ended.said
    return straight, model_dir


def test_a_killed_run_ends_as_a_straight_one(runs):
    straight, killed = runs
    for stage in STAGES:
        name = f"{stage}/checkpoint_4"
        run_helpers.assert_same_arrays(
            run_helpers.checkpoint_arrays(killed / name),
            run_helpers.checkpoint_arrays(straight / name),
        )
        for kept in ("train/metrics.jsonl", "inference_eval/run_signs-000004.jsonl"):
            assert (killed / stage / kept).read_bytes() == (straight / stage / kept).read_bytes()
    assert (killed / "report.md").read_bytes() == (straight / "report.md").read_bytes()
    first, second = (run_helpers.losses(straight / stage) for stage in STAGES)
    assert first[-1] < first[0]
    assert second[-1] < second[0]


def test_the_trained_model_is_evaluated_and_answers(lab, runs):
    """In the format of transformers, with and without its prompt; `infer` says what `eval` does."""
    trained = lab.directory / "trained"
    convert = ["convert", str(runs[0] / "stage_two"), str(trained), "--to", "hf"]
    assert "has a prompt, and its embeddings are scaled" in run_helpers.here(convert).err
    run_helpers.succeed([*convert, "--remove_prompt"])
    asked = {
        "CHECKPOINT_PATH": trained,
        "PROMPT_FILE": runs[0] / "stage_one" / "prompt.npz",
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "BATCH_SIZE": 8,
    }
    place = lab.directory / "eval"
    given = {**asked, "EVAL_OUTPUT_DIR": place, "PROMPT_MODE": "both"}
    run_helpers.succeed(lab.words("eval", "eval", "eval", model="causal", **given))
    records = {}
    for mode in ("kept", "removed"):
        (path,) = place.rglob(f"*{mode}/inference_eval/run_signs-[0-9]*.jsonl")
        records[mode] = run_helpers.json_lines(path)
    log_probs = {mode: [each["log_prob"] for each in rows] for mode, rows in records.items()}
    assert log_probs["kept"] != pytest.approx(log_probs["removed"], rel=1e-4)
    questions = [each["inputs"] for each in records["kept"]]
    given = {
        **asked,
        "INPUT_FILE": lab.write("ask.txt", "\n".join(questions) + "\n"),
        "INFER_OUTPUT_DIR": lab.directory / "answers",
    }
    run_helpers.succeed(lab.words("infer", "infer", "infer", model="causal", **given))
    answers = run_helpers.json_lines(lab.directory / "answers" / "answers.jsonl")
    assert [each["log_prob"] for each in answers] == pytest.approx(log_probs["kept"], rel=1e-5)
