"""Which runs are seeds of one row, which tasks share a column, and what chose a checkpoint."""

import csv
import dataclasses
import io
import json
import random

import numpy as np
import pytest
import report_helpers as lab
import run_helpers
from report_helpers import cell, command, compare

from promot_t5x.errors import UserError
from promot_t5x.report import pairs, table
from promot_t5x.tasks import metrics
from promot_t5x.tasks.perplexity import Perplexity

CONFIG = """\
LEARNING_RATE = {rate}
MIXTURE_OR_TASK_NAME = '{task}'
MODEL_DIR = '{home}'
RANDOM_SEED = {seed}
promot.promot.seeds = %SEEDS
SEEDS = None
"""


def write(home, *, seed=0, rate=0.001, task=None, labels=("pretrained", "ProMoT")):
    """A run that recorded its configuration; the pretrained model is the same in all."""
    target, suite = lab.made_up_tasks()
    if task:
        target = dataclasses.replace(target, name=task)
    for label in labels:
        config = CONFIG.format(rate=rate, task=target.name, home=home, seed=seed)
        own = 0 if label == "pretrained" else seed
        lab.write_run(home, target, suite, seed=own, labels=[label], config=config)
    return home


def labels(made):
    return {row.label: len(row.runs) for row in made.rows}


# --------------------------------------------------------------------------------- seeds


def test_runs_that_differ_in_seed_and_directory_are_seeds(tmp_path):
    made = compare(write(tmp_path / "a"), write(tmp_path / "b", seed=1))
    # The pretrained checkpoint has no seeds: it is one model, evaluated twice.
    assert labels(made) == {"pretrained": 1, "ProMoT": 2}
    assert made.row("ProMoT").seeds == ["0", "1"]


def test_runs_on_different_targets_are_rows_of_their_own(tmp_path):
    one, other = write(tmp_path / "a", task="rte"), write(tmp_path / "b", task="enfr")
    made = compare(one, other)
    assert labels(made) == {"pretrained": 1, "ProMoT [rte]": 1, "ProMoT [enfr]": 1}
    assert made.row("pretrained").cells.keys() >= set(made.of_kind("target"))
    done = command(one, other)
    assert "2 seeds" not in done.out
    assert "'ProMoT' is 2 rows, as its runs are no seeds of one method" in done.out
    assert "targets: rte and enfr" in done.out


def test_runs_of_different_settings_are_rows_of_their_own(tmp_path):
    one, other = write(tmp_path / "a"), write(tmp_path / "b", seed=1, rate=0.003)
    more = write(tmp_path / "c", seed=2)
    made = compare(one, other, more)
    assert labels(made) == {
        "pretrained": 1,
        "ProMoT [LEARNING_RATE=0.001]": 2,
        "ProMoT [LEARNING_RATE=0.003]": 1,
    }
    assert any("LEARNING_RATE: 0.001 and 0.003" in note for note in made.notes)
    # Only what is said to be alike by hand is refused.
    row = "comparison/ProMoT"
    done = command(f"ours={one / row}", f"ours={other / row}")
    assert done.status == 2
    assert "no seeds of one method: LEARNING_RATE: 0.001 and 0.003" in done.err


def test_a_run_twice_is_refused(tmp_path):
    one, same = write(tmp_path / "a"), write(tmp_path / "b")
    with pytest.raises(UserError, match="both 'ProMoT', seed 0: name each run once"):
        compare(one, same)


def test_a_label_goes_before_the_rows_of_a_run(tmp_path):
    one, other = write(tmp_path / "a", task="rte"), write(tmp_path / "b", task="enfr")
    made = compare(f"rte={one}", f"en-fr={other}")
    assert list(labels(made)) == [
        *("rte: pretrained", "rte: ProMoT", "en-fr: pretrained", "en-fr: ProMoT")
    ]
    alone = compare(f"ours={write(tmp_path / 'c', labels=['ProMoT'])}")
    assert list(labels(alone)) == ["ours"]


# ----------------------------------------------------------------------- columns and suites


def test_prompt_kept_and_removed_share_columns(tmp_path):
    """What `eval` writes with PROMPT_MODE = 'both'."""
    _, suite = lab.made_up_tasks()
    for mode, skill in (("kept", 0.4), ("removed", 0.8)):
        for task in suite:
            home = tmp_path / "ev" / f"stage_two_prompt_{mode}"
            lab.write_answers(home, task, lab.answer(task, lab.Model(skill)), prompt=mode == "kept")
    made = compare(tmp_path / "ev")
    assert [column.kind for column in made.columns] == ["suite", "suite", "mean", "change"]
    assert all(len(row.cells) >= 3 for row in made.rows)
    names = ["stage_two_prompt_kept", "stage_two_prompt_removed"]
    done = command(tmp_path / "ev", "--compare", *names)
    assert done.status == 0
    for title in ("fruit", "talk", "mean"):
        assert f"\n{title} " in done.out
    difference = pairs.pair(made, *names).differences[-1]
    assert difference.found.value == pytest.approx(
        cell(made, names[1], "mean").value - cell(made, names[0], "mean").value
    )


