"""How names and numbers are written."""

import pytest

from promot_t5x.report.rows import number, short_names


def test_a_missing_score_is_no_zero():
    assert number(None) == number(float("nan")) == "–"
    assert (number(0.0), number(99.95), number(-0.04)) == ("0.0", "100.0", "-0.0")


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
