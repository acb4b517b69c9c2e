"""The demonstration in short, from the shipped base: fails if the effect vanishes, or if a prompt
that should have been removed is still there."""

import pytest
import run_helpers

from promot_t5x.report import comparison, runs

pytestmark = pytest.mark.slow

SHORT = """\
from __gin__ import dynamic_registration
from promot_t5x.evaluation import evaluator as evaluate
from promot_t5x.runs import promot
from promot_t5x.runs import stages
include 'demo/final.gin'
SEEDS = [7]
PROMPT_STEPS = 200
TRAIN_STEPS = 100
STAGES = [@prompt_tuning/stages.Stage(), @stage_two/stages.Stage(), @standard/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @standard/promot.Row(), @stage_two/promot.Row(),
        @kept/promot.Row()]
kept/promot.Row:
    label = 'ProMoT, prompt kept'
    stage = 'stage_two'
    prompts = ['stage_one']
    suite_prompt = 'stage_one'
suite/evaluate.EvalConfig.num_examples = 40
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("demo")
    (home / "short.gin").write_text(SHORT)
    words = ["promot", f"--gin_file={home / 'short.gin'}", f"--gin.MODEL_DIR='{home / 'run'}'"]
    done = run_helpers.process(words)
    assert done.status == 0, done.err
    return comparison.compare(runs.read([str(home / "run")]))


def value(made, label, title):
    row = made.row(label)
    (column,) = (column for column in row.cells if column.title == title)
    return row.cells[column].value


def test_both_ways_of_fine_tuning_learn_the_target(made):
    assert value(made, "standard fine-tuning", "tiny_rte") >= 97
    assert value(made, "ProMoT", "tiny_rte") >= 95
    assert value(made, "pretrained", "tiny_rte") == 0


def test_standard_fine_tuning_loses_what_promot_keeps(made):
    assert value(made, "pretrained", "mean") > 97
    kept, lost = value(made, "ProMoT", "mean"), value(made, "standard fine-tuning", "mean")
    assert kept >= 93
    assert kept - lost >= 8
    share = "target's format"
    assert value(made, "pretrained", share) == 0
    assert value(made, "ProMoT", share) <= 5
    assert value(made, "standard fine-tuning", share) >= 10


def test_the_prompt_has_been_removed_for_the_suite(made):
    """Behind its prompt the same model answers in the target's format, so it cannot have been."""
    assert value(made, "ProMoT, prompt kept", "target's format") >= 30
    assert value(made, "ProMoT, prompt kept", "mean") <= 70
