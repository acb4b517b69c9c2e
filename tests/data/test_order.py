"""The stream's order: epochs, mixing, and that any place can be reached directly."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.data.order import Mixing, Stream, permutation


def stream(sizes, rates=None, seed=0, shuffle=True):
    names = [f"task{index}" for index in range(len(sizes))]
    rates = rates or [1.0] * len(sizes)
    return Stream(names=names, sizes=sizes, rates=rates, seed=seed, shuffle=shuffle)


def test_permutation_is_fixed_for_all_time():
    # A run that resumes under a newer numpy must go on with the same data.
    assert permutation(8, 17, "epoch", "rte", 0).tolist() == [6, 0, 3, 5, 2, 7, 4, 1]


def test_every_epoch_has_every_example_once_in_its_own_order():
    _, examples = stream([97]).examples(0, 97 * 5)
    epochs = examples.reshape(5, 97)
    assert (np.sort(epochs, axis=1) == np.arange(97)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5


def test_seed_and_task_name_change_the_order():
    orders = [
        Stream(names=[name], sizes=[50], rates=[1.0], seed=seed).examples(0, 50)[1]
        for name, seed in (("a", 0), ("a", 1), ("b", 0))
    ]
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_without_shuffling_the_source_order_repeats():
    _, examples = stream([5], shuffle=False).examples(3, 13)
    assert examples.tolist() == [3, 4, 0, 1, 2, 3, 4, 0, 1, 2]


def test_mixture_follows_its_rates_closely_and_covers_whole_epochs_of_each_task():
    rates = [0.7, 0.25, 0.05]
    tasks, examples = stream([11, 300, 7], rates).examples(0, 10_000)
    shares = np.bincount(tasks, minlength=3) / len(tasks)
    assert np.abs(shares - rates).max() < 0.01
    for task, size in enumerate([11, 300, 7]):
        seen = examples[tasks == task]
        whole = seen[: len(seen) // size * size].reshape(-1, size)
        assert (np.sort(whole, axis=1) == np.arange(size)).all()


def test_mixture_order_looks_random():
    tasks, _ = stream([10, 10]).examples(0, 4096)
    runs = 1 + np.count_nonzero(np.diff(tasks))
    # 2,048.5 runs are expected of fair coin tosses, with a deviation of 32.
    assert abs(runs - 2048) < 160


def test_a_very_rare_task_is_drawn_at_its_rate():
    mixing = Mixing([1.0, 1e-5], seed=3)
    tasks, indices = mixing.picks(0, 1_000_000)
    assert 8 <= (tasks == 1).sum() <= 12
    assert indices[tasks == 1].tolist() == list(range((tasks == 1).sum()))


@pytest.mark.parametrize("sizes", [[97], [40, 13, 5]])
def test_any_stretch_equals_the_same_stretch_of_the_whole(sizes):
    tasks, examples = stream(sizes, seed=9).examples(0, 6000)
    for start, stop in ((0, 1), (1023, 1025), (5000, 6000), (2048, 3072)):
        got = stream(sizes, seed=9).examples(start, stop)
        assert (got[0] == tasks[start:stop]).all()
        assert (got[1] == examples[start:stop]).all()


def test_a_far_place_is_reached_at_once_and_going_back_is_right():
    one, other = Mixing([3.0, 1.0], seed=1), Mixing([3.0, 1.0], seed=1)
    far = 2_000_000_000
    tasks, indices = one.picks(far, far + 100)
    assert np.abs(indices[tasks == 0] / far - 0.75).max() < 1e-6
    for got, expected in zip(one.picks(500, 900), other.picks(500, 900), strict=True):
        assert (got == expected).all()


@settings(max_examples=40, deadline=None)
@given(
    rates=st.lists(st.floats(0.001, 10.0), min_size=2, max_size=6),
    seed=st.integers(0, 2**31),
    start=st.integers(0, 5000),
)
def test_index_in_task_counts_earlier_picks(rates, seed, start):
    tasks, indices = Mixing(rates, seed).picks(0, start + 300)
    counts = collections.Counter()
    for task, index in zip(tasks.tolist(), indices.tolist(), strict=True):
        assert index == counts[task]
        counts[task] += 1
    got = Mixing(rates, seed).picks(start, start + 300)
    assert (got[0] == tasks[start:]).all()
    assert (got[1] == indices[start:]).all()
