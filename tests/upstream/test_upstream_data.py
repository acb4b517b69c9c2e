"""The batches that T5X trains on, against those of this project's engine, without T5X."""

import numpy as np
import pytest
from data_fakes import segments_of
from engine_helpers import Golden

from promot_t5x.data.assembly import Assembler, Segments
from promot_t5x.data.batch_rows import Shape
from promot_t5x.data.batches import Batches
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.data.store import open_store
from promot_t5x.errors import UserError

pytestmark = pytest.mark.slow

VOCAB_SIZE = 384
PROMPT_LENGTH = 3
ROWS = {"inputs": 20, "targets": 8}
QUIET = {"progress": lambda _: None}


@pytest.fixture(scope="module")
def seqio():
    """SeqIO; its registries are afterwards as they were."""
    import run_tasks
    import seqio

    from promot_t5x.upstream import tasks

    assert run_tasks.VOCABULARY  # it has registered its tasks
    registries = (seqio.TaskRegistry, seqio.MixtureRegistry)
    before = [dict(registry._REGISTRY) for registry in registries]
    yield seqio
    for registry, known in zip(registries, before, strict=True):
        registry._REGISTRY.clear()
        registry._REGISTRY.update(known)
    tasks._registered.clear()


@pytest.fixture(scope="module")
def upstream():
    from promot_t5x.upstream import feature_converter, tasks

    class Upstream:
        """What `gin/t5x/` does of them."""

        register = staticmethod(tasks.register)
        text_lengths = staticmethod(feature_converter.text_lengths)

        @staticmethod
        def converter(*, num_prompts=1, prompt_length=PROMPT_LENGTH, **settings):
            return feature_converter.PromptFeatureConverter(
                vocab_size=VOCAB_SIZE,
                num_prompts=num_prompts,
                prompt_length=prompt_length,
                **settings,
            )

        @classmethod
        def batches(cls, seqio, name, *, num_prompts, pack, lengths=ROWS, batch_size=8, **options):
            """As `t5x.utils.get_dataset_inner` makes them."""
            prompt_length = PROMPT_LENGTH if num_prompts else 0
            data = seqio.get_dataset(
                mixture_or_task_name=name,
                task_feature_lengths=cls.text_lengths(lengths, prompt_length),
                dataset_split="train",
                shuffle=False,
                feature_converter=cls.converter(
                    num_prompts=num_prompts, pack=pack, use_custom_packing_ops=False
                ),
                shard_info=seqio.ShardInfo(index=0, num_shards=1),
                use_cached=False,
                seed=0,
                trim_output_features=True,
                batch_size=batch_size,
                **options,
            )
            return list(data.as_numpy_iterator())

    return Upstream


@pytest.fixture(scope="module")
def vocabulary(seqio):
    return seqio.ByteVocabulary(extra_ids=125)


def concatenated(batches):
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def own_batches(tasks, stores, count, *, num_prompts, pack, lengths=ROWS):
    data = Batches(
        tasks,
        stores,
        batch_size=8,
        lengths=lengths,
        pack=pack,
        seed=0,
        shuffle=False,
        vocab_size=VOCAB_SIZE,
        prompt_length=PROMPT_LENGTH,
        use_prompts=num_prompts > 0,
    )
    return [data.batch(step) for step in range(count)]


@pytest.mark.parametrize("num_prompts", [0, 1])
def test_unpacked_batches_are_the_engines(seqio, upstream, vocabulary, num_prompts):
    tasks = resolve_tasks("run_signs", vocabulary, module="run_tasks")
    stores = [open_store(task, "train", **QUIET) for task in tasks]
    # Shorter than the texts, so that some are cut; two epochs and a batch across them.
    lengths = {"inputs": 10, "targets": 4}
    name = upstream.register("run_signs", vocabulary=vocabulary, num_prompts=num_prompts)
    made = upstream.batches(
        seqio, name, num_prompts=num_prompts, pack=False, lengths=lengths, num_epochs=2
    )
    own = own_batches(
        tasks, stores, len(made), num_prompts=num_prompts, pack=False, lengths=lengths
    )
    assert len(made) == 12
    for theirs, ours in zip(made, own, strict=True):
        assert theirs.keys() == ours.keys()
        for feature, array in ours.items():
            assert theirs[feature].dtype == array.dtype == np.int32
            np.testing.assert_array_equal(theirs[feature], array, err_msg=feature)
    if num_prompts:
        assert (concatenated(made)["encoder_input_tokens"][:, :3] == [384, 385, 386]).all()


