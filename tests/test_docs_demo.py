"""docs/demo.md: its examples and scores are those of the code and of the shipped base."""

import re
import shlex
from pathlib import Path

import pytest
from promot_t5x.tasks import registry
from promot_t5x.tasks.tiny import page, words
from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "demo.md").read_text()


def test_the_generated_parts_are_up_to_date():
    assert page.filled(PAGE) == PAGE


def test_a_page_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="no mark <!-- suite -->"):
        page.filled("# A page\n")


def test_examples_are_what_the_tasks_ask():
    lengths = {"inputs": 48, "targets": 6}
    for name, asked, answer in re.findall(r"^\| `(\w+)` \| `(.+)` \| `(.+)` \|$", PAGE, re.M):
        task = name if name in page.TARGETS else f"tiny_icl_{name}_1shot"
        data = (
            registry.get_task(task)
            .build(WordVocabulary())
            .get_dataset(lengths, "test", shuffle=False)
        )
        rows = list(data.take(2).as_numpy_iterator())
        found = [(r["inputs_pretokenized"].decode(), r["answer"].decode()) for r in rows]
        assert (asked, answer) in found
        assert words.QUERY in asked


def test_every_command_is_a_target_of_the_makefile():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    commands = re.findall(r"^    make (.+?)(?:  +#.*)?$", PAGE, re.M)
    assert len(commands) >= 5
    for command in commands:
        assert shlex.split(command)[0] in targets


def test_every_number_of_the_results_is_in_a_generated_table():
    rows = re.findall(r"^\| (?:ProMoT's|ProMoT keeps|answers in).+$", PAGE, re.M)
    assert len(rows) == 4
    for row in rows:
        for target, cell in zip(("tiny_rte", "tiny_enfr"), row.split(" | ")[1:], strict=True):
            made = (ROOT / "docs" / "demo" / f"{target}.md").read_text()
            numbers = re.findall(r"[+]?\d+\.\d(?:…[+]\d+\.\d)?", cell)
            assert numbers and all(f" {number} " in made for number in numbers)
