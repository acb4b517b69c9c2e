"""The parts of a report's page: the table, figures, comparisons, changed examples, sources."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from promot_t5x.report import changed, figures, page, side_by_side, table
from promot_t5x.report.comparison import SUITE, TARGET, Column, ComparedRow, RunComparison
from promot_t5x.report.curves import Curve, by_label, mean_alignment
from promot_t5x.report.page import Section
from promot_t5x.report.pairs import PairedComparison, pair, share_a_column
from promot_t5x.report.runs import DiscoveredRun
from promot_t5x.report.style import svg

PER_GROUP = 40  # changed examples kept of each pair, task and direction
SIDE_BY_SIDE = 2  # questions of each task that are shown with every row's answer
_ACROSS = 8  # columns of a table beside the row's name
FOUND = 0.05  # adjusted p-values below it are marked


def standard(
    comparison: RunComparison, curves: Sequence[Curve], pairs: Sequence[tuple[str, str]]
) -> list[Section]:
    """Return all sections of a report, in order."""
    found = [pair(comparison, *labels) for labels in pairs]
    return [
        scores(comparison),
        plots(comparison, curves),
        *([comparisons(found)] if found else []),
        *([same_questions(comparison)] if len(comparison.rows) > 1 else []),
        *([examples(comparison, pairs)] if pairs else []),
        sources(comparison),
    ]


def scores(comparison: RunComparison) -> Section:
    """Return the table."""
    return Section(
        title="Scores",
        html=score_table(comparison) + page.paragraphs(table.legend(comparison), "note"),
    )


def score_table(comparison: RunComparison) -> str:
    """Return the table alone, with intervals below the numbers and marks of clear differences.

    The columns stand in blocks that fit a narrow window and a page of paper: targets and means
    first, then the suite task by task.
    """
    marks = _marks(comparison)
    suite = comparison.of_kind(SUITE)
    blocks = [[column for column in comparison.columns if column.kind != SUITE]]
    if len(comparison.columns) <= _ACROSS:
        blocks = [list(comparison.columns)]
    else:
        count = -(-len(suite) // _ACROSS)
        size = -(-len(suite) // count)
        blocks += [suite[n : n + size] for n in range(0, len(suite), size)]
    explained = (
        f"▲ ▼: differs from {comparison.baseline}, p < {FOUND} after Holm's correction over "
        "the suite's tasks."
    )
    return "".join(_block(comparison, block, marks) for block in blocks) + (
        page.paragraphs([explained], "note") if marks else ""
    )


def _block(
    comparison: RunComparison,
    columns: Sequence[Column],
    marks: Mapping[tuple[str, Column], str],
) -> str:
    kinds = [None, *(column.kind for column in columns)]
    first = [' class="first"' if kinds[n] != kinds[n + 1] else "" for n in range(len(columns))]
    heads = "".join(
        f'<th scope="col"{css}>{escape(column.title)}'
        f"<small>{escape(table.about(column))}</small></th>"
        for css, column in zip(first, columns, strict=True)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row.label)}<small>{table.seeds(row)}</small></th>'
        + "".join(
            f"<td{css}>{_cell(row, column, marks.get((row.label, column)))}</td>"
            for css, column in zip(first, columns, strict=True)
        )
        + "</tr>"
        for row in comparison.rows
    )
    return (
        f'<table class="scores"><thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table>\n"
    )


def plots(comparison: RunComparison, curves: Sequence[Curve]) -> Section:
    """Return every figure that there are numbers for."""
    made = drawn(comparison, curves)
    wide, narrow = (
        "".join(page.figure(svg(f), c) for name, (f, c) in made.items() if (name in _WIDE) is kind)
        for kind in (True, False)
    )
    html = f'<div class="wide">{wide}</div><div class="figures">{narrow}</div>'
    return Section(title="Figures", html=html)


_WIDE = ("bars", "learning", "learning_by_task", "format_by_task")


def drawn(comparison: RunComparison, curves: Sequence[Curve]) -> dict[str, tuple[Any, str]]:
    """Return the figures by name, each with its caption; without curves, the bars alone."""
    several = " Thin lines are seeds, bold ones their mean." if _several(curves) else ""
    bars = "Scores of every task with 95% intervals" + (
        "; dots are seeds." if any(len(r.runs) > 1 for r in comparison.rows) else "."
    )
    found: dict[str, tuple[Any, str]] = {"bars": (figures.bars(comparison), bars)}
    both = [p for curve in curves for p in curve.points if not math.isnan(p.suite)]
    if both:
        found["learning"] = (
            figures.learning(comparison, curves),
            "The target's score, and the suite's mean without the prompt, while the stages "
            "train." + several,
        )
        found["learning_by_task"] = (
            figures.by_task(comparison, curves),
            "The score of each task of the suite, without the prompt, while the stages train."
            + several,
        )
        if any(not math.isnan(p.target) for p in both):
            found["trade_off"] = (
                figures.trade_off(comparison, curves),
                "What a target score costs: each point is a checkpoint, the large one the last. "
                "Up is better on the target, right is better in context." + several,
            )
            for name, tasks in comparison.groups.items():
                found[f"trade_off_{page.anchor(name)}"] = (
                    figures.trade_off(comparison, curves, tasks, name),
                    f"What a target score costs on {name}: {', '.join(_titles(comparison, tasks))}."
                    + several,
                )
        if any(not math.isnan(p.target_format) for p in both):
            found["format_share"] = (
                figures.format_share(comparison, curves),
                "Format specialization: answers to other tasks that are answers of the target."
                + several,
            )
            found["format_by_task"] = (
                figures.by_task(comparison, curves, formats=True),
                "Format specialization task by task." + several,
            )
    if any(not math.isnan(point.drift) for curve in curves for point in curve.points):
        found["drift"] = (
            figures.drift(comparison, curves),
            "Drift: the divergence of the model, without its prompt, from what it was when the "
            "stage began, on the target's questions. It predicts how much is forgotten." + several,
        )
    if any(mean_alignment(own) for own in by_label(curves).values()):
        found["gradient_alignment"] = (
            figures.alignment(curves),
            "Gradient alignment in the last decoder layer: the cosine between the gradients on "
            "true and on shuffled labels of the same inputs. Near 1, a step teaches what both "
            "share, the format; near 0, what only the true labels teach; below 0, what shuffled "
            "labels teach undoes it, as in a model that prefers the right answers already. Bands "
            "are 95% intervals over the choice of rows (jackknife over groups of batches), wide "
            "where the loss, and with it the gradient, has become small." + several,
        )
    return found


def comparisons(found: Sequence[PairedComparison]) -> Section:
    """Return pairs of rows: differences, tests, and what the sample could have shown."""
    blocks = [
        page.paragraphs(
            [
                "Differences are the second row minus the first, in percentage points, question "
                "by question. “p (Holm)” holds for all tasks of the suite together. “MDE (80%)” is "
                "the minimum detectable effect: the smallest true difference that a sample like "
                "this one finds four times out of five. “lost / won”: examples that only the "
                "first, or only the second row has right."
            ],
            "note",
        )
    ]
    for n, each in enumerate(found):
        name = f"{each.first} → {each.second}"
        blocks.append(
            f"<details{' open' if n == 0 else ''}><summary>{escape(name)}</summary>"
            + page.table(table.pair_lines(each), "pairs")
            + page.paragraphs(each.statements)
            + "</details>"
        )
    return Section(title="Comparisons", html="".join(blocks))


def same_questions(comparison: RunComparison) -> Section:
    """Return the same questions with every row's answer, from where the rows differ most."""
    lines = [["task", "question", "right answer", *(row.label for row in comparison.rows)]]
    for each in side_by_side.shared_questions(comparison, SIDE_BY_SIDE):
        answers = zip(each.answers, each.right, strict=True)
        shown = [text + (" ✓" if right else "") for text, right in answers]
        lines.append([each.column.title, each.inputs, each.target, *shown])
    several = any(len(row.runs) > 1 for row in comparison.rows)
    explained = (
        f"Of each task the {SIDE_BY_SIDE} questions that the rows answer in the most different "
        "ways" + (" (of several seeds the first)" if several else "") + "; ✓: right."
    )
    html = page.paragraphs([explained], "note") + page.table(lines, "plain")
    return Section(title="Same questions", html=html)


