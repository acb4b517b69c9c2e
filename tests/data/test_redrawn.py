"""Demonstrations in training: of each (task, seed, example, epoch), packed and resumable."""

import hashlib
import json

import numpy as np
import pytest

from promot_t5x.data import store as store_module
from promot_t5x.data.batches import Batches
from promot_t5x.data.example_store import ExampleStore
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.store import open_store
from promot_t5x.data.tokenization import Pipeline
from promot_t5x.tasks.shots import draw

ROWS = 40
LENGTHS = {"inputs": 60, "targets": 12}


@pytest.fixture(scope="module")
def definition(tmp_path_factory):
    from promot_t5x.tasks import jsonl, registry, text_task

    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    rows = [{"q": f"what is {n} plus {n}?", "a": str(2 * n)} for n in range(ROWS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    registry.register(
        text_task(name="sums_redrawn", source=jsonl(file), inputs="{q} answer:", target="{a}")
    )
    yield registry.get_task
    del registry._DEFINITIONS["sums_redrawn"]


@pytest.fixture
def encoded(monkeypatch):
    """How many examples have been tokenized."""
    counted = [0]
    original = Pipeline.encoded

    def counting(self, rows, epochs=None):
        counted[0] += len(rows["id"])
        return original(self, rows, epochs)

    monkeypatch.setattr(Pipeline, "encoded", counting)
    return counted


def bound(definition, name="sums_redrawn_1shot"):
    import seqio

    found = definition(name)
    task = found.build(seqio.ByteVocabulary())
    return BoundTask(name=name, task=task, splits=("train",), definition=found)


def opened(task, cache_dir=None, seed=3):
    return open_store(
        task, "train", cache_dir=cache_dir, text_lengths=LENGTHS | {"inputs": 100}, shot_seed=seed
    )


def batches(tasks, stores, pack, seed=3):
    return Batches(
        tasks,
        stores,
        batch_size=8,
        lengths={"inputs": 160, "targets": 12},
        pack=pack,
        seed=seed,
        vocab_size=384,
    )


def digest(batch):
    content = hashlib.sha256()
    for name, array in sorted(batch.items()):
        content.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def texts(store, numbers):
    made = store.texts(np.asarray(numbers))["inputs"]
    ends = np.cumsum(made.lengths)
    parts = [made.tokens[end - size : end] for end, size in zip(ends, made.lengths, strict=True)]
    return [bytes((part[:-1] - 3).tolist()).decode() for part in parts]


@pytest.mark.parametrize("most", [ROWS, 10])
def test_an_example_shows_what_its_seed_and_epoch_draw(definition, monkeypatch, most):
    monkeypatch.setattr(store_module, "_MOST_ROWS", most)
    monkeypatch.setattr(store_module, "_SAMPLE", 20)
    task = bound(definition)
    pool = task.task.preprocessors[-2].assembler.pool.rows()
    assert len(pool) == ROWS
    shown = set()
    for seed in (3, 4):
        store = opened(task, seed=seed)
        assert len(store) == ROWS
        assert store.is_redrawn
        for epoch in (0, 1, 50):
            for place, text in zip(
                (0, 39), texts(store, [epoch * 40, epoch * 40 + 39]), strict=True
            ):
                query = pool[place]
                (row,) = draw(pool, query, 1, task="sums_redrawn", seed=0, epoch=(seed, epoch))
                asked = f"{query.fields['q']} answer:"
                assert text == f"{row.fields['q']} answer: {row.answer}\n\n{asked}"
                shown.add((place, row.id))
    assert len(shown) > 8


def test_evaluation_and_tasks_without_demonstrations_are_as_they_were(definition):
    task, plain = bound(definition), bound(definition, "sums_redrawn")
    still = opened(task, seed=None)
    assert isinstance(still, ExampleStore)
    assert not still.is_redrawn
    pool = task.task.preprocessors[-2].assembler.pool.rows()
    (row,) = draw(pool, pool[5], 1, task="sums_redrawn", seed=0)
    assert texts(still, [5])[0].startswith(row.fields["q"])
    assert opened(plain).content_hash == opened(plain, seed=None).content_hash


@pytest.mark.parametrize("pack", [False, True])
def test_a_run_that_resumes_has_the_same_batches_and_tokenizes_little(
    definition, encoded, tmp_path, pack
):
    task = bound(definition)
    walked = batches([task], [opened(task, tmp_path)], pack)
    expected = [digest(walked.batch(step)) for step in range(60)]
    assert len(set(expected)) == 60
    encoded[0] = 0
    resumed = batches([task], [opened(task, tmp_path)], pack)
    assert digest(resumed.batch(59)) == expected[59]
    # One or, packed, up to three examples a row: nothing before the batch is tokenized again.
    assert encoded[0] <= 8 * (3 if pack else 1)
    afresh = batches([task], [opened(task)], pack)
    assert [digest(afresh.batch(step)) for step in (59, 7)] == [expected[59], expected[7]]
    whole = afresh.batch(59)
    for name, half in afresh.batch(59, slice(4, 8)).items():
        np.testing.assert_array_equal(half, whole[name][4:8])


def test_every_epoch_has_each_example_once_in_mixtures_too(definition):
    tasks = [bound(definition), bound(definition, "sums_redrawn")]
    data = batches(tasks, [opened(task) for task in tasks], pack=False)
    seen = [data.examples(step) for step in range(12)]
    for task in (0, 1):
        places = [place for batch in seen for number, place in batch if number == task]
        assert sorted(places[:ROWS]) == list(range(ROWS))
    assert data.contents["sums_redrawn_1shot/train"]["examples"] == ROWS


def test_the_content_hash_is_of_rows_and_seed(definition, tmp_path):
    task = bound(definition)
    made = opened(task, tmp_path).content_hash
    assert opened(task, tmp_path).content_hash == opened(task).content_hash == made
    assert opened(task, seed=4).content_hash != made
