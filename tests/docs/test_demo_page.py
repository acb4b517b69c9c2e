"""docs/demo.md: its examples and scores are those of the code and of the shipped base."""

import re
import shlex
from pathlib import Path

import pytest

from promot_t5x.tasks import registry
from promot_t5x.tasks.tiny import words
from promot_t5x.tasks.tiny.vocabulary import WordVocabulary
from tools import demo_page

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "demo.md").read_text()


def test_the_generated_parts_are_up_to_date():
    assert demo_page.filled(PAGE) == PAGE


def test_a_page_without_a_mark_is_refused():
    with pytest.raises(ValueError, match="no mark <!-- suite -->"):
        demo_page.filled("# A page\n")


def test_examples_are_what_the_tasks_ask():
    lengths = {"inputs": 48, "targets": 6}
    for name, asked, answer in re.findall(r"^\| `(\w+)` \| `(.+)` \| `(.+)` \|$", PAGE, re.M):
        task = name if name in demo_page.TARGETS else f"tiny_icl_{name}_1shot"
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


def tables(path):
    """[{row: {column: cell}}] of a page; "ProMoT (10 seeds)" is called ProMoT."""
    found = []
    for block in re.findall(r"(?:^\|.+\n)+", path.read_text(), re.M):
        head, _, *rows = ([c.strip() for c in x[1:-1].split("|")] for x in block.splitlines())
        found.append({r[0].partition(" (")[0]: dict(zip(head, r, strict=True)) for r in rows})
    return found


@pytest.mark.parametrize(("column", "target"), [(1, "tiny_rte"), (2, "tiny_enfr")])
def test_the_results_are_those_of_the_generated_tables(column, target):
    scores, change, _ = tables(ROOT / "docs" / "demo" / f"{target}.md")

    def score(row, title):
        return scores[row][title].partition(" ")[0]

    promot, standard = "ProMoT", "standard fine-tuning"
    rows = re.findall(r"^\| (?:ProMoT's|ProMoT keeps|answers in).+$", PAGE, re.M)
    within, keeps, few, many = (row.strip("| ").split(" | ")[column] for row in rows)
    assert within == f"yes: {score(promot, target)} and {score(standard, target)}"
    assert abs(float(score(promot, target)) - float(score(standard, target))) <= 2
    interval = change["mean"]["95% interval"]
    assert keeps == f"yes: {interval}"
    assert float(interval.partition("…")[0]) > 10
    share = score(promot, "target's format")
    assert few == f"yes: {share}"
    assert float(share) <= 5
    share = score(standard, "target's format")
    assert many == (f"yes: {share}" if float(share) >= 15 else f"**no: {share}**")


def test_the_gains_task_by_task_are_those_of_the_ten_seeds():
    records = (ROOT / "docs/demo/tiny_rte.md").read_text()
    tables = {}
    for text in records.split("\n\n"):
        cells = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
        if cells and cells[0][3:5] == ["ProMoT", "difference"]:
            tables[cells[0][2]] = {c[0]: float(c[4]) for c in cells[2:]}
    kept, gained = tables["standard fine-tuning"], tables["untrained prompt, removed"]
    tasks = [task for task in gained if task not in ("tiny_rte", "mean", "target's format")]
    others = [gained[task] for task in tasks if task != "cb"]
    told = " ".join(PAGE.split())
    assert f"`cb` {gained['cb']:+} points, while the other seven are" in told
    assert f"seven are {-sum(others) / len(others):.1f} lower on average" in told
    largest = sorted(tasks, key=kept.__getitem__)[:-4:-1]
    assert largest == ["cb", "wic", "qa_short"]
    cb, wic, qa_short = (f"`{task}` {kept[task]:+}" for task in largest)
    assert f"three tasks: {cb}, {wic} and {qa_short}." in told
