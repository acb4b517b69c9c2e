"""docs/notebook.ipynb keeps what its cells print and draw when `make notebook` runs them."""

from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def test_the_notebook_keeps_its_outputs():
    """`make notebook` renews them."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count == n for n, cell in enumerate(code, 1))
    outputs = [each for cell in code for each in cell.outputs]
    assert not [each for each in outputs if each.output_type == "error"]
    assert any("image/png" in each.get("data", {}) for each in outputs)
    assert "site-packages" not in NOTEBOOK.read_text(encoding="utf-8")  # paths of a machine
