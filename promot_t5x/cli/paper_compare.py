"""`promot-t5x paper compare`: the paper's numbers beside those of runs, cell by cell."""

import argparse
import itertools
from collections.abc import Sequence

from promot_t5x.report import reproduction, table
from promot_t5x.report.printed import PrintedRow
from promot_t5x.report.reproduction import ReproducedCell
from promot_t5x.report.rows import signed_number, span

SIGNIFICANT = 0.05
_HEAD = [
    *("", "paper", "yours", "95% interval", "difference", "p", "p (Holm)", "questions"),
    *("seeds", "differs"),
]
_ABOUT = f"""\
The paper's numbers are taken for those of one run on as many other questions, for it prints neither
answers nor intervals. "differs": p < {SIGNIFICANT} after Holm's correction over all these cells."""


def compare(arguments: argparse.Namespace) -> int:
    """Print the cells, where they differ, and what the paper leaves open; return 0."""
    found = reproduction.find(arguments.directory)
    cells = [cell for name, run in found.items() for cell in reproduction.compare(run, name)]
    cells = reproduction.adjusted(cells)
    if cells:
        _print_cells(cells)
    else:
        print(f"No printed row was made by {', '.join(found)}.")
    print("\nWhat the paper leaves open, and what is chosen here:")
    print(*(f"  - {line}" for line in reproduction.left_open(found)), sep="\n")
    return 0


def _print_cells(cells: Sequence[ReproducedCell]) -> None:
    lines = [_HEAD]
    for row, group in itertools.groupby(cells, lambda cell: cell.row):
        lines.append([_title(row), *[""] * (len(_HEAD) - 1)])
        lines += [_line(cell) for cell in group]
    print(table.aligned(lines), _ABOUT, sep="\n\n", end="\n\n")
    differing = [cell for cell in cells if _differs(cell)]
    if not differing:
        print("No cell differs significantly.")
        return
    print(f"{len(differing)} of {len(cells)} cells differ significantly:")
    for cell in differing:
        numbers = f"{cell.printed:.2f} in the paper, {cell.made.value:.2f} here"
        print(f"  {_title(cell.row)}, {cell.score}: {numbers}")


def _title(row: PrintedRow) -> str:
    return f"{row.table}: {row.name}"


def _line(cell: ReproducedCell) -> list[str]:
    return [
        f"  {cell.score}",
        f"{cell.printed:.2f}",
        f"{cell.made.value:.2f}",
        span(cell.made.interval),
        signed_number(cell.made.value - cell.printed),
        table.p_text(cell.p_value),
        table.p_text(cell.adjusted),
        f"{cell.questions:,}",
        str(len(cell.made.runs)),
        "yes" if _differs(cell) else "",
    ]


def _differs(cell: ReproducedCell) -> bool:
    return cell.adjusted < SIGNIFICANT
