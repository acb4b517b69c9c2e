"""Every row that the paper prints has a configuration that makes it, and its numbers agree."""

import gin
import pytest

from promot_t5x import config
from promot_t5x.planning import planned_runs
from promot_t5x.report.printed import FIGURES, ROWS, configurations, files_of
from promot_t5x.runs import promot
from promot_t5x.tasks.suite import EIGHT


def test_every_run_of_the_paper_is_named_and_no_other():
    shipped = (config.gin_root() / "paper").glob("*.gin")
    assert set(configurations()) == {
        path.stem for path in shipped if "MODEL_DIR=" in path.read_text()
    }


def test_every_row_of_the_tables_is_there_once():
    assert len(ROWS) == 18 + 27  # of fine-tuned tasks, and of the suite
    assert len({(row.table, row.method, row.shots, *row.targets) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", [row for row in ROWS if row.suite], ids=lambda row: row.method)
def test_the_printed_mean_is_that_of_the_printed_scores(row):
    assert len(row.suite) == len(EIGHT)
    # Each score and the mean are rounded to two digits.
    assert row.mean == pytest.approx(sum(row.suite) / len(EIGHT), abs=0.0101)


@pytest.mark.parametrize("name", configurations())
def test_the_run_of_a_row_has_its_model_targets_and_suite(name):
    """The configuration is read and checked, as a dry run does."""
    files = configurations()[name]
    config.configured(promot.promot)
    config.parse(files, ["MODEL_DIR = '/tmp/run'"], search_paths=[])
    config.check([promot.promot])
    comparison = gin.get_configurable(promot.Comparison)()
    labels = {each.label.rpartition(": ")[2] for each in comparison.rows}
    asked = [target.mixture_or_task_name for target in comparison.targets]
    suites = comparison.suite.mixture_or_task_name
    for row in (row for row in ROWS if row.configuration == name):
        assert row.label in labels
        if row.shots is not None:
            assert f"icl_{row.shots}shot" in suites
        one_shot = "_1shot" * name.endswith("_1shot")
        assert one_shot or "1-shot" not in row.method
        both = ["rte", "wmt14_enfr"]
        tasks = both if asked == [f"rte_wmt14_enfr{one_shot}"] else asked
        assert {task.removesuffix(one_shot) for task in tasks} >= set(row.targets)
    assert name.startswith(comparison.base + "_")


def test_figures_are_of_the_papers_steps_and_tasks():
    shipped = (config.gin_root() / "paper" / "figures").glob("*.gin")
    assert {figure.configuration for figure in FIGURES} == {path.stem for path in shipped}
    assert "".join(figure.number for figure in FIGURES) == "123, 756"
    for name, steps, period, tasks, target in (
        ("early_training", 500, 100, "triviaqa webquestions wmt16_ende", "rte"),
        ("long_training", 20_000, 2_000, "cb wic wmt16_ende wmt16_enro", "wmt14_enfr"),
    ):
        run = planned_runs.read(files_of(name), [], [])
        for stage in (stage for stage in run.stages if stage.name != "stage_one"):
            assert (stage.train_steps, stage.eval_period, stage.suite_period) == (
                *(steps, period),
                period,
            )
            assert stage.suite.names == [f"{task}_1shot" for task in tasks.split()]
            assert (stage.alignment is not None) is (name == "early_training")
        assert f"ask {target}" in [asked.name for asked in run.asked]
        # The groups of the report are of tasks that are asked.
        flags = {f.flags for f in FIGURES if f.configuration == name and f.flags}
        for group in (flag.split("=")[1] for text in flags for flag in text.split()[1::2]):
            assert set(group.split(",")) < set(tasks.split())
