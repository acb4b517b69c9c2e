"""`promot-t5x eval` and `infer` on the tiny world's base: killed, resumed, and in every mode."""

import json
import time

import fork_helpers
import numpy as np
import pytest
import run_helpers

from promot_t5x.cli import main

pytestmark = pytest.mark.slow

SUITE_SIZE = 8 * 20
SLOWEST_LAUNCH_SEC = 300.0


def eval_words(directory, *more, **macros):
    macros = {
        "CHECKPOINT_PATH": "tiny_world",
        "EVAL_OUTPUT_DIR": directory,
        "MIXTURE_OR_TASK_NAME": "tiny_icl_1shot",
        "TASK_FEATURE_LENGTHS": {"inputs": 48},
        "NUM_EXAMPLES": 20,
        "BATCH_SIZE": 8,
        **macros,
    }
    return words("eval", "eval", more, macros)


def words(verb, run, more, macros):
    return [
        verb,
        "--gin_file=demo/model.gin",
        f"--gin_file=runs/{run}.gin",
        "--gin.DECODING=@decoding.Greedy()",
        *more,
        *(f"--gin.{name}={run_helpers.gin_value(value)}" for name, value in macros.items()),
    ]


def determined(directory):
    """Every file of an evaluation; of its summaries, all but what the clock says."""
    found = {}
    for name, content in run_helpers.tree(directory / "inference_eval").items():
        if name.endswith(".json"):
            content = json.dumps({**json.loads(content), "timings": None}).encode()
        found[name] = content
    return found


