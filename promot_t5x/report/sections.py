"""The parts of a report's page: the table, figures, comparisons, changed examples, sources."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from promot_t5x.report import changed, figures, page, side_by_side, table
from promot_t5x.report.comparison import SUITE, TARGET, Cell, Column, Comparison
from promot_t5x.report.curves import Curve, by_label, mean_alignment
from promot_t5x.report.page import Section
from promot_t5x.report.pairs import Pair, pair
from promot_t5x.report.runs import Run
from promot_t5x.report.style import svg

PER_GROUP = 40  # changed examples kept of each pair, task and direction
SIDE_BY_SIDE = 2  # questions of each task that are shown with every row's answer
FOUND = 0.05  # adjusted p-values below it are marked


def standard(
    comparison: Comparison, curves: Sequence[Curve], pairs: Sequence[tuple[str, str]]
) -> list[Section]:
    """All sections of a report, in order."""
    found = [pair(comparison, *labels) for labels in pairs]
    return [
        scores(comparison),
        plots(comparison, curves),
        *([comparisons(found)] if found else []),
        *([same_questions(comparison)] if len(comparison.rows) > 1 else []),
        *([examples(comparison, pairs)] if pairs else []),
        sources(comparison),
    ]


def scores(comparison: Comparison) -> Section:
    """The table."""
    return Section(
        title="Scores",
        html=score_table(comparison) + page.paragraphs(table.legend(comparison), "note"),
    )


def score_table(comparison: Comparison) -> str:
    """The table alone, with intervals below the numbers and marks of what differs for certain."""
    columns = comparison.columns
    marks = _marks(comparison)
    kinds = [None, *(column.kind for column in columns)]
    first = [' class="first"' if kinds[n] != kinds[n + 1] else "" for n in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{css}>{escape(column.title)}'
        f"<br><small class=soft>{escape(_score_name(column))}</small></th>"
        for css, column in zip(first, columns, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row.label)}<small>{table.seeds(row)}</small></th>'
        + "".join(
            f"<td{css}>{_cell(row.cells.get(column), column, marks.get((row.label, column)))}</td>"
            for css, column in zip(first, columns, strict=True)
        )
        + "</tr>"
        for row in comparison.rows
    )
    explained = (
        f"▲ ▼: differs from {comparison.baseline}, p < {FOUND} after Holm's correction over "
        "the suite's tasks."
    )
    return (
        f'<div class="scroll"><table class="scores"><thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n"
        + (page.paragraphs([explained], "note") if marks else "")
    )


def plots(comparison: Comparison, curves: Sequence[Curve]) -> Section:
    """Every figure that there are numbers for."""
    made = drawn(comparison, curves)
    wide, narrow = (
        "".join(page.figure(svg(f), c) for name, (f, c) in made.items() if (name in _WIDE) is kind)
        for kind in (True, False)
    )
    html = f'<div class="wide">{wide}</div><div class="figures">{narrow}</div>'
    return Section(title="Figures", html=html)


_WIDE = ("bars", "learning")


def drawn(comparison: Comparison, curves: Sequence[Curve]) -> dict[str, tuple[Any, str]]:
    """The figures by name, each with its caption; without curves, the bars alone."""
    several = " Thin lines are seeds, bold ones their mean." if _several(curves) else ""
    bars = "Scores of every task with 95% intervals" + (
        " over seeds; dots are seeds." if any(len(r.runs) > 1 for r in comparison.rows) else "."
    )
    found: dict[str, tuple[Any, str]] = {"bars": (figures.bars(comparison), bars)}
    both = [p for curve in curves for p in curve.points if not math.isnan(p.suite)]
    if both:
        found["learning"] = (
            figures.learning(comparison, curves),
            "The target's score, and the suite's mean asked without the prompt, while the "
            "stages train." + several,
        )
        if any(not math.isnan(p.target) for p in both):
            found["trade_off"] = (
                figures.trade_off(comparison, curves),
                "What a target score costs: each point is a checkpoint, the large one the last. "
                "Up is better on the target, right is better in context." + several,
            )
        if any(not math.isnan(p.target_format) for p in both):
            found["format_share"] = (
                figures.format_share(comparison, curves),
                "Format specialisation: answers to other tasks that are answers of the target."
                + several,
            )
    if any(mean_alignment(own) for own in by_label(curves).values()):
        found["gradient_alignment"] = (
            figures.alignment(curves),
            "Gradient alignment in the last decoder layer: the cosine between the gradients on "
            "true and on shuffled labels of the same inputs. Near 1, a step teaches what both "
            "share, the format; near 0, what only the true labels teach." + several,
        )
    return found


def comparisons(found: Sequence[Pair]) -> Section:
    """Pairs of rows: differences, tests, and what the sample could have shown."""
    blocks = [
        page.paragraphs(
            [
                "Differences are the second row minus the first, in percentage points, paired by "
                "example. “p (Holm)” holds for all tasks of the suite together. “shows at 80%” is "
                "the smallest true difference that a sample like this one finds four times out of "
                "five: (1.96 + 0.84) × standard error, with Student's quantiles over seeds, and no "
                "fewer than six examples for McNemar's test. “lost / won”: examples that only the "
                "first, or only the second row has right."
            ],
            "note",
        )
    ]
    for n, each in enumerate(found):
        name = f"{each.first} → {each.second}"
        blocks.append(
            f"<details{' open' if n == 0 else ''}><summary>{escape(name)}</summary>"
            + page.table(table.pair_lines(each))
            + "</details>"
        )
    return Section(title="Comparisons", html="".join(blocks))


def same_questions(comparison: Comparison) -> Section:
    """The same questions with every row's answer, from where the rows differ most."""
    lines = [["task", "question", "right answer", *(row.label for row in comparison.rows)]]
    for each in side_by_side.asked(comparison, SIDE_BY_SIDE):
        answers = zip(each.answers, each.right, strict=True)
        told = [text + (" ✓" if right else "") for text, right in answers]
        lines.append([each.column.title, each.inputs, each.target, *told])
    several = any(len(row.runs) > 1 for row in comparison.rows)
    explained = (
        f"Of each task the {SIDE_BY_SIDE} questions that the rows answer in the most different "
        "ways" + (" (of several seeds the first)" if several else "") + "; ✓: right."
    )
    html = page.paragraphs([explained], "note") + page.table(lines, "plain")
    return Section(title="Same questions", html=html)


