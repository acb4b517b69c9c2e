"""The report of runs: its numbers from the records, its formats, and what it refuses."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import report_helpers as lab
import run_helpers
import sacrebleu
from report_helpers import cell, command, compare

from promot_t5x.errors import UserError
from promot_t5x.report import pairs, table
from promot_t5x.report.statistics import scores
from promot_t5x.tasks import metrics


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A run on real rows, of all four models."""
    target, suite = lab.real_tasks()
    return lab.write_run(tmp_path_factory.mktemp("real") / "run", target, suite)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    target, suite = lab.made_up_tasks()
    return lab.write_run(tmp_path_factory.mktemp("toy") / "run", target, suite)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A run of three seeds; the pretrained row is of none."""
    target, suite = lab.made_up_tasks()
    run = tmp_path_factory.mktemp("seeds") / "run"
    lab.write_run(run, target, suite, labels=["pretrained"])
    for seed in range(3):
        home = run / f"seed_{seed}"
        lab.write_run(home, target, suite, seed=seed, labels=["standard fine-tuning", "ProMoT"])
        for row in (home / "comparison").iterdir():
            told = json.loads((row / "row.json").read_text())
            (row / "row.json").write_text(json.dumps(told | {"seed": seed}))
    return run


@pytest.fixture
def copy(toy, tmp_path):
    """A run to damage."""
    shutil.copytree(toy, tmp_path / "run")
    return tmp_path / "run"


def records(run, row, task):
    return run_helpers.json_lines(
        run / "comparison" / row / "inference_eval" / f"{task}-000000.jsonl"
    )


# ---------------------------------------------------------------------------------- numbers


def test_numbers_on_real_rows_are_those_of_the_records(real):
    """Each score by a few lines that share nothing with the report."""
    made = compare(real)
    row = "standard_fine_tuning"
    shares = {}
    means = []
    for title, task in (
        ("rte", "rte"),
        ("cb", "cb_1shot"),
        ("wic", "wic_1shot"),
        ("wmt16_ende", "wmt16_ende_1shot"),
        ("wmt16_enro", "wmt16_enro_1shot"),
        ("triviaqa", "triviaqa_1shot"),
        ("webquestions", "webquestions_1shot"),
        ("xsum", "xsum_1shot"),
        ("wikilingua", "wikilingua_1shot"),
    ):
        found = records(real, row, task)
        targets, said = [r["target"] for r in found], [r["prediction"] for r in found]
        if "wmt" in task:
            score = sacrebleu.corpus_bleu(said, [targets], tokenize="intl").score
        else:
            # The score of each example by itself is in its record.
            score = np.mean([r["score"] for r in found])
        if title in ("rte", "cb", "wic"):
            assert score == pytest.approx(100 * np.mean(np.array(targets) == said))
        else:
            shares[title] = 100 * np.mean([answer in ("True", "False") for answer in said])
        assert cell(made, "standard fine-tuning", title).value == pytest.approx(score)
        means += [score] if title != "rte" else []
    assert cell(made, "standard fine-tuning", "mean").value == pytest.approx(np.mean(means))
    share = cell(made, "standard fine-tuning", "target's format")
    assert share.value == pytest.approx(np.mean(list(shares.values())))
    assert share.value > 50
    change = cell(made, "standard fine-tuning", "change")
    base = cell(made, "pretrained", "mean")
    assert change.value == pytest.approx(np.mean(means) - base.value)
    assert change.interval.high < -10


def test_a_pair_on_real_rows_is_what_the_records_say(real):
    made = pairs.pair(compare(real), "pretrained", "ProMoT")
    by_title = {d.column.title: d for d in made.differences}
    right = [
        np.array([r["prediction"] == r["target"] for r in records(real, row, "cb_1shot")])
        for row in ("pretrained", "ProMoT")
    ]
    cb = by_title["cb"]
    assert cb.found.test == scores.MCNEMAR
    assert cb.found.changes == (
        (right[1] & ~right[0]).sum(),
        (right[0] & ~right[1]).sum(),
        len(right[0]),
    )
    assert by_title["wmt16_ende"].found.test == by_title["xsum"].found.test == scores.QUESTIONS
    assert by_title["triviaqa"].found.test == scores.MCNEMAR
    suite = [d for d in made.differences if d.column.kind == "suite"]
    smallest = min(suite, key=lambda d: d.found.p_value)
    assert smallest.adjusted == pytest.approx(min(1, 8 * smallest.found.p_value))
    assert all(d.adjusted >= d.found.p_value for d in suite)


def test_the_same_records_give_the_same_report(toy):
    first, second = compare(toy), compare(toy)
    assert table.tidy_csv(first) == table.tidy_csv(second)
    alone = compare(*(toy / "comparison" / name for name in ("pretrained", "ProMoT")))
    assert cell(alone, "ProMoT", "change").interval == pytest.approx(
        cell(first, "ProMoT", "change").interval
    )


def test_seeds_and_questions_both_count(seeds):
    made = compare(seeds)
    assert [row.label for row in made.rows] == ["pretrained", "standard fine-tuning", "ProMoT"]
    assert [len(row.runs) for row in made.rows] == [1, 3, 3]
    mean = cell(made, "ProMoT", "mean")
    assert mean.value == pytest.approx(np.mean(mean.values))
    assert mean.variance.seeds == pytest.approx(np.var(mean.values, ddof=1) / 3)
    # Both sources count, and no score is outside of the scale.
    assert mean.interval.low < mean.value - 1.9 * mean.variance.questions**0.5
    assert all(
        0 <= end <= 100 for row in made.rows for end in cell(made, row.label, "toy").interval
    )

    paired = pairs.pair(made, "standard fine-tuning", "ProMoT")
    (difference,) = (d.found for d in paired.differences if d.column.kind == "mean")
    of = [cell(made, row.label, "mean").values for row in made.rows[1:]]
    each = np.subtract(of[1], of[0])
    assert difference.test == scores.PAIRED_SEEDS
    assert difference.value == pytest.approx(each.mean())
    assert difference.values == pytest.approx(each)
    assert difference.variance.seeds == pytest.approx(each.var(ddof=1) / 3)
    against = pairs.pair(made, "pretrained", "ProMoT").differences[0].found
    assert against.test == scores.ONE_SIDE
    assert against.changes is None
    # The change is the difference from the one pretrained model, wherever it is shown.
    change = cell(made, "ProMoT", "change")
    base = cell(made, "pretrained", "mean").value
    assert change.value == pytest.approx(mean.value - base)
    mean_row = pairs.pair(made, "pretrained", "ProMoT").differences[-2]
    assert mean_row.column.kind == "mean"
    assert mean_row.found == change


def test_runs_of_equal_labels_are_seeds(toy, tmp_path):
    target, suite = lab.made_up_tasks()
    other = lab.write_run(tmp_path / "other", target, suite, seed=1)
    made = compare(toy, other)
    assert {row.label: len(row.runs) for row in made.rows} == dict.fromkeys(lab.SKILLS, 2)


def test_the_format_counts_where_it_is_out_of_place(real):
    made = compare(real)
    assert made.measure.words == ("False", "True")
    # CB and WiC are answered with the target's words by right.
    assert not {"cb_1shot", "wic_1shot"} & set(made.measured)
    assert len(made.measured) == 6


def test_a_format_may_be_made_of_words(tmp_path):
    """A target with many answers is recognized by the words that its definition calls its own."""
    target = lab.Task(
        "ours", [(str(n), "?", f"za zo z{n}") for n in range(12)], [metrics.exact_match]
    )
    other = lab.Task(
        "talk_1shot", [("a", "?", "one two"), ("b", "?", "three")], [metrics.exact_match]
    )
    own = [f"z{n}" for n in range(12)] + ["za", "zo"]
    right = [answer for _, _, answer in target.questions]
    lab.write_answers(tmp_path / "x", target, right, prompt=True, answer_words=own)
    lab.write_answers(tmp_path / "x", other, ["zo za z3", "za three"])
    made = compare(tmp_path / "x")
    assert cell(made, "x", "target's format").value == 50
    assert any("the target's own 14 words" in line for line in table.legend(made))
    lab.write_answers(tmp_path / "y", target, right, prompt=True)
    lab.write_answers(tmp_path / "y", other, ["zo za z3", "za three"])
    assert compare(tmp_path / "y").measure is None


FRENCH = (
    "Le conseil municipal a adopté le budget de la ville.",
    "Les enfants jouent dans le jardin derrière la maison.",
    "Nous avons décidé de partir demain matin à huit heures.",
    "Cette loi entrera en vigueur au début de l'année prochaine.",
)


def test_a_format_may_be_a_language(tmp_path):
    """A translation's format is its language, which names and short answers do not have."""
    questions = [(str(n), "?", f"{FRENCH[n % 4]} ({n})") for n in range(12)]
    target = lab.Task("ours", questions, [metrics.exact_match])
    short = [("a", "?", "Paris"), ("b", "?", "Charles de Gaulle")]
    facts = lab.Task("facts_1shot", short, [metrics.exact_match])
    long = [("a", "?", "The council has adopted the budget of the city."), ("b", "?", FRENCH[0])]
    french = lab.Task("french_1shot", long, [metrics.exact_match])
    right = [answer for _, _, answer in target.questions]
    lab.write_answers(tmp_path / "x", target, right, prompt=True, language="fr")
    lab.write_answers(tmp_path / "x", facts, [FRENCH[1], "Charles de Gaulle"])
    lab.write_answers(tmp_path / "x", french, ["no", "no"])
    made = compare(tmp_path / "x")
    # A task that is answered in French by right says nothing.
    assert list(made.measured) == ["facts_1shot"]
    assert cell(made, "x", "target's format").value == 50
    assert any("in the target's language (fr)" in line for line in table.legend(made))
    # A language that the library does not know is said, and nothing is made up.
    lab.write_answers(tmp_path / "y", target, right, prompt=True, language="tlh")
    lab.write_answers(tmp_path / "y", facts, ["x", "y"])
    made = compare(tmp_path / "y")
    assert made.measure is None
    assert any("its language, 'tlh', is not known" in line for line in table.legend(made))


