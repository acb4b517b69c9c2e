"""The table of a comparison: its columns, numbers and layout."""

import pytest

from promot_t5x.report.rows import ReportRow, cells, header, number, short_names, table

NAN = float("nan")


def row(label, targets=None, suite=None, target_format=None):
    return ReportRow(
        label=label, targets=targets or {}, suite=suite or {}, target_format=target_format
    )


SUITE = {"tiny_icl_cb_1shot": 50.04, "tiny_icl_wic_1shot": 61.25}


def test_a_table_reads_as_the_paper_lays_it_out():
    rows = [
        row("pretrained", {"rte": 47.3}, SUITE, None),
        row("ProMoT (Ours)", {"rte": 92.78}, {**SUITE, "tiny_icl_cb_1shot": 100.0}, 3.456),
        row("fine-tuned", {"rte": 91.0}, dict.fromkeys(SUITE, 0.0), 87.5),
    ]
    assert table(rows).splitlines() == [
        "|               |  rte |    cb |  wic | mean | target's format |",
        "| ------------- | ---: | ----: | ---: | ---: | --------------: |",
        "| pretrained    | 47.3 |  50.0 | 61.2 | 55.6 |               – |",
        "| ProMoT (Ours) | 92.8 | 100.0 | 61.2 | 80.6 |             3.5 |",
        "| fine-tuned    | 91.0 |   0.0 |  0.0 |  0.0 |            87.5 |",
    ]


def test_columns_that_no_row_has_are_left_out():
    assert header([row("a", {"rte": 1.0})]) == ["rte"]
    assert header([row("a", {"rte": 1.0}, SUITE)]) == ["rte", *SUITE, "mean"]
    only_some = [row("a", {"rte": 1.0}), row("b", {"rte": 2.0}, target_format=0.0)]
    assert header(only_some) == ["rte", "target's format"]
    assert [cells(r, header(only_some)) for r in only_some] == [["1.0", "–"], ["2.0", "0.0"]]
    assert "mean" not in table(only_some)


def test_a_missing_score_is_no_zero():
    rows = [row("a", {"x": 1.0, "y": 2.0}), row("b", {"x": NAN})]
    assert cells(rows[1], header(rows)) == ["–", "–"]
    assert number(None) == number(NAN) == "–"
    assert (number(0.0), number(99.95), number(-0.04)) == ("0.0", "100.0", "-0.0")


def test_the_mean_is_that_of_the_suite_alone():
    (line,) = [cells(row("a", {"rte": 100.0}, {"p": 10.0, "q": 40.0}), ["rte", "p", "q", "mean"])]
    assert line == ["100.0", "10.0", "40.0", "25.0"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["tiny_icl_cb_1shot", "tiny_icl_qa_full_1shot"], ["cb", "qa_full"]),
        (["rte"], ["rte"]),
        ([], []),
        (["rte", "cb"], ["rte", "cb"]),
        (["icl_cb", "icl_cb_hard"], ["cb", "cb_hard"]),
        (["a_x_b", "a_b"], ["x_b", "b"]),
        (["wmt_fr_en", "wmt_de_en"], ["fr", "de"]),
    ],
)
def test_short_names_drop_what_all_share(names, short):
    assert short_names(names) == short


def test_every_line_of_a_table_is_equally_wide():
    rows = [row("a", {"a long task's name": 1.0}, SUITE), row("a rather long label", {}, SUITE)]
    widths = {len(line) for line in table(rows).splitlines()}
    assert len(widths) == 1
