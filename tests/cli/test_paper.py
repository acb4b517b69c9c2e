"""`promot-t5x paper`: rows listed, planned, started and compared, on the command line."""

import math
from statistics import NormalDist

import pytest
import report_helpers as lab
import run_helpers

from promot_t5x.planning import compiler
from promot_t5x.report import printed, reproduction
from promot_t5x.tasks import metrics
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.suite import EIGHT

QUESTIONS = 56
LABELS = {"pretrained": 0, "standard fine-tuning": 1, "ProMoT": 2}
# Of 56, how many CB questions each model has right, after one demonstration.
CB = {"pretrained": 26, "standard fine-tuning": 41, "ProMoT": 28}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The run of one configuration, with one of the paper's suites."""
    home = tmp_path_factory.mktemp("paper")
    run = home / "mt5_xxl_rte"
    words = "one two three four five six"
    target = lab.Task("rte", [(str(n), f"{n}?", "True") for n in range(20)], [metrics.accuracy])
    suite = []
    for name in EIGHT:
        metric, answer = (Bleu(), words) if "wmt" in name else (metrics.accuracy, "True")
        asked = [(str(n), f"{n}?", answer) for n in range(QUESTIONS)]
        suite.append(lab.Task(f"{name}_1shot", asked, [metric]))
    for label, position in LABELS.items():
        scored = [(target, lab.Model(1.0)), *((task, lab.Model(0.0)) for task in suite)]
        row = lab.write_row(
            run / "comparison", f"RTE: {label}" if position else label, scored[0], scored[1:],
            position=position, stage=None if label == "pretrained" else f"stage_{position}",
        )  # fmt: skip
        said = ["True"] * CB[label] + ["False"] * (QUESTIONS - CB[label])
        lab.write_answers(row, suite[0], said)
        for task in (task for task in suite if "wmt" in task.name):
            lab.write_answers(row, task, ["nothing"] * QUESTIONS)
    (run / "config.gin").write_text("format.Format.separator = ' ## '\n")
    return home


def paper(*words):
    return run_helpers.succeed(["paper", *map(str, words)])


def lines_below(text, title):
    """The lines of a title, by their first words."""
    found = text.split(f"{title}\n", 1)[1].split("\n")
    rows = []
    for line in found:
        if not line.startswith("  "):
            break
        rows.append(line.split())
    return rows


def test_every_printed_row_is_listed_with_its_configuration_and_whether_it_was_made(directory):
    plain, told = paper("list"), paper("list", directory)
    for text in (plain, told):
        for row in printed.ROWS:
            assert any(
                row.configuration in line and f"  {row.name} " in line for line in text.split("\n")
            )
        assert all(name in text for name in printed.configurations())
    of = {tuple(words[:-2]): words[-1] for words in lines_below(told, f"{printed._RTE}:")}
    assert of["standard,", "1-shot"] == of["ProMoT,", "1-shot"] == "made"
    assert of["standard,", "4-shot"] == "begun"  # it asked one suite
    assert "made" not in plain
    for figure in printed.FIGURES:
        assert f"  {figure.number}: {figure.about} " in plain
        assert f"{figure.drawn} ({figure.number})" in plain


def test_the_papers_number_stands_beside_the_runs(directory):
    text = paper("compare", directory)
    title = f"{printed._RTE}: ProMoT, 1-shot"
    rows = {words[0]: words for words in lines_below(text, title)}
    assert list(rows) == [*EIGHT, "mean"]
    _, theirs, ours, interval, difference, p, adjusted, questions, seeds, *differs = rows["cb"]
    assert (theirs, ours, difference) == ("66.07", "50.00", "-16.1")
    assert (questions, seeds, differs) == ("56", "1", [])
    low, high = map(float, interval.split("–"))
    assert low < 50 < high
    # Two independent shares: the run's by its sample variance, the paper's a binomial's.
    error = 100 * math.sqrt(0.25 / 55 + 0.6607 * 0.3393 / 56)
    assert float(p) == pytest.approx(2 * NormalDist().cdf(-16.07 / error), abs=0.0006)
    assert float(adjusted) > float(p)
    # A score of nothing has no variance of its own, but the paper's has.
    assert rows["wic"][-1] == "yes"
    promised = text.split("cells differ significantly:\n")[1]
    assert f"{title}, wic: 51.41 in the paper, 0.00 here" in promised
    assert f"{title}, cb" not in promised
    # An equal score does not differ, whatever its variance.
    standard = {w[0]: w for w in lines_below(text, f"{printed._RTE}: standard, 1-shot")}
    assert standard["cb"][1:3] == ["73.21", "73.21"]
    assert standard["xsum"][1:3] == ["0.00", "0.00"]
    assert standard["xsum"][5] == "1.00"
    # Rows that no run made are left out.
    assert ", 4-shot\n" not in text