def examples(comparison: RunComparison, pairs: Sequence[tuple[str, str]]) -> Section:
    """Return examples whose answer changed between two rows, to browse and filter."""
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


def changed_data(comparison: RunComparison, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the data that the page's browser of examples reads."""
    columns = comparison.of_kind(TARGET, SUITE)
    labels = [row.label for row in comparison.rows]
    kept: list[dict[str, Any]] = []
    place: dict[tuple[Column, str], int] = {}
    listed = []
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
        listed.append({"first": at[0], "second": at[1], "groups": groups})
    return {
        "labels": labels,
        "tasks": [column.title for column in columns],
        "pairs": listed,
        "examples": kept,
    }


def sources(comparison: RunComparison) -> Section:
    """Return where each number comes from: runs, checkpoints, prompts, how scores were computed."""
    lines = [["row", "seed", "answers", "checkpoint", "prompt", "examples", "checkpoint chosen on"]]
    for row in comparison.rows:
        for run in row.runs:
            summaries = [a.summary for a in (*run.targets.values(), *run.suite.values())]
            lines.append(
                [
                    *(row.label, _seed(run), str(run.path)),
                    " / ".join(dict.fromkeys(_origin(t.get("checkpoint")) for t in summaries)),
                    " / ".join(dict.fromkeys(_origin(t.get("prompt")) for t in summaries)),
                    f"{sum(t['examples'] for t in summaries):,}",
                    _selection(run),
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


def _marks(comparison: RunComparison) -> Mapping[tuple[str, Column], str]:
    """Return ▲ or ▼ where a suite's score differs from the baseline's."""
    marks = {}
    for row in comparison.rows:
        labels = (comparison.baseline, row.label)
        if row.label == comparison.baseline or not share_a_column(comparison, *labels):
            continue
        for d in pair(comparison, *labels).differences:
            if d.adjusted < FOUND:
                marks[row.label, d.column] = "▲" if d.found.value > 0 else "▼"
    return marks


def _cell(row: ComparedRow, column: Column, mark: str | None) -> str:
    cell, shown = row.cells.get(column), table.value(row, column)
    if cell is None:
        return shown
    errors = [f"standard error over questions {math.sqrt(cell.variance.questions):.2f}"]
    if len(row.runs) > 1:
        errors.append(f"over seeds {math.sqrt(cell.variance.seeds):.2f}")
    if len(cell.values) > 1:
        errors.append(f"seeds: {', '.join(f'{value:.1f}' for value in cell.values)}")
    css = {"▲": "up", "▼": "down", None: ""}[mark]
    marked = f' <span class="{css}">{mark}</span>' if mark else ""
    said, ends = escape("; ".join(errors), quote=True), table.interval(cell, column)
    return f'<span title="{said}">{shown}{marked}<small>{ends}</small></span>'


def _selection(run: DiscoveredRun) -> str:
    """Return which reported questions chose a run's checkpoint."""
    if run.selection is None:
        return "other questions, or not chosen"
    tasks = ", ".join(run.selection.optimism)
    return f"{tasks}, on which it is reported"


def _titles(comparison: RunComparison, tasks: Sequence[str]) -> list[str]:
    return [column.title for column in comparison.of_kind(SUITE) if column.task in tasks]


def _several(curves: Sequence[Curve]) -> bool:
    labels = [curve.label for curve in curves]
    return len(set(labels)) < len(labels)


def _example(example: changed.ChangedExample, task: int, rows: int) -> dict[str, Any]:
    return {
        "task": task,
        "id": example.id,
        "inputs": changed.shortened(example.inputs),
        "target": changed.shortened(example.target),
        "answers": [""] * rows,
        "scores": [None] * rows,
    }


def _seed(run: DiscoveredRun) -> str:
    """Return a run's seed, if it says one; others are source apart by where they lie."""
    return "" if "/" in run.seed else run.seed


def _origin(source: Mapping[str, Any] | None) -> str:
    if not source:
        return "–"
    name = str(source.get("origin") or source.get("path") or "")
    digest = str(source.get("hash") or "")
    return f"{name} ({digest[:12]})" if digest else name
