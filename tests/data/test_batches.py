"""Batches: determinism, exact epochs, what stands in the arrays, and their errors."""

import collections
import concurrent.futures
import subprocess
import sys
import time

import numpy as np
import pytest
from data_fakes import EOS, VOCAB_SIZE, bound, random_store, segments_of, store_of

from promot_t5x.data.assembly import batch_shapes
from promot_t5x.data.batch_rows import Shape
from promot_t5x.data.batches import Batches, EvalBatches, statistics
from promot_t5x.errors import UserError

LENGTHS = {"inputs": 64, "targets": 16}
BY_HAND = {
    "batch_size": 1,
    "lengths": {"inputs": 12, "targets": 8},
    "vocab_size": 100,
    "prompt_length": 2,
    "use_prompts": True,
}


def two_tasks():
    return (
        [bound("a", 0.7), bound("b", 0.3, prompt_index=1)],
        [
            random_store("a/train", 60, inputs=(3, 40), targets=(2, 12), seed=1),
            random_store("b/train", 23, inputs=(5, 30), targets=(2, 6), seed=2),
        ],
    )


def one_task(count=61):
    store = random_store("a/train", count, inputs=(3, 40), targets=(2, 12))
    return [bound("a")], [store]


def make(tasks_and_stores, **changes):
    settings = {
        "batch_size": 8,
        "lengths": LENGTHS,
        "pack": True,
        "seed": 5,
        "vocab_size": VOCAB_SIZE,
    }
    return Batches(*tasks_and_stores, **(settings | changes))


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in got:
        assert got[name].dtype == expected[name].dtype == np.int32
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize("pack", [False, True, "batch"])
@pytest.mark.parametrize("source", [one_task, two_tasks])
def test_starting_at_step_k_gives_the_bytes_of_walking_there(pack, source):
    walking = make(source(), pack=pack, prompt_length=4, use_prompts=True)
    walked = [walking.batch(step) for step in range(30)]
    for step in (29, 0, 13):
        fresh = make(source(), pack=pack, prompt_length=4, use_prompts=True)
        assert_same(fresh.batch(step), walked[step])
        assert_same(walking.batch(step), walked[step])


@pytest.mark.parametrize("pack", [False, True])
def test_processes_that_take_rows_get_parts_of_one_batch(pack):
    whole = make(two_tasks(), pack=pack).batch(7)
    for parts in (1, 2, 4):
        size = 8 // parts
        got = [
            make(two_tasks(), pack=pack).batch(7, slice(part * size, (part + 1) * size))
            for part in range(parts)
        ]
        assert_same({name: np.concatenate([p[name] for p in got]) for name in whole}, whole)
    chosen = make(two_tasks(), pack=pack).batch(7, [6, 1])
    assert_same(chosen, {name: array[[6, 1]] for name, array in whole.items()})
    assert make(two_tasks(), pack=pack).batch(7, [])["encoder_input_tokens"].shape == (0, 64)


@pytest.mark.parametrize("pack", [False, True, "batch"])
def test_threads_may_share_batches(pack):
    shared, steps = make(two_tasks(), pack=pack), [25, 3, 17, 0, 8, 30]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        got = list(threads.map(shared.batch, steps))
    for step, batch in zip(steps, got, strict=True):
        assert_same(batch, make(two_tasks(), pack=pack).batch(step))


@pytest.mark.parametrize("pack", [False, True])
def test_seed_decides_the_batch(pack):
    batches = [make(one_task(), pack=pack, seed=seed).batch(0) for seed in (5, 5, 6)]
    assert_same(batches[0], batches[1])
    assert (batches[0]["encoder_input_tokens"] != batches[2]["encoder_input_tokens"]).any()


@pytest.mark.parametrize("row_multiple", [1, 4])
@pytest.mark.parametrize("source", [one_task, two_tasks])
def test_a_batch_packed_into_few_rows_holds_the_examples_of_the_unpacked_one(source, row_multiple):
    prompt = {"prompt_length": 4, "use_prompts": True}
    unpacked = make(source(), pack=False, batch_size=16, **prompt)
    settings = {"pack": "batch", "batch_size": 16, "row_multiple": row_multiple, **prompt}
    packed = make(source(), **settings)
    tokens = 0
    for step in range(40):
        batch, shape = packed.batch(step), packed.shape(step)
        assert sorted(segments_of(batch)) == sorted(segments_of(unpacked.batch(step)))
        assert sorted(packed.examples(step)) == sorted(unpacked.examples(step))
        assert_same(packed.content(step), unpacked.batch(step))
        assert shape in packed.shapes
        assert shape.rows % row_multiple == 0
        shapes = batch_shapes(shape, packed=True)
        assert {name: array.shape for name, array in batch.items()} == shapes
        for k in (0, 1):
            half = packed.batch(step, slice(k, None, 2))
            assert_same(half, {name: array[k::2] for name, array in batch.items()})
        tokens += shape.tokens
    assert 2 <= len(packed.shapes) <= 3
    assert packed.shapes[-1] == unpacked.shape(0) == Shape(16, **LENGTHS)
    assert tokens < 0.7 * 40 * packed.shapes[-1].tokens
    # Runs that differ in their seed share programs.
    assert make(source(), **settings | {"seed": 6}).shapes == packed.shapes


