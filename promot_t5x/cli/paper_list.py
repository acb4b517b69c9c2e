"""`promot-t5x paper list`: every printed row and figure, its configuration, whether it was run."""

import argparse
import itertools
from collections.abc import Mapping

from etils import epath

from promot_t5x.report import printed, reproduction
from promot_t5x.report.printed import PrintedRow


def list_rows(arguments: argparse.Namespace) -> int:
    """Print the rows, table by table, and the figures; return 0."""
    found = reproduction.find(arguments.directory)
    lines = [["row", "configuration", "run" if arguments.directory else ""]]
    for title, rows in itertools.groupby(printed.ROWS, lambda row: row.table):
        lines.append([f"{title}:", "", ""])
        lines += [[f"  {row.name}", row.configuration, _state(row, found)] for row in rows]
    lines.append(["other models, whose numbers are not here:", "", ""])
    lines += [["  all methods", name, ""] for name in printed.WITHOUT_NUMBERS]
    lines.append(["figures:", "", ""])
    lines += [[f"  {f.number}: {f.about}", f.configuration, ""] for f in printed.FIGURES]
    width = [max(len(line[i]) for line in lines) for i in range(2)]
    for name, configuration, state in lines:
        print(f"{name:{width[0]}}  {configuration:{width[1]}}  {state}".rstrip())
    print("\nfigures are drawn by:")
    for flags in dict.fromkeys(figure.flags for figure in printed.FIGURES):
        own = [figure for figure in printed.FIGURES if figure.flags == flags]
        names = ", ".join(f"{figure.drawn} ({figure.number})" for figure in own)
        command = f"promot-t5x report {own[0].configuration} --output=DIR {flags}"
        print(f"  {command.rstrip()}\n    into DIR/figures: {names}")
    return 0


def _state(row: PrintedRow, found: Mapping[str, epath.Path]) -> str:
    run = found.get(row.configuration)
    if run is None:
        return ""
    return "made" if reproduction.was_made(row, run) else "begun"
