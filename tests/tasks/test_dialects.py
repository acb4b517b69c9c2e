"""Dialects: sentinels in, answers out, for vocabularies that treat sentinels differently."""

import pytest
from subwords import train

from promot_t5x.errors import UserError
from promot_t5x.tasks.answers import Until, first_word, keep
from promot_t5x.tasks.dialects import (
    Dialect,
    decode,
    label_ids,
    question_ids,
    sentinel_ids,
    target_ids,
    text_ids,
    texts_ids,
)
from promot_t5x.tasks.encoding import EncodeWhole
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.shots import Assembler
from promot_t5x.tasks.templates import AS_IT_STANDS

BOTH = Dialect(kind="span_corruption", sentinel="both")
TARGETS = Dialect(kind="span_corruption", sentinel="targets")
SILENT = Dialect(kind="span_corruption", sentinel="none")
PLAIN = Dialect(kind="lm")
GOES_ON = Dialect(kind="lm", eos=False, answer_start=" ")


@pytest.fixture(scope="module")
def vocabularies(subwords, tmp_path_factory):
    import seqio

    path = train(tmp_path_factory.mktemp("beside") / "bare", 1000, ("super_glue_rte",))
    return {
        "inside": subwords,
        "beside": seqio.SentencePieceVocabulary(path, extra_ids=100),
        "bytes": seqio.ByteVocabulary(extra_ids=125),
    }


@pytest.mark.parametrize(
    ("dialect", "asked", "trained"),
    [
        (BOTH, "Q: who? A: <extra_id_0>", "<extra_id_0> me"),
        (TARGETS, "Q: who? A:", "<extra_id_0> me"),
        (SILENT, "Q: who? A:", "me"),
        (PLAIN, "Q: who? A:", "me"),
        (GOES_ON, "Q: who? A:", " me"),
        (Dialect(kind="instruction"), "Q: who? A:", "me"),
    ],
)
def test_where_the_sentinel_goes(dialect, asked, trained):
    assert (dialect.question("Q: who? A:"), dialect.target("me")) == (asked, trained)
    assert dialect.read(dialect.target("me")) == "me"


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("<extra_id_0> Paris", "Paris"),
        ("<extra_id_0> Paris <extra_id_1> is", "Paris"),
        ("Paris <extra_id_1> is", "Paris"),
        ("so <extra_id_0> Paris<extra_id_1> is <extra_id_2>", "Paris"),
        ("<extra_id_0> <extra_id_1> Paris", ""),
        ("<extra_id_0> a <extra_id_0> b", "a"),
        ("<extra_id_0>", ""),
        ("", ""),
        (" Paris\n", "Paris"),
    ],
)
def test_answers_are_read_between_the_first_two_sentinels(output, answer):
    assert BOTH.read(output) == TARGETS.read(output) == SILENT.read(output) == answer
    assert PLAIN.read(output) == output.strip()


@pytest.mark.parametrize("name", ["inside", "beside", "bytes"])
def test_sentinels_survive_as_ids_and_are_written_out_again(vocabularies, name):
    vocabulary = vocabularies[name]
    found = {number: i for i, number in sentinel_ids(vocabulary).items()}
    assert len(found) == (125 if name == "bytes" else 100)
    if name != "inside":
        assert found[0] == vocabulary.vocab_size - 1
    eos = vocabulary.eos_id
    said = [found[0], *vocabulary.encode("The man is here."), found[1], *vocabulary.encode("a")]
    text = decode(vocabulary, [*said, eos, found[2], 0, 0])
    assert text == "<extra_id_0> The man is here. <extra_id_1> a"
    assert BOTH.read(text) == "The man is here."
    plain = vocabulary.encode("The man is here.")
    assert decode(vocabulary, [*plain, eos]) == vocabulary.decode([*plain, eos])