def test_unpacked_epochs_hold_every_example_once():
    tasks, stores = one_task(56)
    batches = make((tasks, stores), pack=False)
    expected = collections.Counter(all_examples(stores[0]))
    for epoch in range(3):
        seen = [s for step in range(7) for s in segments_of(batches.batch(epoch * 7 + step))]
        assert collections.Counter(seen) == expected


def test_packed_epochs_hold_every_example_once():
    tasks, stores = one_task(2000)
    batches = make((tasks, stores), batch_size=16)
    expected = collections.Counter(all_examples(stores[0]))
    seen, step = [], 0
    while len(seen) < 3 * 2000:
        seen += segments_of(batches.batch(step))
        step += 1
    for epoch in range(3):
        assert collections.Counter(seen[epoch * 2000 : (epoch + 1) * 2000]) == expected


def test_packed_and_unpacked_streams_hold_the_same_examples():
    tasks, stores = two_tasks()
    packed = make((tasks, stores), prompt_length=4, use_prompts=True)
    seen = collections.Counter()
    for step in range(40):
        seen.update(segments_of(packed.batch(step)))
    unpacked = make((tasks, stores), pack=False, prompt_length=4, use_prompts=True)
    expected, step = collections.Counter(), 0
    while expected.total() < seen.total():
        expected.update(segments_of(unpacked.batch(step)))
        step += 1
    # They differ by no more than the window that the 40 batches end in.
    assert sum((seen - expected).values()) <= 16 * 8 * 4
    assert set(seen) <= set(expected)
    assert set(expected) <= set(seen)


def test_mixture_draws_tasks_by_rate_with_their_own_prompts():
    batches = make(two_tasks(), pack=False, batch_size=64, prompt_length=3, use_prompts=True)
    first = np.concatenate([batches.batch(s)["encoder_input_tokens"][:, :3] for s in range(32)])
    own = {0: VOCAB_SIZE + np.arange(3), 1: VOCAB_SIZE + 3 + np.arange(3)}
    counts = [int((first == own[task]).all(axis=1).sum()) for task in (0, 1)]
    assert sum(counts) == 32 * 64
    assert abs(counts[0] / sum(counts) - 0.7) < 0.01


def test_arrays_of_a_packed_row_written_out_by_hand():
    store = store_of("t/train", [([5, 6, EOS], [7, EOS]), ([8, EOS], [9, 10, EOS])])
    batches = EvalBatches([bound("t")], [store], pack=True, **BY_HAND)
    expected = {
        "encoder_input_tokens": [100, 101, 5, 6, 1, 100, 101, 8, 1, 0, 0, 0],
        "encoder_segment_ids": [1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0],
        "encoder_positions": [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0],
        "decoder_target_tokens": [7, 1, 9, 10, 1, 0, 0, 0],
        "decoder_input_tokens": [0, 7, 0, 9, 10, 0, 0, 0],
        "decoder_loss_weights": [1, 1, 1, 1, 1, 0, 0, 0],
        "decoder_segment_ids": [1, 1, 2, 2, 2, 0, 0, 0],
        "decoder_positions": [0, 1, 0, 1, 2, 0, 0, 0],
    }
    got = batches.batch(0)
    assert {name: got[name][0].tolist() for name in expected} == expected
    assert got.keys() == expected.keys()


def test_shapes_are_as_announced():
    for pack in (False, True):
        batch = make(one_task(), pack=pack).batch(0)
        shapes = batch_shapes(Shape(8, **LENGTHS), packed=pack)
        assert {name: array.shape for name, array in batch.items()} == shapes


def test_the_prompt_is_counted_in_the_input_length_and_texts_keep_their_eos():
    examples = [([*range(10, 29), EOS], [*range(30, 39), EOS]), ([40, EOS], [50, EOS])]
    store = store_of("t/train", examples)
    batches = make(
        ([bound("t")], [store]),
        pack=False,
        batch_size=2,
        shuffle=False,
        lengths={"inputs": 16, "targets": 4},
        prompt_length=6,
        use_prompts=True,
    )
    batch = batches.batch(0)
    prompt = [VOCAB_SIZE + j for j in range(6)]
    assert batch["encoder_input_tokens"][0].tolist() == [*prompt, *range(10, 19), EOS]
    assert batch["decoder_target_tokens"].tolist() == [[30, 31, 32, EOS], [50, EOS, 0, 0]]
    assert batches.trimmed == {"t/train": {"inputs": 1, "targets": 1}}


