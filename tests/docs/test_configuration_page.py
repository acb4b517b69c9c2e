"""docs/configuration.md: its tables are those of the files, and its examples work."""

import re
import sys
from pathlib import Path

import pytest

from promot_t5x.cli.main import main
from promot_t5x.config import comments, gin_root
from tools import configuration_page

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
EXAMPLES = re.findall(r"```gin\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_is_current():
    """`python -m tools.configuration_page docs/configuration.md` renews it."""
    text = PAGE.read_text()
    assert configuration_page.rewritten(text) == text


@pytest.mark.parametrize("name", configuration_page.FILES)
def test_every_macro_has_a_meaning(name):
    assert [each.name for each in comments.read(gin_root() / name) if not each.meaning] == []


def test_comments_of_macros(tmp_path):
    (tmp_path / "x.gin").write_text(
        "# A group.\n\nA = 1  # of a line\n               # and the next\n"
        "# Above it.\nB = [1,\n  2]\nC = %gin.REQUIRED\n"
    )
    found = [(m.name, m.default, m.meaning) for m in comments.read(tmp_path / "x.gin")]
    assert found == [
        ("A", "1", "of a line and the next"),
        ("B", "[1, 2]", "Above it."),
        ("C", "%gin.REQUIRED", ""),
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=["adamw", "frozen"])
def test_examples_are_configurations(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "mine.gin").write_text(example)
    words = [
        *("--gin_file=demo/model.gin", "--gin_file=runs/finetune.gin", "--gin_file=mine.gin"),
        *("--gin.MIXTURE_OR_TASK_NAME='tiny_rte'", "--gin.INITIAL_CHECKPOINT_PATH='tiny_world'"),
        *("--gin.TASK_FEATURE_LENGTHS={'inputs': 20, 'targets': 4}", "--gin.MODEL_DIR='run'"),
    ]
    assert main(["train", *words, "--dry_run"]) == 0
    assert "# mine.gin:" in capsys.readouterr().out


def headers():
    """The shipped files of the paper and the demonstration."""
    root = gin_root()
    return [*sorted((root / "paper").glob("*.gin")), *sorted((root / "demo").glob("*.gin"))]


@pytest.mark.parametrize("path", headers(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_headers_say_command_time_memory_and_score(path):
    text = "\n".join(comments.first_comment(path))
    if "not a run of its own" in text:
        return
    assert "promot-t5x promot --gin_file=" in text or "`make " in text
    for word in ("time", "memory", "score"):
        assert word in text.lower()
    if path.parent.name == "paper" and "docs/plan.md" in text:
        plan = (PAGE.parent / "plan.md").read_text()
        rows = [line.split(" | ") for line in plan.splitlines() if f"| {path.stem} |" in line]
        big = [row for row in rows if row[1] == "data 8 x model 8" and row[2].startswith("64x")]
        said = dict(re.findall(r"(stage one|stage two|standard fine-tuning) ((?:\d+[hms])+)", text))
        named = {
            "stage_one": "stage one",
            "stage_two": "stage two",
            "standard": "standard fine-tuning",
        }
        assert said == {named[row[3]]: row[13] for row in big if row[3] in named}
        most = max(float(row[7].partition(" of ")[0]) for row in big)
        assert f"at most {most:.2f} of 30.75 GiB" in text