@pytest.mark.parametrize("name", ["inside", "beside", "bytes"])
@pytest.mark.parametrize("dialect", [BOTH, TARGETS, PLAIN, GOES_ON])
def test_a_spoken_example_holds_the_sentinel_as_one_token(vocabularies, name, dialect):
    import tensorflow as tf

    vocabulary = vocabularies[name]
    asks = Assembler(
        task="t", template=AS_IT_STANDS, format=Format(), vocabulary=vocabulary, cuts=False
    )
    rows = {"fields": ["is it true."], "targets": "True", "id": "7", "label": -1}
    step = EncodeWhole(assembler=asks, dialect=dialect)
    (row,) = step(tf.data.Dataset.from_tensors(rows)).as_numpy_iterator()
    (first,) = (i for i, number in sentinel_ids(vocabulary).items() if number == 0)
    asked = [*vocabulary.encode("is it true."), *([first] if dialect is BOTH else [])]
    answer = vocabulary.encode(" True" if dialect is GOES_ON else "True")
    answered = [*([first] if dialect.marks_targets else []), *answer]
    assert label_ids(vocabulary, dialect, "True").tolist() == [*answered, vocabulary.eos_id]
    assert row["inputs"].tolist() == asked
    assert row["targets"].tolist() == answered
    assert decode(vocabulary, asked) == row["inputs_pretokenized"].decode()
    assert row["targets_pretokenized"].decode() == dialect.target("True")
    assert dialect.read(decode(vocabulary, answered)) == "True"
    assert (row["answer"], row["id"]) == (b"True", b"7")


def test_text_and_ids_agree_where_the_vocabulary_knows_sentinels_as_words(vocabularies):
    for name in ("inside", "beside"):
        vocabulary = vocabularies[name]
        (first,) = (i for i, number in sentinel_ids(vocabulary).items() if number == 0)
        assert vocabulary.encode("true. <extra_id_0>") == [*vocabulary.encode("true."), first]


@pytest.mark.parametrize("name", ["inside", "beside", "bytes"])
def test_a_sentinel_that_a_row_spells_out_stays_text(vocabularies, name):
    vocabulary, text = vocabularies[name], "fill <extra_id_0> and <extra_id_12> in"
    assert not sentinel_ids(vocabulary).keys() & set(text_ids(vocabulary, text))
    spelled = text if name == "bytes" else text.replace("<extra", "< extra")
    assert text_ids(vocabulary, text) == vocabulary.encode(spelled)
    # Of several texts, each is as by itself.
    several = ["", "größe 東京", text, " two  spaces ", text.upper()]
    assert texts_ids(vocabulary, several) == [
        vocabulary.encode(spelled if each == text else each) for each in several
    ]
    # The one that is put in is the only one.
    for ids in (question_ids(vocabulary, BOTH, text), target_ids(vocabulary, BOTH, text)):
        assert sum(int(token) in sentinel_ids(vocabulary) for token in ids) == 1


def test_a_vocabulary_without_sentinels_is_refused_with_the_mend():
    import seqio

    bare = seqio.ByteVocabulary(extra_ids=0)
    assert sentinel_ids(bare) == {}
    with pytest.raises(UserError, match="no sentinels: give the vocabulary extra_ids, or set SENT"):
        BOTH.check(bare)
    SILENT.check(bare)
    PLAIN.check(bare)
    assert decode(bare, [*bare.encode("plain"), 1, 2]) == "plain"


def test_settings_that_make_no_dialect():
    with pytest.raises(UserError, match="kind must be one of .*Did you mean 'span_corruption'"):
        Dialect(kind="span_corruptio")
    with pytest.raises(UserError, match="sentinel must be one of none, targets, both"):
        Dialect(kind="span_corruption", sentinel="inputs")
    with pytest.raises(UserError, match="kind 'lm' has no sentinels, but SENTINEL is 'both'"):
        Dialect(kind="lm", sentinel="both")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris Q: Where? A: There", "Paris"),
        (" Paris ", "Paris"),
        ("Q: Who? A: Me Q: Where?", "Q: Who? A: Me"),
        ("Q: Who?", "Q: Who?"),
        ("", ""),
    ],
)
def test_the_second_prefix_cuts(text, answer):
    assert Until("Q:")(text) == answer
    assert keep(text) == text.strip()


def test_first_word():
    assert first_word(" True, it is") == "True"
    assert first_word("") == ""