def test_without_prompts_the_same_stream_has_none():
    plain = make(one_task(), pack=False)
    prompted = make(one_task(), pack=False, prompt_length=4, use_prompts=True)
    for (text, _), (both, _) in zip(
        segments_of(plain.batch(2)), segments_of(prompted.batch(2)), strict=True
    ):
        assert both == (*range(VOCAB_SIZE, VOCAB_SIZE + 4), *text)
    assert max(plain.batch(2)["encoder_input_tokens"].ravel()) < VOCAB_SIZE


def test_small_sets_fill_their_rows_across_epochs():
    batches = make(one_task(20), batch_size=16, lengths={"inputs": 64, "targets": 64})
    fractions = [statistics(batches.batch(s))["non_padding_fraction/encoder"] for s in range(10)]
    assert np.mean(fractions) > 0.9


@pytest.mark.parametrize("pack", [False, True])
def test_evaluation_passes_over_every_example_once_in_order(pack):
    tasks, stores = two_tasks()
    batches = EvalBatches(
        tasks, stores, batch_size=8, lengths=LENGTHS, pack=pack, vocab_size=VOCAB_SIZE
    )
    seen = [segment for batch in batches for segment in segments_of(batch)]
    expected = all_examples(stores[0]) + all_examples(stores[1])
    assert collections.Counter(seen) == collections.Counter(expected)
    assert pack or seen == expected
    assert len(batches) == batches.num_batches == (11 if not pack else batches.num_batches)
    assert batches.num_examples == 83


def test_evaluation_fills_its_last_batch_with_rows_that_weigh_nothing():
    tasks, stores = two_tasks()
    batches = EvalBatches(tasks, stores, batch_size=8, lengths=LENGTHS, vocab_size=VOCAB_SIZE)
    last = batches.batch(10)
    for name, array in last.items():
        assert array.shape[0] == 8, name
        assert array[:3].any(), name
        assert not array[3:].any(), name
    parts = [batches.batch(10, slice(0, 4)), batches.batch(10, slice(4, 8))]
    assert_same({name: np.concatenate([p[name] for p in parts]) for name in last}, last)
    with pytest.raises(IndexError, match="batch 11 of a pass of 11"):
        batches.batch(11)


def test_statistics_count_prompts_and_segments():
    store = store_of("t/train", [([5, 6, EOS], [7, EOS]), ([8, EOS], [9, 10, EOS])])
    stats = statistics(EvalBatches([bound("t")], [store], pack=True, **BY_HAND).batch(0))
    assert stats == {
        "non_padding_fraction/encoder": 9 / 12,
        "non_padding_fraction/decoder": 5 / 8,
        "non_padding_fraction/overall": 14 / 20,
        "non_padding_fraction/loss_weights": 5 / 8,
        "effective_batch_size/encoder": 2.0,
        "effective_batch_size/decoder": 2.0,
        "real_tokens/encoder": 9.0,
        "real_tokens/decoder": 5.0,
    }
    unpacked = statistics(EvalBatches([bound("t")], [store], **BY_HAND).batch(0))
    assert unpacked["effective_batch_size/encoder"] == 1.0
    assert unpacked["non_padding_fraction/encoder"] == 5 / 12


def test_a_late_batch_of_many_examples_comes_quickly():
    tasks = [bound("a")]
    rng = np.random.default_rng(0)
    examples = [([3] * length, [4, EOS]) for length in rng.integers(20, 200, 4000)]
    stores = [store_of("a/train", examples)]
    lengths = {"inputs": 1024, "targets": 64}
    prompt = {"prompt_length": 100, "use_prompts": True}
    batches = make((tasks, stores), lengths=lengths, batch_size=16, **prompt)
    start = time.process_time()
    batches.batch(200)
    # 16,000 examples are planned on the way: 0.1 s, and more with every call's types checked.
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt_length": 64, "use_prompts": True}, "counts the prompt, so set it to 64 plus"),
        ({"prompt_length": 0, "use_prompts": True}, "prompt's length is 0"),
        ({"lengths": {"inputs": 64}}, "positive lengths of 'inputs' and 'targets'"),
        ({"lengths": {"inputs": 64, "targets": 0}}, "positive lengths"),
        ({"lengths": LENGTHS | {"target": 3}}, "nothing else"),
        ({"batch_size": 0}, "BATCH_SIZE is 0"),
        ({"vocab_size": 1000}, "token 1060, but the model's embedding has only 1000 rows"),
    ],
)
def test_errors_name_the_value_and_the_mend(changes, message):
    with pytest.raises(UserError, match=message):
        make(one_task(), **changes)


def test_batches_need_neither_tensorflow_nor_jax():
    heavy = "{'tensorflow', 'seqio', 'jax'}"
    code = f"import sys, promot_t5x.data.batches; print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run.stdout + run.stderr


def all_examples(store):
    return [tuple(tuple(x.tolist()) for x in store.example(i)) for i in range(len(store))]
