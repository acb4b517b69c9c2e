"""`promot-t5x sweep report`: frontiers, tests between methods, drift against loss."""

import argparse
import math
import sys
from collections.abc import Sequence

from promot_t5x.files import write_atomically
from promot_t5x.paths import make_directory, user_path
from promot_t5x.report import frontier, frontier_figures, frontier_points, style, table
from promot_t5x.report.frontier import Frontier, FrontierTest
from promot_t5x.report.frontier_points import FrontierPoint
from promot_t5x.report.rows import number, signed_number, span

_AREA = """\
Area: the mean, over all target scores from 0 to 100, of the best in-context score among those
points of the frontier, and the pretrained model, whose target score is at least that; with its 95%
interval over seeds (Student's t)."""
_TESTS = """\
Two methods at the highest target score that both reach where the settings were chosen: of the one
it is that point, of the other a mixture of the two points around it, which answer at random in the
shares that give that score. "Target" says how far apart the two are on what is reported, and "in
context" how much higher the second method's mean in-context score is, paired by question and by
seed; p (Holm) holds for all pairs together."""
_DRIFT = """\
Drift is KL(base over tuned) on the target's questions without the prompt, in nats per target token,
at the chosen checkpoint; loss is what the mean in-context score has lost."""


def report(arguments: argparse.Namespace) -> int:
    """Print the report, and write it where --output says; return 0."""
    points, unfinished = frontier_points.read(arguments.sweep)
    development: list[FrontierPoint] = []
    if arguments.development:
        development, _ = frontier_points.read(arguments.development)
    found = frontier.frontiers(points, development)
    known, correlation = frontier.drift_and_loss([p for p in points if p.settings])
    text = "\n\n".join(
        [
            "# Frontiers",
            _selection(points, development),
            *(
                [f"Runs that have not finished and are left out: {unfinished}."]
                if unfinished
                else []
            ),
            table.markdown_table(_areas(found)),
            _AREA,
            "## Points",
            table.markdown_table(_points(found)),
            *_compared(frontier.tests(found)),
            *_drifts(known, correlation),
        ]
    )
    print(text)
    if arguments.output:
        _write(arguments.output, text, found, known)
    return 0


def _write(
    output: str, text: str, found: Sequence[Frontier], known: Sequence[FrontierPoint]
) -> None:
    directory = user_path(output, "--output")
    make_directory(directory, "--output")
    figures = {"frontier": frontier_figures.frontiers(found)}
    if known:
        figures["drift"] = frontier_figures.drift(found, known)
    for name, figure in figures.items():
        write_atomically(directory / f"{name}.svg", style.svg(figure))
        (directory / f"{name}.png").write_bytes(style.png(figure))
    shown = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
    write_atomically(directory / "frontier.md", f"{text}\n\n{shown}\n")
    print(f"The report is {directory}/frontier.md.", file=sys.stderr)


def _selection(points: Sequence[FrontierPoint], development: Sequence[FrontierPoint]) -> str:
    if not development:
        return (
            "The settings of each frontier were chosen on the rows that are reported: the areas "
            "are too large and the tests too bold, the more so the more settings a method has. "
            "`--development DIR` chooses them on other seeds and another split. What is reported: "
            f"{_asked(points)}."
        )
    return (
        f"The settings of each frontier were chosen on other rows than those reported: "
        f"{_asked(development)}. What is reported: {_asked(points)}."
    )


def _asked(points: Sequence[FrontierPoint]) -> str:
    seeds = dict.fromkeys(seed for p in points if p.settings for seed in p.seeds)
    tasks: dict[str, list[str]] = {}
    for task, split in points[0].splits.items():
        tasks.setdefault(split or "an unknown split", []).append(task)
    splits = "; ".join(f"{split} of {', '.join(names)}" for split, names in tasks.items())
    return f"seeds {', '.join(seeds)}, {splits}"


def _areas(found: Sequence[Frontier]) -> list[list[str]]:
    lines = [["method", "area", "95% interval", "seeds", "settings", "on the frontier"]]
    for each in sorted(found, key=lambda each: -each.area[0]):
        area, reach = each.area
        ends = "" if math.isnan(reach) else f"{area - reach:.1f}–{area + reach:.1f}"
        counts = [str(len(group)) for group in (each.areas, each.points, each.chosen)]
        lines.append([each.method, number(area), ends, *counts])
    return lines


def _points(found: Sequence[Frontier]) -> list[list[str]]:
    lines = [["method", "settings", "target", "95%", "in context", "95%", "drift", "frontier"]]
    start = found[0].start
    for each in [*([start] if start else []), *(p for f in found for p in f.points)]:
        chosen = any(each in f.chosen for f in found)
        drift = "" if math.isnan(each.drift) else f"{each.drift:.4f}"
        scores = [t for s in (each.target, each.suite) for t in (number(s.value), span(s.interval))]
        lines.append([each.method, each.settings, *scores, drift, "✓" if chosen else ""])
    return lines


def _compared(tests: Sequence[FrontierTest]) -> list[str]:
    if not tests:
        return []
    lines = [["first", "second", "at", "target", "in context", "95%", "p", "p (Holm)"]]
    for test in tests:
        lines.append(
            [
                test.first,
                test.second,
                number(test.target),
                signed_number(test.targets.value),
                signed_number(test.suite.value),
                span(test.suite.interval, signed=True),
                table.p_text(test.suite.p_value),
                table.p_text(test.adjusted),
            ]
        )
    return ["## At equal target score", table.markdown_table(lines), _TESTS]


def _drifts(known: Sequence[FrontierPoint], correlation: float) -> list[str]:
    if not known:
        return []
    said = f"Spearman's correlation of drift and loss over {len(known)} points: {correlation:.2f}."
    return ["## Drift against loss", said if len(known) > 2 else "Too few points.", _DRIFT]
