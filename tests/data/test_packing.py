"""Packing: rows never overflow, nothing is lost, and rows are few."""

import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.data.packing import PackedRows, RowPlan, Windows, best_fit_decreasing, join_plans

CAPACITY = (64, 16)


def sizes_within(capacity):
    side = [st.integers(0, limit) for limit in capacity]
    return st.lists(st.tuples(*side), min_size=1, max_size=200)


@settings(max_examples=200, deadline=None)
@given(sizes_within(CAPACITY))
def test_best_fit_never_overflows_and_leaves_no_row_empty(pairs):
    sizes = np.asarray(pairs, np.int64)
    rows = best_fit_decreasing(sizes, CAPACITY)
    used = np.zeros((rows.max() + 1, 2), np.int64)
    np.add.at(used, rows, sizes)
    assert (used <= CAPACITY).all()
    assert (np.bincount(rows) > 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=200))
def test_at_most_one_row_is_less_than_half_full(inputs):
    sizes = np.stack([inputs, np.ones(len(inputs), np.int64)], axis=1)
    rows = best_fit_decreasing(sizes, (64, 10_000))
    used = np.bincount(rows, weights=sizes[:, 0])
    assert (used < 32).sum() <= 1


def test_both_features_bind():
    sizes = np.asarray([[1, 8], [1, 8], [1, 8]], np.int64)
    assert sorted(np.bincount(best_fit_decreasing(sizes, CAPACITY)).tolist()) == [1, 2]


def test_a_full_row_is_filled_exactly():
    sizes = np.asarray([[40, 1], [24, 1], [30, 1], [34, 1]], np.int64)
    rows = best_fit_decreasing(sizes, CAPACITY)
    assert rows[0] == rows[1] != rows[2] == rows[3]


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 9), st.integers(0, 40))
def test_windows_tile_the_stream(period, per_period, window):
    windows = Windows(period=max(period, per_period), per_period=per_period)
    start, stop = windows.bounds(window)
    assert start < stop
    assert stop == windows.bounds(window + 1)[0]
    assert windows.bounds(window + per_period)[0] == start + windows.period


def make_rows(seed=0, shuffle=True):
    def sizes(start, stop):
        places = np.arange(start, stop)
        return np.stack([1 + places * 7919 % 40, 1 + places * 104729 % 9], axis=1)

    windows = Windows(period=500, per_period=3)
    return PackedRows(sizes=sizes, windows=windows, capacity=CAPACITY, seed=seed, shuffle=shuffle)


def test_rows_hold_each_place_once_window_by_window():
    rows = make_rows()
    plan = rows.rows(0, 400)
    assert len(plan) == 400
    seen = np.sort(plan.places)
    period = seen[seen < 500]
    assert (period == np.arange(500)).all()
    assert len(np.unique(seen)) == len(seen)


def test_rows_do_not_depend_on_how_they_are_reached():
    whole = make_rows().rows(0, 700)
    for start, stop in ((699, 700), (0, 1), (120, 350)):
        part, expected = make_rows().rows(start, stop), whole.take(start, stop)
        assert (part.places == expected.places).all()
        assert (part.starts == expected.starts).all()
    backwards = make_rows()
    parts = [backwards.rows(start, start + 100) for start in range(600, -1, -100)]
    assert (join_plans(parts[::-1]).places == whole.places).all()


def test_the_seed_shuffles_rows_within_their_window():
    plans = [make_rows(seed=seed).rows(0, 10).places.tolist() for seed in (0, 1)]
    assert plans[0] != plans[1]
    assert make_rows(seed=0, shuffle=False).rows(0, 10).places.tolist() != plans[0]


def test_plan_of_rows_groups_places():
    plan = RowPlan.of_rows(np.asarray([1, 0, 1]), first_place=10)
    assert plan.places.tolist() == [11, 10, 12]
    assert plan.starts.tolist() == [0, 1, 3]


def test_packing_is_fast():
    rng, count = np.random.default_rng(0), 4096
    sizes = np.stack([100 + rng.integers(20, 200, count), rng.integers(2, 9, count)], axis=1)
    start = time.process_time()
    rows = best_fit_decreasing(sizes, (1024, 64))
    # About 0.02 s; a loop over all rows in Python would take several seconds.
    assert time.process_time() - start < 0.5
    assert sizes[:, 0].sum() / ((rows.max() + 1) * 1024) > 0.95
