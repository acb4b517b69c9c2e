"""A report as files and on the terminal."""

import shutil
import sys
from collections.abc import Sequence

from etils import epath

from promot_t5x.files import write_atomically
from promot_t5x.paths import make_directory, user_path
from promot_t5x.report import comparison, curves, page, runs, sections, style, table


def show_run(directory: epath.Path) -> None:
    """Print the table of a whole run, as a `promot` run ends, and write it to its `report.md`."""
    made = comparison.compare(runs.read([str(directory)]))
    write_atomically(directory / "report.md", table.document(made))
    print("", table.terminal(made, width()), *table.legend(made), sep="\n", end="\n\n")
    print(
        f"The table is in {directory}/report.md; with figures, comparisons and changed answers on "
        f"a page:\n  promot-t5x report {directory} --output {directory}/report"
    )


def width() -> int | None:
    """Return the width of the terminal, if there is one."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write(
    output: str,
    made: comparison.RunComparison,
    words: Sequence[str],
    compared: Sequence[tuple[str, str]],
    *,
    title: str,
) -> None:
    """Write `report.html`, `.md`, `.tex`, `.csv` and `figures/` into a directory.

    **Arguments:**

    - `words`: the runs, as on the command line; their stages' curves are drawn.
    - `compared`: pairs of labels for the page's comparisons.
    """
    rows = [run for row in made.rows for run in row.runs]
    read = curves.read(words, rows)
    directory = user_path(output, "--output")
    make_directory(directory / "figures", "--output")
    for name, (figure, _) in sections.drawn(made, read).items():
        write_atomically(directory / "figures" / f"{name}.svg", style.svg(figure))
        (directory / "figures" / f"{name}.png").write_bytes(style.png(figure))
    text = page.render(title, sections.standard(made, read, compared))
    write_atomically(directory / "report.html", text)
    write_atomically(directory / "report.md", table.document(made))
    write_atomically(directory / "report.tex", table.latex(made) + "\n")
    write_atomically(directory / "report.csv", table.tidy_csv(made))