def share_of_words(targets, predictions):
    """A user's own metric, a mean over examples."""
    shares = [p.split()[0] == t.split()[0] for t, p in zip(targets, predictions, strict=True)]
    return {"first": 100 * sum(shares) / len(shares)}


def distinct(targets, predictions):
    """A user's own metric that no single example has."""
    return {"distinct": 100.0 * len(set(predictions)) / len(predictions)}


def test_metrics_of_ones_own(tmp_path):
    _, (fruit, talk) = lab.made_up_tasks()
    for label, skill in (("a", 0.4), ("b", 0.9)):
        for task, metric in ((talk, share_of_words), (fruit, distinct)):
            mine = lab.Task(task.name, task.questions, [metric])
            said = lab.answer(mine, lab.Model(skill))
            lab.write_answers(tmp_path / label, mine, said)
    made = compare(tmp_path / "a", tmp_path / "b")
    mean, other = cell(made, "b", "talk"), cell(made, "b", "fruit")
    found = run_helpers.json_lines(
        tmp_path / "b" / "inference_eval" / "toy_talk_1shot-000000.jsonl"
    )
    right = [r["prediction"].split()[0] == r["target"].split()[0] for r in found]
    assert mean.value == pytest.approx(100 * np.mean(right))
    assert mean.interval.low < mean.value < mean.interval.high
    assert np.isnan(other.interval.low)
    assert other.value > 0
    assert any("toy_fruit_1shot: distinct has no interval" in note for note in made.notes)
    assert "nan" not in table.terminal(made) + table.tidy_csv(made) + table.latex(made)
    by_title = {d.column.title: d for d in pairs.pair(made, "a", "b").differences}
    assert by_title["talk"].found.test == scores.MCNEMAR
    assert by_title["talk"].adjusted == by_title["talk"].found.p_value
    assert np.isnan(by_title["fruit"].found.p_value)
    assert np.isnan(by_title["mean"].found.p_value)


