"""Real rows through SeqIO: how full packed rows are, and that arrays equal SeqIO's own."""

import collections

import numpy as np
import pytest
from data_fakes import segments_of

from promot_t5x.data.batches import Batches, EvalBatches, statistics
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.data.store import open_store

VOCAB_SIZE = 4096
PROMPT = {"vocab_size": VOCAB_SIZE, "prompt_length": 100, "use_prompts": True}


@pytest.fixture(scope="module")
def rte(vocabulary):
    tasks = resolve_tasks("rte", vocabulary, split="train")
    return tasks, [open_store(tasks[0], "train", text_lengths={"inputs": 412, "targets": 8})]


@pytest.fixture(scope="module")
def seqio_rte(vocabulary):
    """RTE as a task of SeqIO's registry, which is trimmed from the right."""
    import seqio

    def written(dataset):
        return dataset.map(
            lambda row: {
                "inputs": tf.strings.join([row["premise"], " question: ", row["hypothesis"]]),
                "targets": tf.gather(["True", "False"], row["label"]),
            }
        )

    import tensorflow as tf

    feature = seqio.Feature(vocabulary=vocabulary)
    seqio.TaskRegistry.add(
        "seqio_rte",
        source=seqio.TfdsDataSource("super_glue/rte:1.0.2", splits=["train", "validation"]),
        preprocessors=[
            written,
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={"inputs": feature, "targets": feature},
    )
    tasks = resolve_tasks("seqio_rte", vocabulary, split="train")
    yield tasks, [open_store(tasks[0], "train")]
    seqio.TaskRegistry.remove("seqio_rte")


def test_packed_rows_of_prompted_rte_are_nearly_full(rte):
    settings = dict(batch_size=4, seed=0, **PROMPT)
    packed = Batches(*rte, lengths={"inputs": 1024, "targets": 32}, pack=True, **settings)
    unpacked = Batches(*rte, lengths={"inputs": 512, "targets": 8}, pack=False, **settings)
    means = {}
    for name, batches in (("packed", packed), ("unpacked", unpacked)):
        assert batches.trimmed == {"rte/train": {"inputs": 0, "targets": 0}}
        every = [statistics(batches.batch(step)) for step in range(50)]
        means[name] = {key: np.mean([stats[key] for stats in every]) for key in every[0]}
        print(name, {key: round(float(value), 3) for key, value in means[name].items()})
    assert means["packed"]["non_padding_fraction/encoder"] >= 0.90
    assert means["unpacked"]["non_padding_fraction/encoder"] <= 0.45


def test_packing_loses_no_real_row(rte):
    tasks, stores = rte
    settings = dict(batch_size=8, lengths={"inputs": 1024, "targets": 32}, seed=3, **PROMPT)
    packed = Batches(tasks, stores, pack=True, **settings)
    prompt = tuple(range(VOCAB_SIZE, VOCAB_SIZE + 100))
    examples = [tuple(map(tuple, map(np.ndarray.tolist, stores[0].example(i)))) for i in range(100)]
    expected = collections.Counter((prompt + inputs, targets) for inputs, targets in examples)
    seen, step = [], 0
    while len(seen) < 500:
        seen += segments_of(packed.batch(step))
        step += 1
    # Rows are shuffled within windows of whole epochs: of the first 500 examples, each stands
    # there about five times.
    assert set(seen) == set(expected)


def test_unpacked_batches_equal_those_of_seqio(seqio_rte):
    import seqio

    tasks, stores = seqio_rte
    # Tight lengths, so that some rows are trimmed: SeqIO trims before it adds the EOS.
    lengths = {"inputs": 96, "targets": 8}
    ours = EvalBatches(tasks, stores, batch_size=10, lengths=lengths, vocab_size=VOCAB_SIZE)
    assert ours.trimmed["seqio_rte/train"]["inputs"] > 5
    dataset = seqio.EncDecFeatureConverter(pack=False)(
        tasks[0].task.get_dataset(lengths, split="train", shuffle=False), lengths
    )
    theirs = list(dataset.batch(10).as_numpy_iterator())
    assert len(theirs) == ours.num_batches == 10
    for got, expected in zip(ours, theirs, strict=True):
        assert got.keys() == expected.keys()
        for name in got:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


def test_a_packed_row_equals_that_of_seqio(rte):
    import seqio
    import tensorflow as tf

    tasks, stores = rte
    lengths = {"inputs": 1024, "targets": 32}
    ours = Batches(
        tasks, stores, batch_size=4, lengths=lengths, pack=True, seed=0, vocab_size=VOCAB_SIZE
    ).batch(0)
    for row in range(4):
        one = {name: array[row : row + 1] for name, array in ours.items()}
        examples = segments_of(one)
        ragged = {
            name: tf.ragged.constant([list(example[side]) for example in examples], tf.int32)
            for side, name in enumerate(("inputs", "targets"))
        }
        dataset = tf.data.Dataset.from_tensor_slices(ragged)
        (theirs,) = seqio.EncDecFeatureConverter(pack=True)(dataset, lengths).as_numpy_iterator()
        assert theirs.keys() == one.keys()
        for name, array in theirs.items():
            np.testing.assert_array_equal(one[name][0], array, err_msg=name)


def test_a_vocabulary_from_another_path_is_the_same_vocabulary(vocabulary, tmp_path, rte):
    import seqio

    copy = tmp_path / "renamed.model"
    with open(vocabulary.sentencepiece_model_file, "rb") as model:
        copy.write_bytes(model.read())
    feature = seqio.Feature(vocabulary=seqio.SentencePieceVocabulary(str(copy)))
    task = rte[0][0].task.replace(
        name="rte_copy", output_features={"inputs": feature, "targets": feature}
    )
    seqio.TaskRegistry.add_provider("rte_copy", task)
    assert resolve_tasks("rte_copy", vocabulary)[0].name == "rte_copy"
