"""A run with several seeds: each is the run that it would be alone, and what can be is shared."""

import csv
import json

import pytest
import run_helpers

pytestmark = pytest.mark.slow

SUITE = """\
from __gin__ import dynamic_registration
from promot_t5x.evaluation import evaluator as evaluate
from promot_t5x.runs import promot
from promot_t5x.runs import stages
SUITE = @suite/evaluate.EvalConfig()
suite/evaluate.EvalConfig.mixture_or_task_name = 'run_ends'
STAGES = [@prompt_tuning/stages.Stage(), @stage_two/stages.Stage(), @fixed/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @prompt_tuning/promot.Row(), @attached/promot.Row(),
        @stage_two/promot.Row(), @fixed/promot.Row()]
attached/promot.Row:
    label = 'prompt attached'
    stage = 'stage_one'
    prompts = ['stage_one']
    suite_prompt = 'stage_one'
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("seeds"))
    lab.write("rows.gin", SUITE)
    run_helpers.succeed(lab.words("train", "pretrain", "train", MODEL_DIR=lab.directory / "base"))
    return lab


def words(lab, name, **macros):
    base = {"INITIAL_CHECKPOINT_PATH": lab.directory / "base", "DROPOUT_RATE": 0.1}
    macros = {"MODEL_DIR": lab.directory / name, **base, **macros}
    return lab.words("promot", "fixed_random_prompt", "prompt", "rows.gin", **macros)


@pytest.fixture(scope="module")
def out(lab):
    return run_helpers.succeed(words(lab, "several", SEEDS=[3, 1]))


@pytest.fixture(scope="module")
def several(lab, out):
    return lab.directory / "several"


def records(directory, row, task):
    path = directory / "comparison" / row / "inference_eval" / f"{task}-000000.jsonl"
    return run_helpers.json_lines(path)


def test_each_seed_is_the_run_that_it_would_be_alone(lab, several):
    run_helpers.succeed(words(lab, "alone", RANDOM_SEED=1))
    alone = lab.directory / "alone"
    for stage in ("stage_one", "stage_two", "fixed_random_prompt"):
        metrics = f"{stage}/train/metrics.jsonl"
        found = (several / "seed_1" / metrics).read_bytes()
        assert found == (alone / metrics).read_bytes()
        assert found != (several / "seed_3" / metrics).read_bytes()
    for row in ("ProMoT", "fixed_random_prompt"):
        for task in ("run_signs", "run_ends"):
            assert records(several / "seed_1", row, task) == records(alone, row, task)


def test_programs_and_the_base_are_shared(several, out):
    assert out.count("step compiled") == 3
    assert out.count("[pretrained] 28 arrays") == 1
    assert sorted(path.name for path in (several / "comparison").iterdir()) == ["pretrained"]


def test_a_row_and_every_line_say_their_seed(several, out):
    row = several / "seed_3" / "comparison" / "ProMoT" / "row.json"
    assert json.loads(row.read_text())["seed"] == 3
    for line in ("step 4: validation score", "done: best step", "data: run_signs/train"):
        assert f"[stage_one, seed 3] {line}" in out
        assert f"[stage_two, seed 1] {line}" in out
    assert "[stage_one]" not in out
    assert "| ProMoT (2 seeds) " in (several / "report.md").read_text()


def test_a_prompt_changes_the_suite_only_where_it_is_attached(several):
    run = several / "seed_1"
    removed = [r["log_prob"] for r in records(run, "prompt_tuning", "run_ends")]
    attached = [r["log_prob"] for r in records(run, "prompt_attached", "run_ends")]
    base = [r["log_prob"] for r in records(several, "pretrained", "run_ends")]
    assert removed == base
    assert not set(attached) & set(base)


def test_the_run_can_be_reported(several):
    printed = run_helpers.succeed(["report", str(several), "--format", "markdown"])
    assert (several / "report.md").read_text().startswith(printed)
    assert "| pretrained " in printed
    assert "| prompt attached (2 seeds) " in printed
    scores = run_helpers.succeed(["report", str(several), "--format", "csv"])
    wanted = {"row": "ProMoT", "kind": "suite", "task": "run_ends", "score": "share_equal"}
    (line,) = (
        each for each in csv.DictReader(scores.splitlines()) if wanted.items() <= each.items()
    )
    written = [
        json.loads((several / f"seed_{n}" / "comparison" / "ProMoT" / "row.json").read_text())
        for n in (3, 1)
    ]
    mean = sum(row["suite"]["run_ends"] for row in written) / 2
    assert float(line["value"]) == pytest.approx(mean)


def test_seeds_may_be_added(lab, several):
    before = run_helpers.tree(several / "seed_3")
    out = run_helpers.succeed(words(lab, "several", SEEDS=[3, 1, 0]))
    assert out.count("finished before") == 6
    assert (several / "seed_0").is_dir()
    assert run_helpers.tree(several / "seed_3") == before
    done = run_helpers.here(words(lab, "several", SEEDS=[3], BATCH_SIZE=16))
    assert done.status == 2
    assert "BATCH_SIZE: was 8, now 16" in done.err


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([], "whole numbers"),
        ([0, -1], "whole numbers"),
        ([1, 1], "twice"),
    ],
)
def test_bad_seeds(lab, seeds, said):
    done = run_helpers.here(words(lab, "bad", SEEDS=seeds))
    assert done.status == 2
    assert said in done.err
    assert not (lab.directory / "bad").exists()