def examples(comparison: Comparison, pairs: Sequence[tuple[str, str]]) -> Section:
    """Examples whose answer changed between two rows, to browse and filter."""
    data = changed_data(comparison, pairs)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    # Nothing in a script element may look like a tag or a comment.
    text = text.replace("<", "\\u003c")
    script = Path(__file__).with_name("examples.js").read_text("utf-8")
    ways = "".join(
        f'<option value="{way}">{escape(said)}</option>'
        for way, said in (
            ("lost", "lost: right → wrong, or worse"),
            ("won", "won: wrong → right, or better"),
            ("other", "other words, scored alike"),
            ("", "all changes"),
        )
    )
    html = f"""<div class="controls">
<label>rows <select id="changed-pair"></select></label>
<label>task <select id="changed-task"></select></label>
<label>change <select id="changed-way">{ways}</select></label>
<label>words <input id="changed-words" type="search" placeholder="in question or answer"></label>
</div>
<div id="changed-list"><noscript>Browsing needs JavaScript; in a terminal,
<code>promot-t5x report RUN… --changed A B</code> does the same.</noscript></div>
<script type="application/json" id="changed-data">{text}</script>
<script>
{script}</script>
"""
    return Section(title="Changed examples", html=html)


def changed_data(comparison: Comparison, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the page's browser of examples reads."""
    columns = comparison.of_kind(TARGET, SUITE)
    labels = [row.label for row in comparison.rows]
    kept: list[dict[str, Any]] = []
    place: dict[tuple[Column, str], int] = {}
    told = []
    for pair_labels in pairs:
        at = [labels.index(label) for label in pair_labels]
        groups = []
        for group in changed.changed(comparison, *pair_labels, columns, PER_GROUP):
            task = columns.index(group.column)
            for example in group.examples:
                key = (group.column, example.id)
                if key not in place:
                    place[key] = len(kept)
                    kept.append(_example(example, task, len(labels)))
                entry = kept[place[key]]
                for n, said, score in zip(at, example.answers, example.scores, strict=True):
                    entry["answers"][n] = said
                    entry["scores"][n] = None if math.isnan(score) else score
            places = [place[group.column, example.id] for example in group.examples]
            groups.append(
                {
                    "task": task,
                    "way": group.direction,
                    "count": group.count,
                    "examples": places,
                }
            )
        told.append({"first": at[0], "second": at[1], "groups": groups})
    return {
        "labels": labels,
        "tasks": [column.title for column in columns],
        "pairs": told,
        "examples": kept,
    }


def sources(comparison: Comparison) -> Section:
    """Where each number comes from: runs, checkpoints, prompts, how scores were computed."""
    lines = [["row", "seed", "answers", "checkpoint", "prompt", "examples"]]
    for row in comparison.rows:
        for run in row.runs:
            told = [a.summary for a in (*run.targets.values(), *run.suite.values())]
            lines.append(
                [
                    *(row.label, _seed(run), str(run.path)),
                    " / ".join(dict.fromkeys(_origin(t.get("checkpoint")) for t in told)),
                    " / ".join(dict.fromkeys(_origin(t.get("prompt")) for t in told)),
                    f"{sum(t['examples'] for t in told):,}",
                ]
            )
    signatures = [["score", "signature"]]
    counts = [["row", "seed", "task", "counted"]]
    for row in comparison.rows:
        for run in row.runs:
            for task, answers in (*run.targets.items(), *run.suite.items()):
                for name, said in answers.summary.get("signatures", {}).items():
                    line = [f"{task}: {name}", said]
                    if line not in signatures:
                        signatures.append(line)
                counted = {k: v for k, v in answers.summary.get("counts", {}).items() if v}
                if counted:
                    said = ", ".join(f"{what}: {n:,}" for what, n in counted.items())
                    counts.append([row.label, _seed(run), task, said])
    html = page.table(lines, "plain")
    if len(signatures) > 1:
        html += "<h3>How scores were computed</h3>" + page.table(signatures, "plain")
    if len(counts) > 1:
        html += (
            "<details><summary>What was counted while asking</summary>"
            + page.table(counts, "plain")
            + "</details>"
        )
    return Section(title="Sources", html=html)


def _marks(comparison: Comparison) -> Mapping[tuple[str, Column], str]:
    """▲ or ▼ where a suite's score differs from the baseline's."""
    marks = {}
    for row in comparison.rows:
        if row.label == comparison.baseline:
            continue
        for d in pair(comparison, comparison.baseline, row.label).differences:
            if d.adjusted < FOUND:
                marks[row.label, d.column] = "▲" if d.estimate.value > 0 else "▼"
    return marks


def _cell(cell: Cell | None, column: Column, mark: str | None) -> str:
    shown = table.value(cell, column)
    if cell is None:
        return shown
    ends = table.interval(cell, column)
    signed = column.kind == "change"
    told = f"over examples: {table.span(cell.estimate.interval, signed=signed) or 'no interval'}"
    if len(cell.runs) > 1:
        values = ", ".join(f"{run.value:.1f}" for run in cell.runs)
        told += f"; over seeds: {table.span(cell.seeds.interval, signed=signed)}; seeds: {values}"
    css = {"▲": "up", "▼": "down", None: ""}[mark]
    marked = f' <span class="{css}">{mark}</span>' if mark else ""
    return f'<span title="{escape(told, quote=True)}">{shown}{marked}<small>{ends}</small></span>'


def _score_name(column: Column) -> str:
    return figures.SCORES.get(column.score, column.score)


def _several(curves: Sequence[Curve]) -> bool:
    labels = [curve.label for curve in curves]
    return len(set(labels)) < len(labels)


def _example(example: changed.Example, task: int, rows: int) -> dict[str, Any]:
    return {
        "task": task,
        "id": example.id,
        "inputs": changed.shortened(example.inputs),
        "target": changed.shortened(example.target),
        "answers": [""] * rows,
        "scores": [None] * rows,
    }


def _seed(run: Run) -> str:
    """A run's seed, if it says one; others are told apart by where they lie."""
    return "" if "/" in run.seed else run.seed


def _origin(told: Mapping[str, Any] | None) -> str:
    if not told:
        return "–"
    name = str(told.get("origin") or told.get("path") or "")
    digest = str(told.get("hash") or "")
    return f"{name} ({digest[:12]})" if digest else name
