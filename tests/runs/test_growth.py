"""A run given a larger TRAIN_STEPS goes on, exactly as if it had been asked for at first."""

import json

import pytest
import run_helpers

from promot_t5x.config import gin_reader
from promot_t5x.runs import run_directory

pytestmark = pytest.mark.slow

# A schedule that depends on TRAIN_STEPS.
COSINE = """\
from __gin__ import dynamic_registration
import optax
from promot_t5x.runs import stages
stages.Stage.learning_rate = @optax.cosine_decay_schedule()
optax.cosine_decay_schedule:
    init_value = 0.01
    decay_steps = %TRAIN_STEPS
"""
# The baseline, between the rows that were there.
BASELINE = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import promot
from promot_t5x.runs import stages
STAGES = [@prompt_tuning/stages.Stage(), @stage_two/stages.Stage(), @late/stages.Stage()]
ROWS = [@prompt_tuning/promot.Row(), @late/promot.Row(), @stage_two/promot.Row()]
late/stages.Stage.name = 'late'
late/stages.Stage.train_steps = %LATE_STEPS
late/promot.Row.label = 'late baseline'
late/promot.Row.stage = 'late'
LATE_STEPS = 2
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("growth"))
    lab.write("cosine.gin", COSINE)
    lab.write("two_stages.gin", run_helpers.TWO_STAGES)
    lab.write("baseline.gin", BASELINE)
    return lab


def training(lab, name, *files, **macros):
    given = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
    return lab.words("train", "finetune", "train", *files, **given)


@pytest.fixture(scope="module")
def straight(lab):
    run_helpers.succeed(training(lab, "straight", DROPOUT_RATE=0.1, TRAIN_STEPS=6))
    return lab.directory / "straight"


@pytest.mark.parametrize("first", [4, 5])
def test_a_finished_run_goes_on_as_if_it_had_been_asked_for_at_first(lab, straight, first):
    """Step 5 stands off EVAL_PERIOD = 2, and is no candidate in the longer run."""
    name = f"grown_{first}"
    done = run_helpers.here(training(lab, name, DROPOUT_RATE=0.1, TRAIN_STEPS=first))
    assert done.status == 0, done.err
    grown = lab.directory / name
    chosen = json.loads((grown / "stage.json").read_text())
    assert chosen["train_steps"] == first
    assert chosen["metric"] == "share_equal"
    done = run_helpers.here(training(lab, name, DROPOUT_RATE=0.1, TRAIN_STEPS=6))
    if chosen["step"] == 5:
        assert done.status == 2
        assert "step 5, which EVAL_PERIOD = 2 does not divide" in done.err
        return
    assert done.status == 0, done.err
    assert f"finished before at step {first}; goes on to step 6" in done.out
    for file in ("stage.json", "train/metrics.jsonl", "inference_eval/run_signs-metrics.jsonl"):
        assert (grown / file).read_bytes() == (straight / file).read_bytes(), file
    run_helpers.assert_same_arrays(
        run_helpers.checkpoint_arrays(grown / "checkpoint_6"),
        run_helpers.checkpoint_arrays(straight / "checkpoint_6"),
    )
    names = {path.name for path in (straight / "inference_eval").glob("*.json*")}
    assert {path.name for path in (grown / "inference_eval").glob("*.json*")} == names


def test_fewer_steps_and_other_changes_are_refused(lab, straight):
    for macros, said in (
        ({"TRAIN_STEPS": 4}, "TRAIN_STEPS: was 6, now 4"),
        ({"TRAIN_STEPS": 8, "BATCH_SIZE": 16}, "BATCH_SIZE: was 8, now 16"),
    ):
        done = run_helpers.here(training(lab, "straight", **{"DROPOUT_RATE": 0.1, **macros}))
        assert done.status == 2
        assert said in done.err
    assert (straight / "stage.json").exists()


