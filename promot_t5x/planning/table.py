"""Plans as text: a table for people, plain data for programs."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from promot_t5x.planning.chips import GIB, Slice
from promot_t5x.planning.estimates import Estimate
from promot_t5x.planning.settings_search import Trial
from promot_t5x.progress import duration

HEADINGS = (
    "", "params", "optimizer", "temporaries", "HBM a chip", "TFLOP", "step", "MFU", "bound by",
    "steps", "time", "chip-hours",
)  # fmt: skip

_MEANING = (
    "Params, optimizer, temporaries: GiB a chip. TFLOP: of the whole batch, recomputation apart.",
    "Step, MFU, time: the best that the slice allows, if compute, HBM and network overlap wholly.",
    "Evaluations are not in the time; their rows are one batch of the longest inputs, decoded to",
    "the longest answer.",
)


def text(trial: Trial) -> str:
    """Write the table of a plan, what it means, and its collectives."""
    slice_, estimates = trial.slice_, trial.estimates
    head = (
        f"{slice_.name}: {slice_.chips} chips with {_gib(slice_.chip.hbm_bytes)} GiB of HBM; "
        f"mesh {trial.mesh}"
    )
    lines = [head, "", *_aligned([HEADINGS, *(row(each, slice_) for each in estimates)]), ""]
    if trial.fits and sum(bool(each.steps) for each in estimates) > 1:
        hours = trial.seconds / 3600 * slice_.chips
        lines += [f"All stages: {duration(trial.seconds)}, {hours:,.1f} chip-hours.", ""]
    return "\n".join([*lines, *_collectives(estimates), *_MEANING])


def trials(tried: Sequence[Trial]) -> str:
    """List what a search tried, a line each, and why what cannot run cannot."""
    rows = [("", "settings", "HBM a chip", "least time")]
    for trial in tried:
        total = max((each.total_bytes or 0 for each in trial.estimates), default=0)
        outcome = "impossible" if trial.refused else "does not fit"
        if trial.fits:
            outcome = duration(trial.seconds)
        rows.append((trial.slice_.name, trial.settings, _gib(total) if total else "", outcome))
    why = dict.fromkeys(f"Impossible: {trial.refused}" for trial in tried if trial.refused)
    return "\n".join([*_aligned(rows, left=2), *why])


def data(estimate: Estimate) -> dict[str, Any]:
    """Turn an estimate into what JSON can hold it."""
    plain = dataclasses.asdict(estimate)
    if estimate.traffic:
        plain["traffic"] = {
            "hbm_bytes": estimate.traffic.hbm_bytes,
            "collectives": [
                {
                    **key._asdict(),
                    "sent_bytes": size,
                    "calls": estimate.traffic.calls[key],
                }
                for key, size in estimate.traffic.sent_bytes.items()
            ],
        }
    plain["flops"]["model"] = estimate.flops.model
    return plain


def _seconds(estimate: Estimate) -> float:
    assert estimate.roofline is not None
    assert estimate.steps is not None
    return estimate.roofline.seconds * estimate.steps


def row(estimate: Estimate, slice_: Slice) -> tuple[str, ...]:
    """Write the cells of a program, under `HEADINGS`."""
    limit = slice_.chip.hbm_bytes
    needed = _gib(estimate.total_bytes) if estimate.total_bytes else "?"
    total = f"{needed} of {_gib(limit)}"
    start = (
        estimate.program,
        _gib(estimate.parameter_bytes),
        _gib(estimate.optimizer_bytes),
        _gib(estimate.temporary_bytes) if estimate.traffic else "",
        total if estimate.fits else f"{total}: too large",
        f"{estimate.flops.model / 1e12:,.1f}",
    )
    line = estimate.roofline
    if line is None or not estimate.fits:
        return (*start, *("",) * (len(HEADINGS) - len(start)))
    timing = (_step(line.seconds), f"{line.model_flops_utilisation:.0%}", line.bound)
    if estimate.steps is None:
        return (*start, *timing, "", "", "")
    seconds = _seconds(estimate)
    hours = seconds / 3600 * slice_.chips
    return (*start, *timing, f"{estimate.steps:,}", duration(seconds), f"{hours:,.1f}")


def _collectives(estimates: Sequence[Estimate]) -> list[str]:
    lines = []
    for each in estimates:
        if each.traffic is None:
            continue
        found = sorted(each.traffic.sent_bytes.items(), key=lambda item: -item[1])
        shown = [
            f"{key.kind} {key.group} ways{' across slices' if key.across_slices else ''} "
            f"{_megabytes(size)} in {each.traffic.calls[key]:,}"
            for key, size in found
            if size >= 1e5
        ]
        lines.append(f"{each.program} sends, a chip and step: {'; '.join(shown) or 'nothing'}")
    return [*lines, ""] if lines else []


def _aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 10 else f"{size / GIB:.4f}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def _step(seconds: float) -> str:
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e3:,.0f} ms" if seconds < 10 else f"{seconds:,.1f} s"
