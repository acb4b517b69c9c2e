"""The journal of an evaluation under way, damaged: what it still gives is right."""

import pytest
from etils import epath

from promot_t5x.evaluation.journal import Journal

ANSWERS = {0: ["even", "odd"], 1: ["\u2028é"], 2: [[3, 1], [-0.5, 2.0]]}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(epath.Path(tmp_path / "answers.partial"), "questions and weights")
    assert journal.read() == {}
    for batch, answers in ANSWERS.items():
        journal.add(batch, answers)
    assert journal.read() == ANSWERS
    return journal


def test_a_flipped_bit_anywhere_costs_a_batch_or_all_and_gives_no_other_answer(journal):
    whole = journal._path.read_bytes()
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        journal._path.write_bytes(flipped)
        found = journal.read()
        assert all(ANSWERS[batch] == answers for batch, answers in found.items())
        first = whole.index(b"\n")
        if place > first:
            assert len(found) >= len(ANSWERS) - 2  # a line, or two that became one


def test_a_cut_costs_what_is_behind_it(journal):
    whole = journal._path.read_bytes()
    ends = [place for place, byte in enumerate(whole) if byte == 10]
    for place in range(len(whole)):
        journal._path.write_bytes(whole[:place])
        kept = sum(end < place + 1 for end in ends[1:])
        found = journal.read()
        assert {batch: ANSWERS[batch] for batch in range(len(found))} == found
        assert len(found) in (kept, kept + 1)  # a line that lacks no more than its end is whole
