"""docs/paper.md is made of its record, which has every row and figure of the paper."""

import pytest
import run_helpers

from tools import paper_rows


def test_the_page_is_made_of_the_record():
    assert paper_rows.page() == (paper_rows.DOCS / "paper.md").read_text()


def test_every_row_and_figure_is_planned_and_what_was_run_made_its_rows():
    record = paper_rows._record()
    configurations = paper_rows._configurations()
    assert sorted(record["plans"]) == sorted(configurations)
    for planned in record["plans"].values():
        assert planned["held_gib"] < planned["hbm_gib"]
    assert record["runs"]
    assert set(record["runs"]) <= set(configurations)
    wanted = dict.fromkeys(configurations, ())
    for table, row, name in paper_rows._printed():
        wanted[name] = (*wanted[name], f"{table}: {row}")
    for name, ran in record["runs"].items():
        assert tuple(ran["made"]) == wanted[name]


@pytest.mark.parametrize("name", ["mt5_xxl_enfr_lora_r2", "early_training"])
def test_a_tiny_run_is_the_rows_own_but_for_its_size(name, tmp_path):
    said = run_helpers.succeed([*paper_rows.words(name, tmp_path), "--dry_run"])
    for line in ("EMBED_DIM = 16", "TRAIN_STEPS = 2", "PACK = 'batch'", "SCAN_LAYERS = True"):
        assert f"\n{line}" in said
    assert "DIALECT = 'span_corruption'" in said
    assert ("LORA_RANK = 2" in said) == ("lora" in name)