def summaries(directory):
    paths = sorted((directory / "inference_eval").glob("*.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """(straight, interrupted): two evaluations of one command, the latter killed with SIGKILL."""
    directory = tmp_path_factory.mktemp("eval")
    answers, straight = directory / "answers", directory / "straight"
    command = eval_words(answers)
    run_helpers.succeed(command)
    answers.rename(straight)

    partial = answers / "inference_eval" / "answers-000000.partial"
    process = fork_helpers.shared().start(command)
    end = time.monotonic() + SLOWEST_LAUNCH_SEC
    while time.monotonic() < end and process.alive:
        if partial.exists() and partial.read_text().count("\n") > 4:
            break
        time.sleep(0.001)
    process.kill()
    ended = process.wait()
    assert ended.status == -9, ended.said
    assert not list((answers / "inference_eval").glob("*.json"))
    recorded = [json.loads(line)[0] for line in partial.read_text().split("\n")[1:-1]]
    run_helpers.succeed(command)
    return straight, answers, sum(len(line["answers"]) for line in recorded)


def test_a_killed_evaluation_ends_as_a_straight_one(killed):
    straight, answers, recorded = killed
    wanted, found = determined(straight), determined(answers)
    assert found.keys() == wanted.keys()
    assert len(found) == 3 * 8
    for name, content in wanted.items():
        assert found[name] == content, name
    for summary in summaries(straight):
        assert summary["examples"] == 20
        assert summary["timings"]["examples"] == SUITE_SIZE
        assert summary["decoding"]["programs"]
        assert summary["timings"]["compilations"]
    assert 0 < recorded < SUITE_SIZE
    for summary in summaries(answers):
        assert summary["timings"]["examples"] == SUITE_SIZE - recorded


def test_every_example_is_there_once_in_the_order_of_the_data(killed):
    _, answers, _ = killed
    for path in (answers / "inference_eval").glob("*_1shot-000000.jsonl"):
        records = run_helpers.json_lines(path)
        assert len({record["id"] for record in records}) == len(records) == 20
        ids = [int(record["id"].rpartition("-")[2]) for record in records]
        assert ids == sorted(ids)
    assert main.main(["score", str(answers)]) == 0


def test_what_is_done_is_not_done_again(killed):
    _straight, answers, _ = killed
    before = run_helpers.tree(answers)
    launches = before.pop("launches.jsonl")
    out = run_helpers.succeed(eval_words(answers))
    assert "questions in programs" not in out
    after = run_helpers.tree(answers)
    assert after.pop("launches.jsonl").startswith(launches)
    assert after == before


def test_weights_in_int8_answer_like_those_in_float32(killed, tmp_path):
    run_helpers.succeed(eval_words(tmp_path, FROZEN_DTYPE="int8"))
    float32, int8 = (
        [
            record
            for path in sorted((place / "inference_eval").glob("*.jsonl"))
            if not path.name.endswith("-metrics.jsonl")
            for record in run_helpers.json_lines(path)
        ]
        for place in (killed[0], tmp_path)
    )
    assert len(float32) == len(int8) == SUITE_SIZE
    pairs = list(zip(float32, int8, strict=True))
    same = [(a["log_prob"], b["log_prob"]) for a, b in pairs if a["prediction"] == b["prediction"]]
    assert len(same) >= SUITE_SIZE - 2  # measured: all of them, by 0.019 at most
    assert 0 < np.abs(np.subtract(*np.transpose(same))).max() < 0.05
    scores = [
        {summary["task"]: summary["metrics"][summary["primary"]] for summary in summaries(place)}
        for place in (killed[0], tmp_path)
    ]
    assert all(abs(scores[0][task] - scores[1][task]) <= 5 for task in scores[0])


def test_several_checkpoints_both_with_a_prompt_and_without(tmp_path):
    np.save(tmp_path / "prompt.npy", np.ones((4, 128), np.float32))
    run_helpers.succeed(
        words(
            "train",
            "finetune",
            ["--gin.EVAL_NUM_EXAMPLES=4", "--gin.LEARNING_RATE=0.1"],
            {
                "MODEL_DIR": tmp_path / "run",
                "INITIAL_CHECKPOINT_PATH": "tiny_world",
                "MIXTURE_OR_TASK_NAME": "tiny_rte",
                "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 6},
                "TRAIN_STEPS": 2,
                "EVAL_PERIOD": 1,
                "KEEP": 2,
                "BATCH_SIZE": 8,
            },
        )
    )
    out = run_helpers.succeed(
        eval_words(
            tmp_path / "out",
            CHECKPOINT_PATH=str(tmp_path / "run"),
            CHECKPOINT_MODE="all",
            PROMPT_FILE=str(tmp_path / "prompt.npy"),
            PROMPT_MODE="both",
            MIXTURE_OR_TASK_NAME=["tiny_rte"],
            NUM_EXAMPLES=8,
        )
    )
    # One program for each mode, whatever the number of checkpoints.
    assert out.count("8 questions in programs of") == 2
    found = {}
    for step in (1, 2):
        for mode in ("kept", "removed"):
            place = tmp_path / "out" / f"checkpoint_{step}_prompt_{mode}"
            (summary,) = summaries(place)
            # The stage chose one of its two checkpoints on the rows that are scored here.
            chosen = json.loads((tmp_path / "run" / "stage.json").read_text())
            selection = "validation" if step == chosen["step"] else None
            assert (summary["split"], summary["selection_split"]) == ("validation", selection)
            assert summary["step"] == step
            assert summary["task"] == "tiny_rte"
            assert (summary["prompt"] is None) == (mode == "removed")
            records = run_helpers.json_lines(place / f"inference_eval/tiny_rte-{step:06}.jsonl")
            found[step, mode] = [record["log_prob"] for record in records]
    assert len({tuple(log_probs) for log_probs in found.values()}) == 4
    for wrong, said in (
        ({"CHECKPOINT_MODE": "every"}, "must be one of specific, all"),
        ({"CHECKPOINT_MODE": "all"}, "holds no checkpoint_<step>"),
        ({"PROMPT_MODE": "both"}, "set PROMPT_FILE"),
        ({"CHECKPOINT_PATH": ["tiny_world", "tiny_world"]}, "names tiny_world twice"),
    ):
        done = run_helpers.here(eval_words(tmp_path / "wrong", **wrong))
        assert done.status == 2
        assert said in done.err
    assert not (tmp_path / "wrong").exists()
    command = eval_words(tmp_path / "out", CHECKPOINT_PATH=str(tmp_path / "run"))
    done = run_helpers.here(command)
    assert done.status == 2
    assert "EVAL_OUTPUT_DIR of its own" in done.err
    assert "MODEL_DIR" not in done.err
