"""What people look at: figures, curves, changed examples and the page that holds them."""

import dataclasses
import itertools
import json
import math
import re
import shutil

import pytest
import report_helpers as lab
import run_helpers
from report_helpers import cell, command, compare

from promot_t5x.report import (
    changed,
    curves,
    figures,
    output,
    page,
    pairs,
    runs,
    sections,
    side_by_side,
    style,
)

STEPS = (0, 10, 20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose stages were asked while they trained, once with each of two seeds."""
    target, suite = lab.made_up_tasks()
    run = tmp_path_factory.mktemp("page") / "run"
    lab.write_run(run, target, suite)
    row = run / "comparison" / "ProMoT" / "row.json"
    row.write_text(json.dumps(json.loads(row.read_text()) | {"stage": "stage_two"}))
    for seed in (0, 1):
        for stage, habit in (("standard", 0.8), ("stage_two", 0.0)):
            home = run / f"seed_{seed}" / stage
            (home / "train").mkdir(parents=True)
            for step in STEPS:
                right = lab.Model(skill=0.4 + step / 50, seed=seed)
                lab.write_answers(home, target, lab.answer(target, right), step=step, prompt=True)
                wrong = lab.Model(skill=0.4, habit=habit * step / 20, seed=seed)
                for task in suite:
                    said = lab.answer(task, wrong)
                    lab.write_answers(home / "suite_eval", task, said, step=step)
            aligned = [
                {"step": s, "MLP": 1 - s / 40 + seed / 10, "key": 0.5}
                | {"standard_error": {"MLP": (3 + seed) / 100}}
                for s in STEPS
            ]
            lines = "".join(json.dumps(row) + "\n" for row in aligned)
            (home / "gradient_alignment.jsonl").write_text(lines)
    return run


@pytest.fixture(scope="module")
def made(run):
    return compare(run)


@pytest.fixture(scope="module")
def read(run):
    return curves.read([str(run)], runs.read([str(run)]))


# ----------------------------------------------------------------------------------- curves


def test_curves_are_what_the_stages_recorded(run, read):
    assert [(c.label, c.seed) for c in read] == [
        ("ProMoT", "0"),
        ("standard", "0"),
        ("ProMoT", "1"),
        ("standard", "1"),
    ]
    standard = read[3]
    assert [point.step for point in standard.points] == list(STEPS)
    for point in standard.points:
        said, scores = [], []
        for task, score in (("toy_fruit_1shot", "exact_match"), ("toy_talk_1shot", "bleu")):
            home = run / "seed_1" / "standard" / "suite_eval" / "inference_eval"
            history = run_helpers.json_lines(home / f"{task}-metrics.jsonl")
            (line,) = (line for line in history if line["step"] == point.step)
            scores.append(line[score])
            answers = run_helpers.json_lines(home / f"{task}-{point.step:06}.jsonl")
            said.append(sum(r["prediction"] in ("True", "False") for r in answers) / len(answers))
        assert point.suite == pytest.approx(sum(scores) / 2)
        assert point.target_format == pytest.approx(100 * sum(said) / 2)
    assert standard.points[0].target_format == 0 < standard.points[2].target_format
    mean = curves.mean_points([read[1], read[3]])
    assert [p.target for p in mean] == pytest.approx(
        [(a.target + b.target) / 2 for a, b in zip(read[1].points, read[3].points, strict=True)]
    )


def test_stages_of_two_runs_with_one_name_are_two_curves(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for row in other.glob("comparison/*/row.json"):
        told = json.loads(row.read_text())
        row.write_text(json.dumps(told | {"label": told["label"] + " + 1-shot"}))
    for aligned in other.rglob("gradient_alignment.jsonl"):
        aligned.unlink()
    words = [str(run), str(other)]
    rows = runs.read(words)
    read = curves.read(words, rows)
    found = {label: len(own) for label, own in curves.by_label(read).items()}
    assert found == {
        "ProMoT": 2, "run: standard": 2, "ProMoT + 1-shot": 2, "other: standard": 2
    }  # fmt: skip
    panels = sections.drawn(compare(run, other), read)["gradient_alignment"][0].axes
    assert [axes.get_title() for axes in panels] == ["ProMoT", "run: standard"]
    # Of the same rows they are seeds, whether a row names them or not.
    words[1] = str(shutil.copytree(run, tmp_path / "again"))
    for row in (tmp_path / "again").glob("comparison/*/row.json"):
        told = json.loads(row.read_text())
        row.write_text(json.dumps(told | {"seed": 7}))
    seeds = curves.by_label(curves.read(words, runs.read(words)))
    assert {label: len(own) for label, own in seeds.items()} == {"ProMoT": 4, "standard": 4}
    words[1] = str(other)
    alone = curves.read(words[1:], runs.read(words[1:]))
    assert "gradient_alignment" not in sections.drawn(compare(other), alone)


def test_the_answers_of_a_stage_are_those_of_its_chosen_step(run, tmp_path):
    shutil.copytree(run / "seed_0" / "standard", tmp_path / "standard")
    (tmp_path / "standard" / "stage.json").write_text('{"step": 10, "score": 1.0}')
    (found,) = runs.read([f"ours={tmp_path / 'standard'}"])
    assert found.label == "ours"
    assert found.targets["toy"].summary["step"] == 10
    assert list(found.suite) == ["toy_fruit_1shot", "toy_talk_1shot"]
    (found,) = runs.read([str(tmp_path / "standard")], step=20)
    assert found.suite["toy_talk_1shot"].summary["step"] == 20
    done = command(tmp_path / "standard", "--step", 15)
    assert done.status == 2
    assert "at step 15; it has them at 0, 10, 20" in done.err


# ---------------------------------------------------------------------------------- figures


def test_bars_have_the_tables_numbers(made):
    (axes,) = figures.bars(made).axes
    shown = [column for column in made.columns if column.kind in ("target", "suite", "mean")]
    heights = [bar.get_height() for group in axes.containers[::2] for bar in group]
    assert heights == pytest.approx([row.cells[c].value for row in made.rows for c in shown])
    whiskers = axes.containers[1].lines[2][0].get_segments()
    first = made.rows[0].cells[shown[0]].interval
    assert tuple(whiskers[0][:, 1]) == pytest.approx(tuple(first))


def test_every_figure_has_labelled_axes_and_says_the_same_twice(made, read):
    drawn = sections.drawn(made, read)
    aligned, caption = drawn.pop("gradient_alignment")
    assert caption.endswith(".")
    assert aligned.axes[0].get_ylabel() == "cosine of the gradients"
    names = ["bars", "learning", "learning_by_task", "trade_off", "format_share", "format_by_task"]
    assert list(drawn) == names
    for figure, caption in drawn.values():
        assert caption.endswith(".")
        shown = [axes for axes in figure.axes if axes.get_visible()]
        assert all("(%)" in axes.get_ylabel() for axes in shown[:1])
        for axes in shown:
            assert axes.get_xlabel() or [t for t in axes.get_xticklabels() if t.get_text()]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert "ProMoT" in labels
        assert len(set(labels)) == len(labels)
    again = sections.drawn(made, read)["trade_off"][0]
    assert style.svg(drawn["trade_off"][0]) == style.svg(again)
    assert list(sections.drawn(made, [])) == ["bars"]


def test_alignment_is_the_mean_over_seeds(read):
    assert [row["step"] for row in read[0].alignment] == list(STEPS)
    panels = figures.alignment(read).axes
    assert [axes.get_title() for axes in panels] == ["ProMoT", "standard"]
    (mlp,) = (line for line in panels[0].lines if line.get_label() == "MLP")
    assert list(mlp.get_xdata()) == list(STEPS)
    assert list(mlp.get_ydata()) == pytest.approx([1.05 - step / 40 for step in STEPS])
    assert {line.get_label() for line in panels[1].lines} > {"MLP", "key"}
    # Two seeds with standard errors of 0.03 and 0.04: the mean's is 0.025. The other has none.
    (band,) = panels[0].collections
    at_zero = [y for x, y in band.get_paths()[0].vertices if x == 0]
    assert min(at_zero) == pytest.approx(1.05 - 1.96 * 0.025)
    assert max(at_zero) == pytest.approx(1.05 + 1.96 * 0.025)


def test_rows_differ_in_more_than_color():
    looks = [style.style(n) for n in range(8)]
    for one, other in itertools.pairwise(looks):
        assert one.marker != other.marker
        assert one.hatch != other.hatch
        assert one.dashes != other.dashes
    assert len({(look.color, look.marker) for look in map(style.style, range(30))}) == 30


# --------------------------------------------------------------------------------- examples


def test_changed_examples_are_those_of_the_records(run, made):
    (fruit,) = (column for column in made.columns if column.title == "fruit")
    groups = changed.changed(made, "pretrained", "standard fine-tuning", [fruit], limit=5)
    (group,) = (group for group in groups if group.direction == "lost")
    before, after = (
        {
            r["id"]: r
            for r in run_helpers.json_lines(
                run / "comparison" / row / "inference_eval" / "toy_fruit_1shot-000000.jsonl"
            )
        }
        for row in ("pretrained", "standard_fine_tuning")
    )
    lost = {i for i in before if before[i]["score"] == 100 and after[i]["score"] == 0}
    assert group.count == len(lost)
    assert {example.id for example in group.examples} <= lost
    example = group.examples[0]
    assert len(group.examples) == 5
    assert example.inputs == before[example.id]["inputs"]
    assert example.answers == (
        before[example.id]["prediction"],
        after[example.id]["prediction"],
    )
    difference = pairs.pair(made, "pretrained", "standard fine-tuning").differences[1]
    assert difference.column == fruit
    assert difference.found.changes[1] == len(lost)


def test_changed_examples_in_the_terminal(run):
    done = command(
        run, "--changed", "pretrained", "standard fine-tuning", "--task", "fruit", "--limit", 1
    )
    assert done.status == 0, done.err
    assert "== fruit: " in done.out
    assert "question " in done.out
    assert "talk" not in done.out
    only = command(run, "--changed", "standard fine-tuning", "pretrained", "--direction", "won").out
    assert "won (a better answer)" in only
    assert "lost" not in only
    same = command(run, "--changed", "pretrained", "prompt tuning", "--task", "fruit").out
    assert same == "pretrained and prompt tuning gave the same answers.\n"


# ------------------------------------------------------------------------------------- page


def test_the_page_holds_the_table_and_the_examples(made, read, tmp_path):
    compared = [("pretrained", "standard fine-tuning"), ("pretrained", "ProMoT")]
    text = page.render("A <title>", sections.standard(made, read, compared))
    assert "A &lt;title&gt;" in text
    assert text.count("<svg") == 7
    mean = cell(made, "ProMoT", "mean")
    assert f"{mean.value:.1f}" in text
    data = re.search(r'id="changed-data">(.*?)</script>', text, re.S)[1]
    data = json.loads(data)
    assert data["labels"][0] == "pretrained"
    assert data["tasks"] == ["toy", "fruit", "talk"]
    (group,) = (
        g
        for g in data["pairs"][0]["groups"]
        if data["tasks"][g["task"]] == "fruit" and g["way"] == "lost"
    )
    assert group["count"] == len(group["examples"])
    for n in group["examples"]:
        example = data["examples"][n]
        assert example["scores"][0] == 100
        assert example["scores"][2] == 0
        assert example["answers"][0] == example["target"]
    sources = sections.sources(made).html
    assert "made up (0123456789ab)" in sources
    assert "made up (fedcba987654)" in sources


def test_the_same_questions_are_shown_with_every_rows_answer(run, made):
    shown = side_by_side.shared_questions(made, per_task=2)
    assert [each.column.title for each in shown] == ["toy"] * 2 + ["fruit"] * 2 + ["talk"] * 2
    labels = [row.label for row in made.rows]
    for each in shown:
        for label, answer, right in zip(labels, each.answers, each.right, strict=True):
            home = run / "comparison" / re.sub(r"\W+", "_", label) / "inference_eval"
            records = run_helpers.json_lines(home / f"{each.column.task}-000000.jsonl")
            (record,) = (r for r in records if r["inputs"] == each.inputs)
            assert (record["prediction"], record["target"]) == (answer, each.target)
            assert right == (record["score"] == 100)
    html = sections.same_questions(made).html
    assert html.count("<tr>") == 7
    assert " ✓</td>" in html


def test_answers_cannot_break_out_of_the_page(tmp_path):
    _target, suite = lab.made_up_tasks(4)
    evil = "</script><script>alert(1)</script>"
    for name, said in (("a", ["", "", "", ""]), ("b", [evil] * 4)):
        lab.write_answers(tmp_path / name, suite[0], said)
    made = compare(f"a={tmp_path / 'a'}", f"<script>alert(1)={tmp_path / 'b'}")
    text = page.render(evil, sections.standard(made, [], pairs.of_interest(made)))
    assert "<script>alert" not in text
    assert "&lt;/script&gt;" in text
    data = re.search(r'id="changed-data">(.*?)</script>', text, re.S)[1]
    assert evil in json.dumps(json.loads(data))


def test_a_page_is_made_of_sections(made):
    mine = page.Section(title="My own figure", html=page.paragraphs(["1 < 2"]))
    text = page.render("Page", [sections.scores(made), mine], lead="<p>Lead.</p>")
    assert '<a href="#my-own-figure">' in text
    assert '<section id="my-own-figure">' in text
    assert "1 &lt; 2" in text
    assert "<p>Lead.</p>" in text


def test_numbers_that_nobody_measured_are_dashes(tmp_path):
    target, suite = lab.made_up_tasks()
    lab.write_answers(tmp_path / "one", target, lab.answer(target, lab.Model(0.5)), prompt=True)
    lab.write_answers(tmp_path / "two", target, lab.answer(target, lab.Model(0.5)), prompt=True)
    lab.write_answers(tmp_path / "two", suite[0], lab.answer(suite[0], lab.Model(0.5)))
    made = compare(f"one={tmp_path / 'one'}", f"two={tmp_path / 'two'}")
    assert [c.title for c in made.columns] == [
        "toy",
        "toy_fruit_1shot",
        "mean",
        "change",
        "target's format",
    ]
    assert list(made.rows[0].cells) == made.columns[:1]
    html = sections.score_table(made)
    assert html.count("<td>–</td>") + html.count('<td class="first">–</td>') == 5
    assert math.isnan(pairs.pair(made, "one", "two").differences[0].adjusted)


def test_the_written_files_are_those_of_the_page(run, made, tmp_path):
    output.write(str(tmp_path), made, [str(run)], [("pretrained", "ProMoT")], title="T")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {
        f"{n}.{kind}"
        for n in (
            *("bars", "learning", "learning_by_task", "trade_off", "format_share"),
            *("format_by_task", "gradient_alignment"),
        )
        for kind in ("svg", "png")
    }
    assert (tmp_path / "figures" / "bars.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wide_table_stands_in_blocks_that_fit_paper(tmp_path):
    _, (fruit, _) = lab.made_up_tasks(4)
    tasks = [dataclasses.replace(fruit, name=f"task{n}_1shot") for n in range(16)]
    for name in ("a", "b"):
        for task in tasks:
            lab.write_answers(tmp_path / name, task, lab.answer(task, lab.Model(0.5)))
    html = sections.score_table(compare(tmp_path / "a", tmp_path / "b"))
    blocks = html.split("<table")[1:]
    assert [block.count('<th scope="col"') for block in blocks] == [2, 8, 8]
    assert all(f">task{n}<" in html for n in range(16))
    text = page.render("Page", [page.Section(html=html)])
    # What scrolls on a screen is cut on paper.
    assert "overflow-x" not in text