def test_a_target_is_one_in_every_row(tmp_path):
    target, suite = lab.made_up_tasks()
    for name, prompt in (("base", False), ("tuned", True)):
        right = lab.answer(target, lab.Model(0.5))
        lab.write_answers(tmp_path / name, target, right, prompt=prompt)
        lab.write_answers(tmp_path / name, suite[0], lab.answer(suite[0], lab.Model(0.5)))
    made = compare(tmp_path / "base", tmp_path / "tuned")
    assert [column.title for column in made.of_kind("target")] == ["toy"]
    assert all(made.of_kind("target")[0] in row.cells for row in made.rows)


def test_an_empty_comparison_says_why(tmp_path):
    _, (fruit, talk) = lab.made_up_tasks()
    lab.write_answers(tmp_path / "a", fruit, lab.answer(fruit, lab.Model(0.5)))
    lab.write_answers(tmp_path / "b", talk, lab.answer(talk, lab.Model(0.5)))
    done = command(tmp_path / "a", tmp_path / "b", "--compare", "a", "b")
    assert done.status == 2
    assert "no task was evaluated for both. 'a' has toy_fruit_1shot; 'b' has toy_talk" in done.err
    # Without a comparison both are shown, and the page compares what can be compared.
    assert command(tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out").status == 0


def test_other_splits_are_refused_and_the_split_is_shown(tmp_path):
    _, (fruit, _) = lab.made_up_tasks()
    for split in ("validation", "test"):
        said = lab.answer(fruit, lab.Model(0.5))
        lab.write_answers(tmp_path / split, fruit, said, split=split)
    with pytest.raises(UserError, match="different splits, 'validation' and 'test'"):
        compare(tmp_path / "validation", tmp_path / "test")
    for kind in ("terminal", "markdown", "latex", "csv"):
        said = command(tmp_path / "test", "--format", kind).out
        assert "test" in said.replace(str(tmp_path), "").replace("test  ", "test ")
    assert "exact match, test" in command(tmp_path / "test", "--format", "markdown").out


def test_likelihood_beside_answers_is_refused_for_what_it_is(tmp_path):
    _, (fruit, _) = lab.made_up_tasks()
    said = lab.answer(fruit, lab.Model(0.5))
    lab.write_answers(tmp_path / "rank", fruit, said)
    likely = dataclasses.replace(fruit, metrics=[Perplexity()])
    lab.write_answers(tmp_path / "likely", likely, [{"log_prob": -1.0, "tokens": 2}] * len(said))
    with pytest.raises(UserError, match=r"the likelihood of the right answers \(DECODING"):
        compare(tmp_path / "rank", tmp_path / "likely")


def test_each_suite_has_a_mean_of_its_own(tmp_path):
    _, suite = lab.made_up_tasks()
    more = [dataclasses.replace(t, name=t.name.replace("1shot", "4shot")) for t in suite]
    for name, skill in (("a", 0.3), ("b", 0.6)):
        for task in [*suite, *more]:
            better = skill + 0.2 * task.name.endswith("4shot")
            lab.write_answers(tmp_path / name, task, lab.answer(task, lab.Model(better)))
    words = [tmp_path / "a", tmp_path / "b"]
    made = compare(*words, groups={"fruit only": ["fruit_1shot", "fruit_4shot"]})
    titles = [column.title for column in made.columns if column.kind in ("mean", "change")]
    assert titles == [
        *("mean, 1-shot", "change, 1-shot", "mean, 4-shot", "change, 4-shot", "mean of fruit only")
    ]
    for shots in ("1", "4"):
        scores = [cell(made, "b", f"{t}_{shots}shot").value for t in ("fruit", "talk")]
        assert cell(made, "b", f"mean, {shots}-shot").value == pytest.approx(np.mean(scores))
    done = command(*words, "--group", "few=frut_1shot")
    assert done.status == 2
    assert "Did you mean 'fruit_1shot'?" in done.err


def test_equal_questions_count_once(tmp_path):
    right = "apple"
    questions = [(f"q{n}", f"question {n % 10}?", right) for n in range(40)]
    task = lab.Task("toy_fruit_1shot", questions, [metrics.exact_match])
    for name, wrong in (("a", {0, 1, 2}), ("b", set())):
        said = [right if n % 10 not in wrong else "pear" for n in range(40)]
        lab.write_answers(tmp_path / name, task, said)
    made = compare(tmp_path / "a", tmp_path / "b")
    assert any("10 different questions among 40 examples" in note for note in made.notes)
    # All right: Clopper and Pearson's interval of ten, not of forty.
    assert cell(made, "b", "toy_fruit_1shot").interval.low == pytest.approx(69.15, abs=0.01)
    found = pairs.pair(made, "a", "b").differences[0].found
    # Three questions won of ten, and not twelve examples.
    assert found.changes is None
    assert found.p_value > 0.05


# ---------------------------------------------------------------------- one interval everywhere


def test_two_seeds_have_one_interval_everywhere(tmp_path):
    words = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
    made = compare(*words)
    lines = list(csv.DictReader(io.StringIO(table.tidy_csv(made))))
    (line,) = (li for li in lines if (li["row"], li["kind"]) == ("ProMoT", "mean"))
    low, high = (f"{float(line[key]):.1f}" for key in ("low", "high"))
    assert f"({low}–{high})" in table.markdown(made)
    assert f"{low}–{high}" in table.terminal(made)
    (change,) = (li for li in lines if li["kind"] == "change")
    shown = pairs.pair(made, "pretrained", "ProMoT")
    assert f"{float(change['low']):+.1f}…" in str(table.pair_lines(shown))
    for li in lines:
        if li["kind"] != "change":
            assert 0 <= float(li["low"]) <= float(li["high"]) <= 100


# --------------------------------------------------------------------------------- statements


def suite_of_eight(home, before, after, examples=200):
    """Two rows on eight tasks that find the same questions hard."""
    rng = random.Random(0)
    for n, scores in enumerate(zip(before, after, strict=True)):
        questions = [(f"q{i}", f"question {i}?", "yes") for i in range(examples)]
        task = lab.Task(f"t{n}_1shot", questions, [metrics.exact_match])
        hard = [rng.random() for _ in range(examples)]
        for name, score in zip(("a", "b"), scores, strict=True):
            said = ["yes" if each < score else "no" for each in hard]
            lab.write_answers(home / name, task, said)
    return compare(home / "a", home / "b")


def test_a_mean_that_one_task_carries_says_so(tmp_path):
    made = suite_of_eight(tmp_path, [0.3] + [0.9] * 7, [0.9] * 8)
    (said,) = pairs.pair(made, "a", "b").statements
    assert "comes from t0 (+" in said
    assert "over the other 7 tasks it is" in said
    done = command(tmp_path / "a", tmp_path / "b", "--compare", "a", "b", "--format", "markdown")
    assert "comes from t0" in done.out


def test_a_mean_that_all_tasks_carry_says_so(tmp_path):
    made = suite_of_eight(tmp_path, [0.5] * 8, [0.8] * 8)
    (said,) = pairs.pair(made, "b", "a").statements
    assert "comes from no few tasks; without t" in said
    assert (
        pairs.pair(suite_of_eight(tmp_path / "x", [0.5] * 8, [0.5] * 8), "a", "b").statements == []
    )


# --------------------------------------------------------------------------------- selection


def write_selected(run, target, label, *, chosen_on="validation", stage_split=None, seeds=10):
    """A row's answers to the target, and those of the stage's checkpoints, all equally good."""
    name = label.replace(" ", "_").replace("-", "_")
    said = lab.answer(target, lab.Model(0.8, seed=1))
    lab.write_answers(run / "comparison" / name, target, said, prompt=True, chosen_on=chosen_on)
    for n in range(1, seeds + 1) if stage_split else ():
        said = lab.answer(target, lab.Model(0.8, seed=n))
        lab.write_answers(run / name, target, said, step=10 * n, split=stage_split)


def test_a_score_whose_questions_chose_the_checkpoint_is_marked(tmp_path):
    target, suite = lab.made_up_tasks(100)
    run = lab.write_run(tmp_path / "run", target, suite)
    write_selected(run, target, "ProMoT", stage_split="validation")
    write_selected(run, target, "standard fine-tuning", chosen_on="train[:100]")
    write_selected(run, target, "prompt tuning", chosen_on="train+validation[:50%]")
    made = compare(run)
    (column,) = made.of_kind("target")
    optimism = {row.label: row.selected(column) for row in made.rows}
    assert [k for k, v in optimism.items() if v is not None] == ["prompt tuning", "ProMoT"]
    assert np.isnan(optimism["prompt tuning"])
    # The largest of ten scores with standard errors of 4 points lies 1.54 of them too high; on
    # resamples of one set of answers it is about as much.
    assert 2 < optimism["ProMoT"] < 10
    done = command(run)
    assert done.out.count("†") == 3
    assert f"ProMoT, toy: +{optimism['ProMoT']:.1f}" in done.out
    assert "prompt tuning, toy: unknown" in done.out
    lines = csv.DictReader(io.StringIO(table.tidy_csv(made)))
    assert {li["row"] for li in lines if li["optimism"]} == {"ProMoT"}


def test_slices_without_common_questions_chose_nothing_of_each_other(tmp_path):
    target, suite = lab.made_up_tasks(40)
    run = lab.write_run(tmp_path / "run", target, suite, labels=["ProMoT"])
    first, second = (
        dataclasses.replace(target, questions=part)
        for part in (target.questions[:20], target.questions[20:])
    )
    write_selected(run, first, "ProMoT", chosen_on="validation[:20]")
    for n in (1, 2):
        said = lab.answer(second, lab.Model(0.8, seed=n))
        lab.write_answers(run / "ProMoT", second, said, step=10 * n, split="validation[20:]")
    assert compare(run).row("ProMoT").runs[0].selection is None


def test_other_demonstrations_have_a_spread_of_their_own(tmp_path):
    target, suite = lab.made_up_tasks(20)
    run = lab.write_run(tmp_path / "run", target, suite, labels=["pretrained", "ProMoT"])
    row = run / "comparison" / "ProMoT"
    scores = {task.name: [] for task in suite}
    for draw in (0, 1, 2):
        for task in suite:
            place = row / f"shot_seed_{draw}" if draw else row
            if draw:
                said = lab.answer(task, lab.Model(0.3 * draw, seed=draw))
                lab.write_answers(place, task, said)
            summary = json.loads((place / f"inference_eval/{task.name}-000000.json").read_text())
            scores[task.name].append(summary["metrics"][summary["primary"]])
    made = compare(run)
    column = next(each for each in made.of_kind("mean") if each.title == "mean")
    means = np.mean(list(scores.values()), axis=0)
    expected = np.std(means, ddof=1)
    assert expected > 0
    assert made.row("ProMoT").over_demonstrations(column) == pytest.approx(expected)
    assert made.row("pretrained").over_demonstrations(column) is None
    done = command(run)
    assert f"no interval counts: ProMoT, mean: {expected:.2f}." in done.out
    lines = csv.DictReader(io.StringIO(table.tidy_csv(made)))
    found = {li["task"]: li["demonstrations_sd"] for li in lines if li["demonstrations_sd"]}
    assert found.keys() == {"mean", *scores}
    for task, values in scores.items():
        assert float(found[task]) == pytest.approx(np.std(values, ddof=1), rel=1e-5)


# --------------------------------------------------------------------------------- own metrics


METRIC = """\
def exact(targets, predictions):
    return {"exact": 100 * sum(map(str.__eq__, targets, predictions)) / len(targets)}
"""


def write_own(tmp_path, name, recorded):
    """An evaluation with a metric of a module of its own, which this process has not imported."""
    _, (fruit, _) = lab.made_up_tasks()
    home = tmp_path / "ev"
    config = f"MIXTURE_OR_TASK_MODULE = '{recorded}'\nsuite/evaluator.EvalConfig.module = %M\n"
    lab.write_answers(home, fruit, lab.answer(fruit, lab.Model(0.5)), config=config)
    (path,) = (home / "inference_eval").glob("*0.json")
    summary = json.loads(path.read_text())
    score = summary["metrics"]["exact_match"]
    summary |= {
        "metrics": {"exact": score},
        "primary": "exact",
        "metric_specs": [{"module": name, "function": "exact"}],
    }
    path.write_text(json.dumps(summary))
    return home, score


@pytest.mark.parametrize("command_name", ["report", "score"])
def test_a_metric_of_ones_own_is_imported_from_where_the_run_did(tmp_path, command_name):
    name = f"own_tasks_{command_name}"
    path = tmp_path / f"{name}.py"
    path.write_text(METRIC)
    home, score = write_own(tmp_path, name, path)
    done = run_helpers.here([command_name, str(home)])
    assert done.status == 0, done.err
    assert f"Imported {path}, which has the metric exact of toy_fruit_1shot" in done.err
    assert f"{score:.1f}" in done.out


def test_a_module_that_moved_is_named_by_hand(tmp_path):
    home, _ = write_own(tmp_path, "own_tasks_moved", "/nowhere/own_tasks_moved.py")
    done = command(home)
    assert done.status == 2
    assert "imported it from /nowhere/own_tasks_moved.py, which is not here" in done.err
    assert "--module PATH/own_tasks_moved.py" in done.err
    (tmp_path / "own_tasks_moved.py").write_text(METRIC)
    done = command(home, "--module", tmp_path / "own_tasks_moved.py")
    assert done.status == 0, done.err
