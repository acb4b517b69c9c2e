"""`runs/rivals.gin` at tiny scale: a base kept beside the model, and WiSE-FT's rows."""

import json

import pytest
import run_helpers

from promot_t5x.report import curves

pytestmark = pytest.mark.slow

# Stages and rows of the shipped file that run here; each other stage differs in data alone.
FEW = """\
from __gin__ import dynamic_registration
from promot_t5x.models import objectives
from promot_t5x.runs import promot
from promot_t5x.runs import stages
STAGES = [@standard/stages.Stage(), @kl/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @standard/promot.Row(), @wise_ft/promot.Row()]
WISE_FT_SHARES = [0.0, 0.25, 1.0]
KL_WEIGHT = 5.0
"""
FIXED = """\
from __gin__ import dynamic_registration
from promot_t5x.runs import promot
ROWS = [@pretrained/promot.Row()]
KEEP = 2
"""
ALONE = """
STAGES = [@kl/stages.Stage()]
ROWS = [@kl/promot.Row()]
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("rivals"))
    lab.write("few.gin", FEW)
    lab.write("alone.gin", FEW + ALONE)
    return lab


def words(lab, *files, name="run", **macros):
    given = {"MODEL_DIR": lab.directory / name, "INITIAL_CHECKPOINT_PATH": None, **macros}
    return lab.words("promot", "rivals", "prompt", *files, **given)


@pytest.fixture(scope="module")
def run(lab):
    """Standard fine-tuning and KL to the base, from random weights of one seed."""
    run_helpers.succeed(words(lab, "few.gin"))
    return lab.directory / "run"


def comparison(directory, row):
    """What a row's answers are likely to be, and where its weights came from."""
    folder = directory / "comparison" / row / "inference_eval"
    (answers,) = folder.glob("run_signs-[0-9]*.jsonl")
    (record,) = folder.glob("run_signs-[0-9]*.json")
    origin = json.loads(record.read_text())["checkpoint"]["origin"]
    return [each["log_prob"] for each in run_helpers.json_lines(answers)], origin


def test_the_whole_file_is_a_configuration(lab):
    out = run_helpers.succeed([*words(lab, name="dry"), "--dry_run"])
    for name in ("KLToBase", "SelectiveTokenMasking", "l2_sp", "mofo", "half_fine_tuning"):
        assert name in out


def test_wise_ft_interpolates_between_the_base_and_the_stage(run):
    base, tuned = (comparison(run, row)[0] for row in ("pretrained", "standard_fine_tuning"))
    assert comparison(run, "WiSE_FT_0")[0] == base
    assert comparison(run, "WiSE_FT_1")[0] == tuned
    between, origin = comparison(run, "WiSE_FT_0_25")
    assert between not in (base, tuned)
    assert origin.startswith("0.25 of this run: stage standard, step ")
    assert origin.endswith("; 0.75 of scratch (seed 0)")


def test_the_divergence_from_the_base_is_none_at_first_and_grows(run):
    rows = run_helpers.json_lines(run / "kl_to_base" / "train" / "metrics.jsonl")
    added = [row["loss"] - row["cross_ent_loss"] - row["z_loss"] for row in rows]
    assert abs(added[0]) < 1e-5 < 1e-3 < added[-1]  # the loss itself is near 6
    plain = run_helpers.json_lines(run / "standard" / "train" / "metrics.jsonl")
    assert rows[0]["cross_ent_loss"] == pytest.approx(plain[0]["cross_ent_loss"], rel=1e-6)
    assert rows[-1]["cross_ent_loss"] != pytest.approx(plain[-1]["cross_ent_loss"], rel=1e-6)


def test_a_run_that_goes_on_compares_with_the_base_that_it_began_with(lab, run):
    run_helpers.succeed(words(lab, "alone.gin", name="parts", TRAIN_STEPS=2))
    out = run_helpers.succeed(words(lab, "alone.gin", name="parts"))
    assert "goes on to step 4" in out
    found, wanted = (run_helpers.losses(lab.directory / n / "kl_to_base") for n in ("parts", "run"))
    assert found == wanted


@pytest.mark.parametrize(
    ("shares", "message"),
    [([1.5], "shares has 1.5"), ([0.5, 0.5], "whose answers would lie in one directory")],
)
def test_shares_that_mean_nothing_are_refused(lab, shares, message):
    done = run_helpers.here(words(lab, "few.gin", name="no", WISE_FT_SHARES=shares))
    assert done.status == 2
    assert message in done.err


def test_the_drift_is_none_at_first_and_grows_behind_a_prompt_that_it_leaves_out(lab):
    directory = lab.directory / "drift"
    given = {"MODEL_DIR": directory, "INITIAL_CHECKPOINT_PATH": None, "TRAIN_STEPS": 2}
    given |= {"EVAL_PERIOD": 1, "EVAL_NUM_EXAMPLES": 2}
    files = ("analyses/drift.gin", "fixed.gin")
    lab.write("fixed.gin", FIXED)
    out = run_helpers.succeed(lab.words("promot", "fixed_random_prompt", "joint", *files, **given))
    stage = directory / "fixed_random_prompt"
    rows = run_helpers.json_lines(stage / "drift.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["run_signs"] == 0.0
    assert 0.0 < rows[1]["run_signs"] < rows[2]["run_signs"]
    assert "step 0: drift run_signs 0.0000 nats per target token" in out
    metrics = json.loads((stage / "checkpoint_2" / "metrics.json").read_text())
    assert metrics["run_signs/drift"] == rows[2]["run_signs"]
    export = [str(lab.directory / "hf"), "--to", "hf", "--remove_prompt"]
    run_helpers.succeed(["convert", str(stage), *export])
    card = (lab.directory / "hf" / "README.md").read_text()
    assert "`random weights`" in card
    assert "The soft prompt was removed" in card
    assert "## Drift" in card
    step = json.loads((stage / "stage.json").read_text())["step"]
    assert f'`{{"run_signs": {rows[step]["run_signs"]}}}`' in card
    (curve,) = curves.read([str(directory)], [])
    assert [point.drift for point in curve.points] == [row["run_signs"] for row in rows]
    report = lab.directory / "drift_report"
    run_helpers.succeed(["report", str(directory), f"--output={report}"])
    assert (report / "figures" / "drift.svg").exists()
    assert "Drift: the divergence of the model" in (report / "report.html").read_text()