def test_what_the_paper_leaves_open_is_said_with_the_runs_own_choices(directory):
    text = paper("compare", f"mt5_xxl_rte={directory / 'mt5_xxl_rte'}").split("leaves open")[1]
    for name in Format.__dataclass_fields__:
        assert f"format.Format.{name} = " in text
    assert "format.Format.separator = ' ## ': between a demonstration and what follows" in text
    assert "Stage one has stage two's dropout and label smoothing" in text
    assert "RTE's checkpoint is chosen on the validation rows on which it is reported" in text


def test_the_means_variance_is_that_of_its_tasks(directory):
    cells = reproduction.compare(directory / "mt5_xxl_rte", "mt5_xxl_rte", resamples=50)
    of = {(cell.score, cell.row.method): cell for cell in cells if cell.row.table == printed._RTE}
    mean = of["mean", "ProMoT"]
    assert mean.questions == 8 * QUESTIONS
    assert mean.made.value == pytest.approx(50 / 8)
    shares = [number / 100 for number in mean.row.suite]
    theirs = sum(p * (1 - p) / QUESTIONS for p in shares)
    error = 100 * math.sqrt(theirs + 0.25 / 55) / 8
    assert mean.p_value == pytest.approx(2 * NormalDist().cdf(-(20.10 - 50 / 8) / error), rel=1e-6)


def test_a_directory_of_no_run_is_refused(directory, tmp_path):
    for words, said in (
        ([tmp_path], "holds none"),
        ([f"mt5_xxl_ret={directory}"], "Did you mean 'mt5_xxl_rte'"),
        ([tmp_path / "nowhere"], "there is no directory"),
        ([directory, directory / "mt5_xxl_rte"], "name each run once"),
    ):
        done = run_helpers.here(["paper", "compare", *map(str, words)])
        assert (done.status, done.out) == (2, "")
        assert said in done.err


def test_run_starts_a_configuration_with_the_users_flags(tmp_path):
    run = f"--gin.MODEL_DIR={str(tmp_path)!r}"
    said = paper("run", "mt5_xxl_rte", run, "--gin.BATCH_SIZE=8", "--dry_run")
    assert "BATCH_SIZE = 8" in said
    assert "INITIAL_CHECKPOINT_PATH = 'mt5_xxl'" in said
    assert "['icl_1shot', 'icl_4shot']" in said
    refused = run_helpers.here(["paper", "run", "mt5_xxl_rte", "--dry_runn"])
    assert refused.status == 2
    assert "Did you mean '--dry_run'" in refused.err
    unknown = run_helpers.here(["paper", "run", "mt5_xxl_ret"])
    assert unknown.status == 2
    assert "Did you mean 'mt5_xxl_rte'" in unknown.err


@pytest.mark.slow
def test_plan_says_what_a_configuration_takes(monkeypatch, tmp_path):
    """Of a chip that cannot even hold the weights, which is known without the compiler's word."""
    wrong = run_helpers.here(["paper", "plan", "mt5_xxl_ret"])
    assert wrong.status == 2
    assert "Did you mean 'mt5_xxl_rte'" in wrong.err
    if compiler.library() is None:
        done = run_helpers.here(["paper", "plan", "mt5_xxl_rte"])
        assert done.status == 2
        assert "needs the TPU compiler" in done.err
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = "plan mt5_xxl_rte --topology=v5litepod-1 --only=stage_one --gin.NUM_PARTITIONS=1"
    done = run_helpers.process(["paper", *words.split()])
    assert done.status == 1, done.err
    (line,) = (line for line in done.out.split("\n") if line.startswith("mt5_xxl_rte"))
    assert "stage_one" in line
    assert "24.07" in line
    assert "of 15.75: too large" in line
    words = "plan mt5_xxl_enfr_lora_r2 --bounds --only=stage_one --only=stage_two"
    done = run_helpers.process(["paper", *words.split()])
    assert done.status == 0, done.err
    lines = [line.split() for line in done.out.split("\n") if line.startswith("mt5_xxl_enfr_lora")]
    assert [line[6] for line in lines] == ["stage_one", "stage_two"]
    assert all("30.75" in line for line in lines)
    assert "Nothing was compiled" in done.out
