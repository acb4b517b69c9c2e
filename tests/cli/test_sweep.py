"""`promot-t5x sweep` at tiny scale: combinations, shares, what is skipped, and the report."""

import json

import pytest
import run_helpers

pytestmark = pytest.mark.slow

# Standard fine-tuning, and what interpolation makes of it without training.
METHODS = """\
from __gin__ import dynamic_registration
from promot_t5x.evaluation import evaluator as evaluate
from promot_t5x.runs import promot
from promot_t5x.runs import stages
SUITE = @suite/evaluate.EvalConfig()
suite/evaluate.EvalConfig.mixture_or_task_name = 'run_ends'
STAGES = [@standard/stages.Stage()]
ROWS = [@pretrained/promot.Row(), @standard/promot.Row(), @wise_ft/promot.Row()]
WISE_FT_SHARES = [0.5]
TRAIN_STEPS = 2
"""
RATES = "--over=LEARNING_RATE=[0.1, 1e30]"
NAME, WILD = "LEARNING_RATE_0.1", "LEARNING_RATE_1e+30"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = run_helpers.Lab(tmp_path_factory.mktemp("sweep"))
    lab.write("methods.gin", METHODS)
    return lab


def words(lab, *more, name="sweep"):
    files = ("methods.gin", "analyses/drift.gin")
    given = {"INITIAL_CHECKPOINT_PATH": None, "SEEDS": [1, 2]}
    line = lab.words("sweep", "rivals", "prompt", *files, **given)
    return ["sweep", "run", *line[1:], f"--output={lab.directory / name}", *more]


@pytest.fixture(scope="module")
def shares(lab):
    """Both shares of a sweep, each as another machine would run it; the second's run fails."""
    return [run_helpers.here(words(lab, RATES, f"--share={n}/2")) for n in (1, 2)]


@pytest.fixture(scope="module")
def sweep(lab, shares):
    return lab.directory / "sweep"


def test_each_share_runs_its_own_combinations(shares, sweep):
    for done, rate in zip(shares, (0.1, 1e30), strict=True):
        todo = [line for line in done.out.split("\n") if line.startswith("[sweep] to do: ")]
        assert todo == [f"[sweep] to do: LEARNING_RATE = {rate}"]
    assert shares[0].status == 0, shares[0].err
    told = json.loads((sweep / NAME / "sweep.json").read_text())
    assert told["settings"] == {"LEARNING_RATE": "0.1"}
    assert "LEARNING_RATE = 0.1" in (sweep / NAME / "config.gin").read_text()


def test_a_run_that_diverges_is_left_out(shares, sweep):
    assert shares[1].status == 76
    assert f"left out: {sweep / WILD}: " in shares[1].err
    assert "In call to configurable" not in shares[1].err
    assert not (sweep / WILD / "sweep.json").exists()


def test_what_is_done_is_skipped_and_what_is_more_is_not(lab, sweep):
    before = run_helpers.tree(sweep)
    one = "--over=LEARNING_RATE=[0.1]"
    out = run_helpers.succeed(words(lab, one))
    assert out == "[sweep] done: LEARNING_RATE = 0.1\n"
    # Another seed is another configuration, which the run does not have yet.
    out = run_helpers.succeed(words(lab, one, "--gin.SEEDS=[1, 2, 3]", "--dry_run"))
    assert out == "[sweep] to do: LEARNING_RATE = 0.1\n"
    assert run_helpers.tree(sweep) == before


def test_the_report_has_every_method(lab, sweep):
    output = lab.directory / "report"
    out = run_helpers.succeed(["sweep", "report", str(sweep), f"--output={output}"])
    cells = [[part.strip() for part in line.split("|")[1:-1]] for line in out.split("\n")]
    found = {tuple(row[:2]): row for row in cells if len(row) == 8}
    assert set(found) >= {
        ("pretrained", ""),
        ("standard fine-tuning", "LEARNING_RATE=0.1"),
        ("WiSE-FT", "LEARNING_RATE=0.1, share=0.5"),
    }
    drifts, scores = [], []
    for seed in (1, 2):
        home = sweep / NAME / f"seed_{seed}"
        step = json.loads((home / "standard" / "stage.json").read_text())["step"]
        rows = run_helpers.json_lines(home / "standard" / "drift.jsonl")
        drifts += [row["run_signs"] for row in rows if row["step"] == step]
        row = home / "comparison" / "standard_fine_tuning" / "row.json"
        scores.append(json.loads(row.read_text())["suite"]["run_ends"])
    row = found["standard fine-tuning", "LEARNING_RATE=0.1"]
    assert float(row[6]) == pytest.approx(sum(drifts) / 2, abs=1e-4)
    assert float(row[4]) == pytest.approx(sum(scores) / 2, abs=0.051)
    # Interpolated weights are not the stage's, whose drift was measured.
    assert found["WiSE-FT", "LEARNING_RATE=0.1, share=0.5"][6] == ""
    assert "Runs that have not finished and are left out: 1." in out  # the one that failed
    assert "chosen on the rows that are reported" in out
    assert "seeds 1, 2, validation of run_signs, run_ends" in out
    assert "standard fine-tuning | WiSE-FT" in " ".join(out.split())
    assert {path.name for path in output.iterdir()} == {
        "frontier.md", "frontier.svg", "frontier.png", "drift.svg", "drift.png",
    }  # fmt: skip
    assert (output / "frontier.md").read_text().startswith(out.strip()[:200])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--over=LEARNING_RATE=0.1"], "is no list of values; write NAME=[VALUE, VALUE]"),
        (["--over=LEARNING_RATE=[0.1"], "--over"),
        (["--over=LEARNING_RATES=[0.1]"], "Did you mean"),
        ([RATES, RATES], "--over names LEARNING_RATE twice"),
        (["--over=LEARNING_RATE=[0.1, 0.1]"], "would have one directory"),
        ([RATES, "--share=3/2"], "is no share: write I/N"),
        ([RATES, "--gin.MODEL_DIR='/tmp/x'"], "MODEL_DIR is each run's own"),
        (["--over=TRAIN_STEPS=[2, -1]"], "train_steps"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(lab, more, message):
    done = run_helpers.here(words(lab, *more, name="no"))
    assert done.status == 2
    assert message in done.err
    assert not (lab.directory / "no").exists()
