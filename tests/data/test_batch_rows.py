"""Batches' own examples in rows: what fits a shape, and which shapes are chosen."""

import numpy as np
import pytest

from promot_t5x.data.batch_rows import Shape, choose_shapes, lay

WHOLE = Shape(8, 64, 8)


def sizes(*pairs):
    return np.array(pairs, np.int64)


def test_examples_are_laid_into_the_rows_that_have_room_for_both_sides():
    plan = lay(sizes((40, 2), (20, 2), (24, 6), (40, 8)), Shape(2, 64, 10), first_place=100)
    # 40 + 24 and 40 + 20 inputs; 8 + 2 targets fill the other's row.
    rows = [plan.take(k, k + 1).places.tolist() for k in range(2)]
    assert sorted(map(sorted, rows)) == [[100, 102], [101, 103]]


@pytest.mark.parametrize(
    "examples",
    [
        [(65, 1)],  # longer than a row
        [(10, 11)],
        [(60, 1)] * 3,  # a row each
        [(1, 10)] * 3,
    ],
)
def test_what_does_not_fit_has_no_plan(examples):
    assert lay(sizes(*examples), Shape(2, 64, 10)) is None


def test_equal_batches_take_the_one_shape_that_they_fill():
    # Eight examples of 32 + 2 fill as many tokens whole and halved; short rows attend to less.
    samples = [sizes(*[(32, 2)] * 8)] * 4
    assert choose_shapes(samples, WHOLE, row_multiple=1) == (Shape(4, 64, 8), WHOLE)
    assert choose_shapes(samples, Shape(8, 64, 2), row_multiple=8)[0] == Shape(8, 32, 2)


def test_rows_are_multiples_and_no_longer_than_anything_needs():
    samples = [sizes((64, 1), (20, 1), (20, 1), (20, 1))] * 4
    assert choose_shapes(samples, Shape(4, 64, 8), row_multiple=1)[0] == Shape(2, 64, 8)
    assert choose_shapes(samples, Shape(4, 64, 8), row_multiple=4) == (Shape(4, 64, 8),)


def test_a_smaller_shape_for_most_batches_comes_first_where_it_saves_enough():
    short, long = sizes(*[(16, 1)] * 8), sizes(*[(16, 1)] * 4, *[(60, 1)] * 4)
    smallest, holds_all, whole = choose_shapes([short] * 9 + [long], WHOLE, row_multiple=1)
    assert smallest == Shape(2, 64, 8)
    assert lay(short, smallest) is not None
    assert lay(long, smallest) is None
    assert lay(long, holds_all) is not None
    assert whole == WHOLE
    rare = choose_shapes([long] * 40 + [short], WHOLE, row_multiple=1)
    assert len(rare) == 2


def test_what_saves_nothing_leaves_batches_as_they_are():
    full = [sizes(*[(64, 8)] * 8)] * 4
    assert choose_shapes(full, WHOLE, row_multiple=1) == (WHOLE,)
