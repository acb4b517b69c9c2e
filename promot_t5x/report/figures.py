"""The plots of a report, each a matplotlib figure: the counterparts of the paper's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from promot_t5x.report import curves as curves_module
from promot_t5x.report.comparison import MEAN, SUITE, TARGET, Column, RunComparison
from promot_t5x.report.curves import Curve, CurvePoint
from promot_t5x.report.style import RowStyle, applied, style
from promot_t5x.report.table import about

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def styles(comparison: RunComparison, curves: Sequence[Curve] = ()) -> dict[str, RowStyle]:
    """Return the style of each row in every figure; curves without a row of their own come last."""
    labels = [row.label for row in comparison.rows] + [curve.label for curve in curves]
    return {label: style(i) for i, label in enumerate(dict.fromkeys(labels))}


def bars(comparison: RunComparison) -> "Figure":
    """Draw every row's score on every task, with intervals; each seed is a dot."""
    from matplotlib.figure import Figure

    columns = comparison.of_kind(TARGET, SUITE, MEAN)
    looks = styles(comparison)
    share = 0.82 / len(comparison.rows)
    with applied():
        wide = max(0.9, *(0.085 * len(line) for c in columns for line in _bar_title(c).split("\n")))
        figure = Figure(figsize=(max(5.0, wide * len(columns) + 0.8), 3.4))
        axes = figure.add_subplot()
        for i, row in enumerate(comparison.rows):
            look = looks[row.label]
            at = [
                (n + (i - (len(comparison.rows) - 1) / 2) * share, row.cells[column])
                for n, column in enumerate(columns)
                if column in row.cells
            ]
            values = [cell.value for _, cell in at]
            ends = [cell.interval for _, cell in at]
            axes.bar(
                [x for x, _ in at],
                values,
                width=share * 0.92,
                color=look.color,
                edgecolor="white" if look.hatch else look.color,
                hatch=look.hatch or None,
                linewidth=0.4,
                label=row.label,
            )
            axes.errorbar(
                [x for x, _ in at],
                values,
                yerr=[
                    [max(0.0, v - e.low) for v, e in zip(values, ends, strict=True)],
                    [max(0.0, e.high - v) for v, e in zip(values, ends, strict=True)],
                ],
                fmt="none",
                ecolor="black",
                elinewidth=0.8,
                capsize=1.8,
            )
            for x, cell in at:
                if len(cell.values) > 1:
                    dots = cell.values
                    axes.plot([x] * len(dots), dots, "o", ms=2.2, mfc="white", mec="black", mew=0.5)
        for n in range(1, len(columns)):
            if columns[n].kind != columns[n - 1].kind:
                axes.axvline(n - 0.5, color="#999999", linewidth=0.8)
        axes.set_xticks(range(len(columns)), [_bar_title(column) for column in columns])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.55, len(columns) - 0.45)
        axes.set_ylim(0, None)
        axes.set_ylabel("score (%)")
        axes.grid(axis="y")
        legend_above(figure, axes)
    return figure


def trade_off(
    comparison: RunComparison, curves: Sequence[Curve], tasks: Sequence[str] = (), name: str = ""
) -> "Figure":
    """Draw target against mean in-context score, a point for each checkpoint, the last one large.

    **Arguments:**

    - `tasks`: of the suite, whose mean is drawn; all by default.
    - `name`: of the tasks, on the axis.
    """
    from matplotlib.figure import Figure

    def suite(point: CurvePoint) -> float:
        return point.group(tasks) if tasks else point.suite

    looks = styles(comparison, curves)
    with applied():
        figure = Figure(figsize=(4.6, 3.6))
        axes = figure.add_subplot()
        for label, own in curves_module.by_label(curves).items():
            points = [p for p in curves_module.mean_points(own) if _known(p.target, suite(p))]
            if not points:
                continue
            _faint(axes, own, looks[label], suite, lambda p: p.target)
            _line(axes, points, looks[label], label, suite, lambda p: p.target)
            axes.plot(
                *([suite(points[-1])], [points[-1].target], looks[label].marker),
                color=looks[label].color,
                ms=9,
                mec="black",
                mew=0.9,
            )
        if not tasks:
            _pretrained_line(comparison, axes.axvline)
        of = f"mean score of {name}" if name else "mean in-context score"
        axes.set_xlabel(f"{of}, without the prompt (%)")
        axes.set_ylabel("target score (%)")
        axes.grid()
        legend_above(figure, axes)
    return figure


