"""`runs/rivals.gin` at tiny scale: a base kept beside the model, and WiSE-FT's rows."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import run_helpers

from promot_t5x.planning import planned_runs
from promot_t5x.report import curves
from promot_t5x.runs.comparison_evaluator import _interpolated

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


def test_each_method_is_standard_fine_tuning_but_for_one_thing():
    """Without its objective, optimizer, pattern or adapter a stage is off: the plain one."""
    files = ["models/t5_1_1_small.gin", "runs/rivals.gin"]
    lengths = "TASK_FEATURE_LENGTHS = {'inputs': 64, 'targets': 8}"
    read = planned_runs.read(files, ["MIXTURE_OR_TASK_NAME = 'rte'", lengths], [])
    plain, *methods = read.stages[2:]
    assert plain.name == "standard"
    found = {}
    for stage in methods:
        # The schedule is a function made anew for each stage.
        same = dataclasses.replace(stage, name=plain.name, learning_rate=plain.learning_rate)
        assert stage.learning_rate(0) == plain.learning_rate(0)
        found[stage.name] = {
            field.name
            for field in dataclasses.fields(stage)
            if getattr(same, field.name) != getattr(plain, field.name)
        }
    changed = {
        "kl_to_base stm dft eaft talr": {"objective"},
        "l2_sp mofo half_fine_tuning": {"optimizer"},
        "value_only bottom_frozen": {"trainable"},
        "lora": {"adapter", "optimizer", "trainable"},
    }
    assert found == {name: own for names, own in changed.items() for name in names.split()}
    assert (plain.objective, plain.adapter, list(plain.trainable)) == (None, None, ["all"])


def test_wise_ft_interpolates_between_the_base_and_the_stage(run):
    base, tuned = (comparison(run, row)[0] for row in ("pretrained", "standard_fine_tuning"))
    assert comparison(run, "WiSE_FT_0")[0] == base
    assert comparison(run, "WiSE_FT_1")[0] == tuned
    between, origin = comparison(run, "WiSE_FT_0_25")
    assert between not in (base, tuned)
    assert origin.startswith("0.25 of this run: stage standard, step ")
    assert origin.endswith("; 0.75 of scratch (seed 0)")


def test_the_weights_are_the_shares_of_both():
    rng = np.random.default_rng(0)
    tuned, base = ({"a": jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)} for _ in range(2))
    kept = np.array(tuned["a"], np.float64)
    (mixed,) = _interpolated(tuned, base, 0.3).values()
    np.testing.assert_allclose(mixed, 0.3 * kept + 0.7 * np.asarray(base["a"]), rtol=1e-6)


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
