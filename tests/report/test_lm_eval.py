"""`report --lm_eval`: a run's scores under lm-evaluation-harness's keys, from numbers by hand."""

import json

import pytest
from report_helpers import Task, write_answers

from promot_t5x.cli import main
from promot_t5x.tasks import Chrf, Continuation, MultipleChoice, accuracy, registry

CANDIDATES = ["long candidate", "short"]


def choice(right):
    return {"answer": CANDIDATES[right], "right": right, "candidates": CANDIDATES}


def said(log_probs, greedy=(False, False)):
    return {"answer": "", "log_probs": log_probs, "greedy": list(greedy)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    run = tmp_path_factory.mktemp("evaluated")

    def answered(name, metrics, pairs, **told):
        questions = [(f"q{n}", f"question {n}", target) for n, (target, _) in enumerate(pairs)]
        write_answers(run, Task(name, questions, metrics), [p for _, p in pairs], **told)

    answered("rte_1shot", [accuracy], [("True", "True")] * 3 + [("True", "False")])
    answered(
        "arc_easy",
        [MultipleChoice(("acc", "acc_norm"))],
        # By character the long one is likelier both times, -0.5 against -1.
        [(choice(0), said([-7.0, -5.0])), (choice(1), said([-7.0, -5.0]))],
        version=1.0,
    )
    answered(
        "openbookqa_ranked_5shot",
        [MultipleChoice(("acc_norm",))],
        [(choice(1), said([-7.0, -1.0]))],
        version=1.0,
    )
    answered(
        "lambada_openai",
        [Continuation()],
        [(choice(1), said([0.0, -0.5], (False, True))), (choice(1), said([0.0, -1.5]))],
    )
    answered(
        "gsm8k",
        registry.get_task("gsm8k").metrics,
        [("one\n#### 4", "#### 4 or 5"), ("two\n#### 7", "7")],
    )
    answered("talk", [Chrf()], [("some words", "some words")] * 2)
    output = tmp_path_factory.mktemp("written")
    assert main.main(["report", f"my model={run}", "--lm_eval", str(output)]) == 0
    return json.loads((output / "my_model" / "results.json").read_text())


def test_keys_are_those_of_lm_evaluation_harness(results):
    assert set(results) == {
        "results",
        "group_subtasks",
        "configs",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "config",
    }
    tasks = {"rte", "arc_easy", "openbookqa", "lambada_openai", "gsm8k", "talk"}
    for part in ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples"):
        assert set(results[part]) == tasks
    assert results["n-shot"] == {**dict.fromkeys(tasks, 0), "rte": 1, "openbookqa": 5}
    assert results["versions"] == {**dict.fromkeys(tasks), "arc_easy": 1.0, "openbookqa": 1.0}
    assert results["n-samples"]["rte"] == {"original": 4, "effective": 4}
    assert results["configs"]["arc_easy"]["output_type"] == "multiple_choice"
    assert results["configs"]["gsm8k"]["metadata"] == {"version": None}
    assert results["config"]["model_name"] == "my model"
    assert results["config"]["model_args"] == "checkpoint_100"


def test_scores_are_shares_with_their_standard_errors(results):
    def scores(task):
        found = results["results"][task]
        return {k: v for k, v in found.items() if k not in ("name", "alias", "sample_len")}

    # Of 1, 1, 1, 0 the sample's deviation is 0.5; of 1, 0 it is the root of a half.
    assert scores("rte") == {"acc,none": 0.75, "acc_stderr,none": 0.25}
    assert scores("arc_easy") == pytest.approx(
        {
            "acc,none": 0.5,
            "acc_stderr,none": 0.5,
            "acc_norm,none": 0.5,
            "acc_norm_stderr,none": 0.5,
        }
    )
    assert scores("openbookqa") == {"acc_norm,none": 1.0, "acc_norm_stderr,none": "N/A"}
    lambada = scores("lambada_openai")
    assert lambada.pop("perplexity,none") == pytest.approx(2.718281828)
    assert lambada == pytest.approx(
        {"acc,none": 0.5, "acc_stderr,none": 0.5, "perplexity_stderr,none": "N/A"}
    )
    assert results["higher_is_better"]["lambada_openai"] == {"acc": True, "perplexity": False}
    assert scores("gsm8k") == pytest.approx(
        {
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.5,
            "exact_match,flexible-extract": 0.5,
            "exact_match_stderr,flexible-extract": 0.5,
        }
    )
    # As sacreBLEU has it, out of a hundred.
    assert scores("talk") == {"chrf,none": 100.0, "chrf_stderr,none": "N/A"}


def test_tasks_of_one_name_keep_their_numbers_of_shots(tmp_path):
    for name in ("rte", "rte_1shot"):
        write_answers(tmp_path, Task(name, [("q", "q", "True")], [accuracy]), ["True"])
    assert main.main(["report", f"m={tmp_path}", "--lm_eval", str(tmp_path / "out")]) == 0
    written = json.loads((tmp_path / "out" / "m" / "results.json").read_text())
    assert set(written["results"]) == {"rte", "rte_1shot"}