def test_a_schedule_that_depends_on_the_number_of_steps_is_refused(lab):
    run_helpers.succeed(training(lab, "cosine", "cosine.gin"))
    before = run_helpers.tree(lab.directory / "cosine")
    done = run_helpers.here(training(lab, "cosine", "cosine.gin", TRAIN_STEPS=8))
    assert done.status == 2
    # Of 4 steps, step 2 has half the way to go less: (1 + cos(pi / 4)) / 2; of 8, less is gone.
    assert "step 2 was trained at a learning rate of 0.00853553" in done.err
    assert "the schedule now has 0.0096194 there" in done.err
    assert run_helpers.tree(lab.directory / "cosine").items() - before.items() == set()
    out = run_helpers.succeed(training(lab, "cosine", "cosine.gin"))
    assert "finished before: step " in out


def test_a_finished_run_gets_more_rows_and_steps(lab):
    """Rows whose checkpoints went on are evaluated again, and what is finished is left alone."""

    def words(*files, **macros):
        given = {"MODEL_DIR": lab.directory / "promot", "INITIAL_CHECKPOINT_PATH": None, **macros}
        return lab.words("promot", "promot", "prompt", "two_stages.gin", *files, **given)

    out = run_helpers.succeed(words())
    assert "] step 4: validation score " in out
    assert " (share_equal), loss " in out
    row = lab.directory / "promot" / "comparison" / "ProMoT"
    first = json.loads((row / "row.json").read_text())
    assert first["split"] == first["selection_split"] == {"run_signs": "validation"}
    summary = json.loads((row / "inference_eval" / "run_signs-000000.json").read_text())
    assert summary["split"] == summary["selection_split"] == "validation"
    table = (lab.directory / "promot" / "report.md").read_text()
    run_helpers.succeed(words("baseline.gin"))
    assert json.loads((row / "row.json").read_text()) == {**first, "position": 2}
    lines = (lab.directory / "promot" / "report.md").read_text().splitlines()
    late = next(n for n, line in enumerate(lines) if "late baseline" in line)
    assert late < next(n for n, line in enumerate(lines) if "ProMoT" in line)
    assert "late baseline" not in table
    for more, said in (
        ({"DROPOUT_RATE": 0.1}, "DROPOUT_RATE: was 0.0, now 0.1"),
        ({"stages.Stage.keep": 2}, "stages.Stage.keep: was"),
        ({"stages.Stage.dropout_rate": 0.1}, "stages.Stage.dropout_rate: was not set, now 0.1"),
    ):
        done = run_helpers.here(words("baseline.gin", **more))
        assert done.status == 2, more
        assert said in done.err

    done = run_helpers.here(words())
    assert done.status == 2  # a row of the report would have no configuration
    assert "late/stages.Stage.name: was 'late', now not set" in done.err
    done = run_helpers.here(words("baseline.gin", PROMPT_STEPS=6))
    assert done.status == 2
    assert "stage 'stage_two' has started from what it" in done.err
    out = run_helpers.succeed(words("baseline.gin", TRAIN_STEPS=8, BEST_TIES="loss"))
    assert "[stage_one] finished before: step " in out
    assert "[stage_two] finished before at step 4; goes on to step 8" in out
    second = json.loads((row / "row.json").read_text())
    chosen = json.loads((lab.directory / "promot" / "stage_two" / "stage.json").read_text())
    assert second["checkpoints"]["stage_two"] == chosen["step"]
    assert second["checkpoints"]["stage_one"] == first["checkpoints"]["stage_one"]


def test_new_parts_bind_nothing_that_old_ones_could_see():
    """A function that no file names may be what every stage uses by default."""
    known = "ROWS = [@a/promot.Row()]\na/promot.Row.label = 'a'\n"
    new = "ROWS = [@b/promot.Row(), @a/promot.Row()]\na/promot.Row.label = 'a'\n"
    new += "b/promot.Row.label = %LABEL\nLABEL = 'b'\n"
    new += "a/promot.Row.stage = 's'\nadafactor.adafactor.decay_rate = 0.7\n"
    before, after = (gin_reader.plain_bindings(text, "a text") for text in (known, new))
    lists = ("ROWS", "STAGES")
    added = {"ROWS", "LABEL", "b/promot.Row.label"}
    assert run_directory._added(known, before, after, lists) == added
    assert run_directory._added(new, after, before, lists) == set()  # a row less
    assert run_directory._added(known, before, {**after, "ROWS": before["ROWS"]}, lists) == set()
