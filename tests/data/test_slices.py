"""Slices of splits, of sources that know nothing of slices: TFDS's notation and its rows."""

import pytest
from data_tasks import VOCABULARY

from promot_t5x.data import slices, sources, store
from promot_t5x.data.questions import read_questions
from promot_t5x.errors import UserError

ROWS = list(range(30))  # of `cubes`, split train; validation has seven

# A slice and the rows that Python's own slice of a list of that length has.
CASES = {
    "train[:10]": ROWS[:10],
    "train[10:]": ROWS[10:],
    "train[-4:]": ROWS[-4:],
    "train[5:-5]": ROWS[5:-5],
    "train[:50%]": ROWS[:15],
    "train[-10%:]": ROWS[-3:],
    "train[25%:75%]": ROWS[8:22],  # 7.5 and 22.5 rows, to the nearest even one
    "train[:100]": ROWS,
}


@pytest.fixture(scope="module")
def cubes():
    (task,) = sources.resolve_tasks("cubes", VOCABULARY, module="data_tasks")
    return task


@pytest.mark.parametrize("split", CASES)
def test_a_store_holds_the_rows_of_the_slice(cubes, split, tmp_path):
    for _ in range(2):  # made, and found again
        examples = store.open_store(cubes, split, cache_dir=tmp_path)
        targets = [VOCABULARY.decode(examples.example(i)[1].tolist()) for i in range(len(examples))]
        assert targets == [str(n) for n in CASES[split]]
    assert examples.name == f"cubes/{split}"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_evaluation_asks_the_rows_of_the_slice(cubes):
    questions = read_questions(
        cubes, "validation[2:4]", limit=None, token_budget=20, answer_length=5
    )
    assert [question.answer for question in questions] == ["2", "3"]


def test_what_is_no_slice_is_refused(cubes):
    with pytest.raises(UserError, match=r"no split 'tran\[:3\]'.*Did you mean 'train'"):
        cubes.check_split("tran[:3]")
    for split in ("train[3]", "train[:3]+validation", "train[a:b]", "train[:3"):
        with pytest.raises(UserError, match="is no slice"):
            cubes.check_split(split)
    with pytest.raises(UserError, match="no examples"):
        store.open_store(cubes, "train[20:10]")


def test_rows_are_counted_where_the_source_knows_how_many():
    part = slices.parse("train[10%:20%]")
    assert part.bounds(9600) == (960, 1920)