def by_task(
    comparison: RunComparison, curves: Sequence[Curve], *, formats: bool = False
) -> "Figure":
    """Draw each task of the suite against the step, a panel for each task.

    **Arguments:**

    - `formats`: draw the share of answers in the target's format instead of the score.
    """
    from matplotlib.figure import Figure

    def scores(point: CurvePoint) -> Mapping[str, float]:
        return point.formats if formats else point.tasks

    looks = styles(comparison, curves)
    columns = [
        column
        for column in comparison.of_kind(SUITE)
        if any(column.task in scores(point) for curve in curves for point in curve.points)
    ]
    across = min(4, len(columns))
    down = -(-len(columns) // across)
    with applied():
        figure = Figure(figsize=(0.6 + 2.3 * across, 0.5 + 2.0 * down))
        panels = figure.subplots(down, across, squeeze=False, sharex=True)
        for place, axes in enumerate(panels.flat):
            if place >= len(columns):
                axes.set_visible(False)
                continue
            column = columns[place]

            def value(point: CurvePoint, task: str = column.task) -> float:
                return scores(point).get(task, math.nan)

            _against_step(axes, curves, looks, value)
            cell = comparison.row(comparison.baseline).cells.get(column)
            if cell is not None and not formats:
                axes.axhline(
                    cell.value, color="#555555", linewidth=0.9, linestyle="--",
                    label=comparison.baseline,
                )  # fmt: skip
            axes.set_title(column.title)
            axes.set_ylim(-2, 102 if formats else None)
            if place % across == 0:
                axes.set_ylabel("target's format (%)" if formats else "score (%)")
            if place + across < len(columns):
                axes.set_xlabel("")
        figure.subplots_adjust(hspace=0.35, wspace=0.28)
        legend_above(figure, *panels.flat, above=0.92)
    return figure


def format_share(comparison: RunComparison, curves: Sequence[Curve]) -> "Figure":
    """Draw the share of the suite's answers in the target's format, against the step."""
    title = "answers in the target's format (%)"
    return _one_panel(comparison, curves, lambda p: p.target_format, title, (-2, 102))


def drift(comparison: RunComparison, curves: Sequence[Curve]) -> "Figure":
    """Draw the KL from the base on the target's inputs without the prompt, against the step."""
    return _one_panel(
        comparison, curves, lambda p: p.drift, "drift (nats per target token)", (0, None)
    )


def _one_panel(
    comparison: RunComparison,
    curves: Sequence[Curve],
    value: Callable[[CurvePoint], float],
    title: str,
    limits: tuple[float, float | None],
) -> "Figure":
    from matplotlib.figure import Figure

    looks = styles(comparison, curves)
    with applied():
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.add_subplot()
        _against_step(axes, curves, looks, value)
        axes.set_ylabel(title)
        axes.set_ylim(*limits)
        legend_above(figure, axes)
    return figure


def learning(comparison: RunComparison, curves: Sequence[Curve]) -> "Figure":
    """Draw target score and mean in-context score, against the step."""
    from matplotlib.figure import Figure

    looks = styles(comparison, curves)
    with applied():
        figure = Figure(figsize=(9.0, 3.2))
        left, right = figure.subplots(1, 2)
        _against_step(left, curves, looks, lambda p: p.target)
        left.set_ylabel("target score (%)")
        _against_step(right, curves, looks, lambda p: p.suite)
        right.set_ylabel("mean in-context score (%)")
        _pretrained_line(comparison, right.axhline)
        figure.subplots_adjust(wspace=0.28)
        legend_above(figure, left, right)
    return figure


def alignment(curves: Sequence[Curve]) -> "Figure":
    """Draw the cosine between gradients on true and shuffled labels by step, a panel a row."""
    from matplotlib.figure import Figure

    panels = [
        (label, own)
        for label, own in curves_module.by_label(curves).items()
        if curves_module.mean_alignment(own)
    ]
    with applied():
        figure = Figure(figsize=(0.6 + 3.2 * len(panels), 3.0))
        all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (label, own) in zip(all_axes, panels, strict=True):
            rows = curves_module.mean_alignment(own)
            blocks = (name for name in rows[0] if name not in ("step", "standard_error"))
            for n, block in enumerate(blocks):
                look = style(n + 1)
                for curve in own if len(own) > 1 else ():
                    axes.plot(
                        [row["step"] for row in curve.alignment],
                        [row[block] for row in curve.alignment],
                        color=look.color,
                        linewidth=0.6,
                        alpha=0.45,
                    )
                axes.plot(
                    [row["step"] for row in rows],
                    [row[block] for row in rows],
                    color=look.color,
                    marker=look.marker,
                    linestyle=look.dashes,
                    markersize=4.5,
                    linewidth=1.5,
                    label=block,
                )
                if all(block in row["standard_error"] for row in rows):
                    wide = [1.96 * row["standard_error"][block] for row in rows]
                    axes.fill_between(
                        [row["step"] for row in rows],
                        [row[block] - each for row, each in zip(rows, wide, strict=True)],
                        [row[block] + each for row, each in zip(rows, wide, strict=True)],
                        color=look.color,
                        alpha=0.15,
                        linewidth=0,
                    )
            axes.set_title(label)
            axes.set_xlabel("step")
            # Most happens early.
            axes.set_xscale("symlog", linthresh=1)
            axes.axhline(0, color="#999999", linewidth=0.8)
            axes.grid()
        all_axes[0].set_ylabel("cosine of the gradients")
        legend_above(figure, *all_axes, above=1.0)
    return figure


def _against_step(
    axes: "Axes",
    curves: Sequence[Curve],
    looks: Mapping[str, RowStyle],
    value: Callable[[CurvePoint], float],
) -> None:
    for label, own in curves_module.by_label(curves).items():
        points = [p for p in curves_module.mean_points(own) if _known(value(p))]
        if points:
            _faint(axes, own, looks[label], lambda p: p.step, value)
            _line(axes, points, looks[label], label, lambda p: p.step, value)
    axes.set_xlabel("step")
    axes.grid()


def _line(
    axes: "Axes",
    points: Sequence[CurvePoint],
    look: RowStyle,
    label: str,
    x: Callable[[CurvePoint], float],
    y: Callable[[CurvePoint], float],
) -> None:
    axes.plot(
        [x(p) for p in points],
        [y(p) for p in points],
        color=look.color,
        marker=look.marker,
        linestyle=look.dashes,
        markersize=4.5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=1.5,
        label=label,
    )


def _faint(
    axes: "Axes",
    curves: Sequence[Curve],
    look: RowStyle,
    x: Callable[[CurvePoint], float],
    y: Callable[[CurvePoint], float],
) -> None:
    """Draw each seed by itself, behind their mean."""
    for curve in curves if len(curves) > 1 else ():
        points = [p for p in curve.points if _known(x(p), y(p))]
        axes.plot(
            [x(p) for p in points],
            [y(p) for p in points],
            color=look.color,
            linewidth=0.6,
            alpha=0.45,
        )


def _pretrained_line(comparison: RunComparison, draw: Callable[..., object]) -> None:
    cell = next(
        (comparison.row(comparison.baseline).cells.get(c) for c in comparison.of_kind(MEAN)), None
    )
    if cell is not None:
        draw(cell.value, color="#555555", linewidth=0.9, linestyle="--", label=comparison.baseline)


def legend_above(figure: "Figure", *panels: "Axes", above: float = 0.9) -> None:
    """Draw one legend above all panels, each label once."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="lower center",
        bbox_to_anchor=(0.5, above),
        ncols=min(4, max(1, len(handles))),
        handlelength=2.6,
    )


def _bar_title(column: Column) -> str:
    return f"{column.title}\n{about(column)}".replace(", ", "\n").rstrip()


def _known(*numbers: float | int) -> bool:
    return not any(map(math.isnan, numbers))