# ---------------------------------------------------------------------------------- formats


def test_every_format_has_every_number(toy):
    made = compare(toy)
    lines = list(csv.DictReader(io.StringIO(table.tidy_csv(made))))
    (line,) = (li for li in lines if (li["row"], li["task"], li["score"]) == FRUIT)
    value, low, high = (f"{float(line[key]):.1f}" for key in ("value", "low", "high"))
    assert f"{value} ({low}–{high})" in table.markdown(made)
    assert f"${value}_{{{low}}}^{{{high}}}$" in table.latex(made)
    assert value in table.terminal(made)
    assert f"{low}–{high}" in table.terminal(made)
    assert {li["score"] for li in lines if li["task"] == "toy_talk_1shot"} >= {"bleu", "bleu_13a"}


FRUIT = ("ProMoT", "toy_fruit_1shot", "exact_match")


def test_a_wide_table_goes_into_blocks(toy):
    made = compare(toy)
    narrow = table.terminal(made, width=60)
    widest = [max(map(len, text.splitlines())) for text in (narrow, table.terminal(made))]
    assert widest[0] <= 60 < widest[1]
    numbers = re.findall(r"\d+\.\d", table.terminal(made))
    assert sorted(re.findall(r"\d+\.\d", narrow)) == sorted(numbers)