def test_every_example_of_a_mixture_has_its_own_prompt(seqio, upstream, vocabulary):
    tasks = resolve_tasks("run_pair", vocabulary, module="run_tasks")
    name = upstream.register("run_pair", vocabulary=vocabulary, num_prompts=2)
    made = upstream.batches(seqio, name, num_prompts=2, pack=False)
    stores = [open_store(task, "train", **QUIET) for task in tasks]
    known = {
        tuple(VOCAB_SIZE + PROMPT_LENGTH * k + np.arange(3)) + tuple(store.example(i)[0]): k
        for k, store in enumerate(stores)
        for i in range(len(store))
    }
    found = [known[inputs] for batch in made for inputs, _ in segments_of(batch)]
    assert set(found) == {0, 1}
    # Without prompts, the same registered name asks plainly.
    upstream.register("run_pair", vocabulary=vocabulary)
    plain = concatenated(upstream.batches(seqio, name, num_prompts=0, pack=False))
    assert plain["encoder_input_tokens"].max() < VOCAB_SIZE


@pytest.mark.parametrize("name", ["run_signs", "run_pair"])
def test_packed_rows_are_what_the_engine_writes(seqio, upstream, vocabulary, name):
    """SeqIO decides which examples share a row; every array is then the engine's, id by id."""
    tasks = resolve_tasks(name, vocabulary, module="run_tasks")
    stores = [open_store(task, "train", **QUIET) for task in tasks]
    num_prompts = len(tasks)
    lengths = {"inputs": 40, "targets": 16}
    upstream.register(name, vocabulary=vocabulary, num_prompts=num_prompts)
    settings = {"num_prompts": num_prompts, "lengths": lengths, "batch_size": 1}
    made = concatenated(upstream.batches(seqio, name, pack=True, **settings))
    unpacked = concatenated(upstream.batches(seqio, name, pack=False, **settings))
    assembler = Assembler(
        stores=stores,
        prompt_indices=range(num_prompts),
        lengths=lengths,
        vocab_size=VOCAB_SIZE,
        prompt_length=PROMPT_LENGTH,
        use_prompts=True,
        start_id=0,
    )
    known = {}
    for k, store in enumerate(stores):
        for i in range(len(store)):
            one = Segments(*(np.array([v]) for v in (k, i, 0, 1)))
            (pair,) = segments_of(assembler.assemble(one, Shape(1, **lengths), packed=False))
            known[pair] = (k, i)
    packed_pairs = segments_of(made)
    assert sorted(packed_pairs) == sorted(segments_of(unpacked))
    rows = made["encoder_segment_ids"].max(axis=1)
    assert rows.max() > 1
    places = np.repeat(np.arange(len(rows)), rows)
    numbers = np.concatenate([np.arange(1, count + 1) for count in rows])
    owners, examples = np.array([known[pair] for pair in packed_pairs]).T
    segments = Segments(owners, examples, places, numbers)
    expected = assembler.assemble(segments, Shape(len(rows), **lengths), packed=True)
    assert made.keys() == expected.keys()
    for feature, array in expected.items():
        np.testing.assert_array_equal(made[feature], array, err_msg=feature)


def test_t5xs_own_batches(seqio, upstream, vocabulary):
    golden = Golden("t5x_promot")
    upstream.register("run_signs", vocabulary=vocabulary, num_prompts=1, module="run_tasks")
    for stage, pack in (("one", False), ("two", True)):
        converter = upstream.converter(prompt_length=4, pack=pack)
        data = seqio.get_dataset(
            "run_signs", golden.described["lengths"], converter, num_epochs=None
        )
        made = concatenated(list(data.batch(4).take(4).as_numpy_iterator()))
        expected = golden.tree(f"{stage}/batch/")
        assert made.keys() == expected.keys()
        for feature, array in expected.items():
            np.testing.assert_array_equal(made[feature], array.reshape(-1, array.shape[-1]))


