"""docs/paper.md is made of its record, and every row and figure of the paper was run as it says."""

from tools import paper_rows


def test_the_page_is_made_of_the_record():
    assert paper_rows.page() == (paper_rows.DOCS / "paper.md").read_text()


def test_every_row_and_figure_was_planned_and_run_at_tiny_scale():
    record = paper_rows._record()
    configurations = paper_rows._configurations()
    assert list(record["plans"]) == list(record["runs"]) == sorted(configurations)
    for table, row, name in paper_rows._printed():
        assert f"{table}: {row}" in record["runs"][name]["made"]
    for planned in record["plans"].values():
        assert planned["held_gib"] < planned["hbm_gib"]
