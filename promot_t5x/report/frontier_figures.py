"""The figures of a sweep's report: the frontiers, and drift against loss."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from promot_t5x.report.figures import legend_above
from promot_t5x.report.frontier import Frontier
from promot_t5x.report.frontier_points import FrontierPoint
from promot_t5x.report.statistics.scores import MeanScore
from promot_t5x.report.style import applied, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def frontiers(found: Sequence[Frontier]) -> "Figure":
    """Draw target against mean in-context score: each method's frontier, its other points faint."""
    from matplotlib.figure import Figure

    with applied():
        figure = Figure(figsize=(5.6, 4.2))
        axes = figure.add_subplot()
        for n, frontier in enumerate(found):
            look = style(n + 1)
            points = frontier.chosen
            axes.errorbar(
                [p.suite.value for p in points],
                [p.target.value for p in points],
                xerr=_reaches([p.suite for p in points]),
                yerr=_reaches([p.target for p in points]),
                color=look.color,
                marker=look.marker,
                linestyle=look.dashes,
                markersize=4.5,
                linewidth=1.5,
                elinewidth=0.7,
                label=frontier.method,
            )
            others = [p for p in frontier.points if p not in points]
            axes.plot(
                [p.suite.value for p in others],
                [p.target.value for p in others],
                look.marker,
                color=look.color,
                ms=3.5,
                alpha=0.35,
            )
        start = found[0].start
        if start is not None:
            axes.plot(
                [start.suite.value], [start.target.value], "s", color="#555555", label=start.method
            )
        axes.set_xlabel("mean in-context score, without the prompt (%)")
        axes.set_ylabel("target score (%)")
        axes.grid()
        legend_above(figure, axes)
    return figure


def drift(found: Sequence[Frontier], points: Sequence[FrontierPoint]) -> "Figure":
    """Draw what a point has lost in context against its drift from the base."""
    from matplotlib.figure import Figure

    base = found[0].start
    with applied():
        figure = Figure(figsize=(4.6, 3.6))
        axes = figure.add_subplot()
        for n, frontier in enumerate(found):
            own = [point for point in points if point.method == frontier.method]
            look = style(n + 1)
            axes.plot(
                [p.drift for p in own],
                [(base.suite.value if base else 100.0) - p.suite.value for p in own],
                look.marker,
                color=look.color,
                ms=4.5,
                label=frontier.method,
            )
        axes.set_xlabel("drift (nats per target token)")
        axes.set_ylabel(f"mean in-context score below {base.method if base else '100'} (points)")
        axes.grid()
        legend_above(figure, axes)
    return figure


def _reaches(scores: Sequence[MeanScore]) -> list[list[float]]:
    return [
        [max(0.0, score.value - score.interval.low) for score in scores],
        [max(0.0, score.interval.high - score.value) for score in scores],
    ]