def test_the_converter_is_seqios_but_for_the_prompt(seqio, upstream):
    plain = upstream.converter(num_prompts=0, pack=True)
    assert isinstance(plain, seqio.EncDecFeatureConverter)
    lengths = {"inputs": 20, "targets": 8}
    assert plain.get_model_feature_lengths(lengths) == seqio.EncDecFeatureConverter(
        pack=True
    ).get_model_feature_lengths(lengths)
    rows = upstream.converter(pack=False).get_model_feature_lengths(lengths)
    assert rows == {
        "encoder_input_tokens": 23,
        "decoder_target_tokens": 8,
        "decoder_input_tokens": 8,
        "decoder_loss_weights": 8,
    }


def test_lengths_count_the_prompt(upstream):
    assert upstream.text_lengths(None, 3) is None
    assert upstream.text_lengths(ROWS, 3) == {"inputs": 17, "targets": 8}
    assert upstream.text_lengths(ROWS, 0) == ROWS
    with pytest.raises(UserError, match="PROMPT_LENGTH = 20 leaves no room"):
        upstream.text_lengths(ROWS, 20)


def test_a_project_task_is_in_seqios_registry_with_all_its_room(seqio, upstream, vocabulary):
    name = upstream.register("cb_1shot", vocabulary=vocabulary)
    assert name == "cb_1shot"
    task = seqio.TaskRegistry.get(name)
    assert task.output_features["inputs"].vocabulary == vocabulary
    assert task.output_features["targets"].vocabulary == vocabulary
    assert task.output_features["targets"].vocabulary == vocabulary
    mixture = upstream.register(
        "rte_wmt14_enfr", vocabulary=vocabulary, num_prompts=2, rates={"rte": 3.0}
    )
    members = seqio.MixtureRegistry.get(mixture)
    assert {t.name for t in members.tasks} == {"rte", "wmt14_enfr"}
    rates = {t.name: members.get_rate(t) for t in members.tasks}
    assert rates["rte"] == pytest.approx(3 * rates["wmt14_enfr"])
    # A run asks three times, and may ask for a member by itself.
    upstream.register("rte_wmt14_enfr", vocabulary=vocabulary, num_prompts=2)
    upstream.register("rte", vocabulary=vocabulary, num_prompts=1)


def test_answers_are_decoded_with_their_sentinels(seqio, upstream, vocabulary):
    import tensorflow as tf

    from promot_t5x.tasks.dialects import Dialect

    dialect = Dialect(kind="span_corruption", sentinel="both")
    task = seqio.TaskRegistry.get(
        upstream.register("tiny_rte", vocabulary=vocabulary, dialect=dialect)
    )
    decoder = task.output_features["targets"].vocabulary
    answer = [383, *vocabulary.encode("True"), 382, *vocabulary.encode("False"), 1, 7]
    text = "<extra_id_0> True <extra_id_1> False"
    assert decoder.decode(answer) == text
    assert decoder.decode_tf(tf.constant(answer)).numpy().decode() == text
    several = decoder.decode_tf(tf.constant([answer, answer])).numpy()
    assert [each.decode() for each in several] == [text, text]
    assert task.postprocess_fn(text, example={}, is_target=False) == "True"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "run_pair", "num_prompts": 1}, "2 tasks but NUM_PROMPTS = 1"),
        ({"name": "run_sgns"}, "Did you mean 'run_signs'"),
        ({"name": "run_other_vocabulary"}, "tokenizes 'inputs' with ByteVocabulary"),
    ],
)
def test_what_is_refused(upstream, vocabulary, settings, message):
    with pytest.raises(UserError, match=message):
        upstream.register(**settings, vocabulary=vocabulary, module="run_tasks")


def test_a_users_task_under_the_name_of_one_of_ours_is_refused(seqio, upstream, vocabulary):
    seqio.TaskRegistry.remove("snli")
    seqio.TaskRegistry.add_provider("snli", seqio.TaskRegistry.get("run_signs"))
    try:
        with pytest.raises(UserError, match="give yours another name"):
            upstream.register("snli", vocabulary=vocabulary)
    finally:
        seqio.TaskRegistry.remove("snli")