def test_the_command_prints_and_writes(toy, tmp_path):
    done = command(toy, "--output", tmp_path / "out", "--compare", "pretrained", "ProMoT")
    assert done.status == 0, done.err
    assert "exact McNemar" in done.out
    assert "95% intervals" in done.out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.html", "report.md", "report.tex", "report.csv", "figures"}
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in text
    assert "Changed examples" in text
    # Self-contained: nothing is loaded from anywhere.
    assert not re.search(r'(src|href)="(?!#)|@import|url\((?!#)', text)


# --------------------------------------------------------------------------------- bad input


def test_what_is_no_run(tmp_path, toy):
    for words, said in (
        ([tmp_path / "nothing"], "there is no"),
        ([tmp_path], "holds no evaluation"),
        ([toy, toy], "name each run once"),
        ([toy, "--baseline", "pretraned"], "Did you mean 'pretrained'?"),
        ([toy, "--compare", "pretrained", "promot"], "no row 'promot'"),
        ([toy, "--changed", "pretrained", "ProMoT", "--task", "fruits"], "no task 'fruits'"),
        ([toy, "--task", "fruit"], "--changed A B"),
    ):
        done = command(*words)
        assert done.status == 2, done.err
        assert said in done.err, done.err
        assert done.err.count("\n") == 1


def test_half_written_runs(copy):
    row = copy / "comparison" / "ProMoT"
    (row / "row.json").rename(row / "row.json.part")
    with pytest.raises(UserError, match="ProMoT is unfinished.*goes on where it was"):
        compare(copy)
    (row / "row.json.part").rename(row / "row.json")
    lines = row / "inference_eval" / "toy-000000.jsonl"
    whole = lines.read_text()
    lines.write_text(whole[:-30])
    with pytest.raises(UserError, match="29 whole records.*speaks of 30"):
        compare(copy)
    lines.write_text(whole + whole.splitlines(keepends=True)[0])
    summary = row / "inference_eval" / "toy-000000.json"
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps(told | {"examples": 31}))
    with pytest.raises(UserError, match="answers the example 'q0' more than once"):
        compare(copy)
    lines.write_text(whole.replace('"id": "q1"', '"name": "q1"'))
    with pytest.raises(UserError, match=r"toy-000000.jsonl, line 2, is no record.*KeyError: 'id'"):
        compare(copy)
    lines.unlink()
    with pytest.raises(UserError, match="is there, but not its records"):
        compare(copy)
    summary.write_text("{")
    with pytest.raises(UserError, match="is not the summary of an evaluation"):
        compare(copy)
    summary.unlink()
    with pytest.raises(UserError, match="has been asked toy, but there is no summary"):
        compare(copy)


def test_records_that_were_changed_are_found(copy):
    lines = copy / "comparison" / "ProMoT" / "inference_eval" / "toy-000000.jsonl"
    lines.write_text(lines.read_text().replace('"prediction": "True"', '"prediction": "False"'))
    with pytest.raises(UserError, match="says accuracy .*, but its records give"):
        compare(copy)


def test_questions_that_were_put_otherwise_are_counted(copy):
    lines = copy / "comparison" / "ProMoT" / "inference_eval" / "toy_talk_1shot-000000.jsonl"
    lines.write_text(lines.read_text().replace('"question 7?"', '"question seven?"'))
    (note,) = compare(copy).notes
    assert note.startswith("toy_talk_1shot: 1 of 30 questions were not put to all rows")


def test_runs_that_cannot_be_compared(toy, tmp_path):
    target, suite = lab.made_up_tasks(29)
    fewer = lab.write_run(tmp_path / "fewer", target, suite, labels=["ProMoT"])
    with pytest.raises(UserError, match="toy: 'pretrained' .* have not answered the same examples"):
        compare(toy / "comparison" / "pretrained", fewer)
    shutil.copytree(toy / "comparison" / "ProMoT", tmp_path / "other")
    summary = tmp_path / "other" / "inference_eval" / "toy-000000.json"
    told = json.loads(summary.read_text())
    told |= {"metric_specs": [{"metric": "exact_match"}], "primary": "exact_match"}
    summary.write_text(json.dumps(told | {"metrics": {"exact_match": told["metrics"]["accuracy"]}}))
    with pytest.raises(UserError, match="scored by different metrics"):
        compare(toy / "comparison" / "pretrained", tmp_path / "other")
