"""Vocabularies of other makes: what is read, and what is refused before anything is written."""

import json
import sys
from pathlib import Path

import pytest
import tokenizers

from promot_t5x.data import lazy, vocabularies
from promot_t5x.data.fingerprint import vocabulary_identity
from promot_t5x.errors import UserError
from promot_t5x.tasks import dialects

TEXTS = ["the cat sat on the mat", "a dog ran over the hill", "x < y and {z}", "größe ½ 東京"]
SENTINELS = [f"<extra_id_{n}>" for n in range(5)]


@pytest.fixture(scope="module")
def train_pieces(tmp_path_factory):
    import sentencepiece

    def train(name, **ids):
        prefix = tmp_path_factory.mktemp("spm") / name
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 20),
            model_prefix=str(prefix),
            vocab_size=60,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"bos_id": -1, **ids},
        )
        return f"{prefix}.model"

    return train


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"pad_id": 0, "eos_id": -1, "unk_id": 1}, "no end-of-text token (its eos_id is -1)"),
        ({"pad_id": -1, "eos_id": 1, "unk_id": 0}, "has '<unk>' at id 0"),
        ({"pad_id": 3, "eos_id": 1, "unk_id": 0}, "has '<unk>' at id 0"),
        ({"pad_id": 0, "eos_id": 1, "unk_id": 2}, None),
        ({"pad_id": 0, "eos_id": 3, "unk_id": 1, "bos_id": 2}, None),
    ],
)
def test_a_sentencepiece_model_that_cannot_work_is_refused(train_pieces, ids, said):
    vocabulary = vocabularies.sentencepiece(train_pieces("model", **ids))
    if said is None:
        vocabularies.check(vocabulary)
        vocabularies.check_padding(vocabulary)
        return
    with pytest.raises(UserError) as caught:
        vocabularies.check(vocabulary)
        vocabularies.check_padding(vocabulary)
    assert said in str(caught.value)
    assert "model.model" in str(caught.value)


def test_the_vocabularies_of_the_project_are_accepted():
    for vocabulary in (vocabularies.byte_level(), vocabularies.tiny_world()):
        vocabularies.check(vocabulary)
        vocabularies.check_padding(vocabulary)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(UserError, match="absent.model"):
        vocabularies.check(vocabularies.sentencepiece("absent.model"))
    with pytest.raises(UserError, match="absent.json cannot be read"):
        vocabularies.tokenizer_json("absent.json")


# ------------------------------------------------------------------------- tokenizer.json


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE like CodeT5's, its special tokens in a given order."""

    def train(name, first=("<pad>", "<s>", "</s>", "<unk>"), truncate=None):
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=list(first),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(TEXTS * 20, trainer)
        # As T5's: the first sentinel has the last id.
        tokenizer.add_special_tokens(SENTINELS[::-1])
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        ) if "<s>" in first and "</s>" in first else tokenizer.post_processor  # fmt: skip
        if truncate:
            tokenizer.enable_truncation(truncate)
            tokenizer.enable_padding(length=truncate)
        path = tmp_path_factory.mktemp("json") / name
        tokenizer.save(str(path))
        return str(path)

    return train


def test_a_tokenizer_json_encodes_as_the_library_does_and_without_its_extras(tokenizer_file):
    import tensorflow as tf

    path = tokenizer_file("tokenizer.json", truncate=3)
    vocabulary = vocabularies.tokenizer_json(path)
    vocabularies.check(vocabulary)
    library = tokenizers.Tokenizer.from_file(path)
    library.no_truncation()
    library.no_padding()
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 2, 3)
    assert vocabulary.vocab_size == library.get_vocab_size()
    for text in [*TEXTS, "", "  two  spaces\nand lines", "unseen ☃ and 中"]:
        ids = vocabulary.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
        assert vocabulary.decode([*ids, 2, 0, 5]) == text
        assert vocabulary.decode_tf(tf.constant([[*ids, 2, 0]])).numpy() == [text.encode()]


def test_special_tokens_in_text_are_text_and_sentinels_are_ids(tokenizer_file):
    vocabulary = vocabularies.tokenizer_json(tokenizer_file("tokenizer.json"))
    assert not {0, 1, 2, 3} & set(vocabulary.encode("a </s> b <pad> <extra_id_0>"))
    last = vocabulary.vocab_size - 1
    assert dialects.sentinel_ids(vocabulary) == {last - n: n for n in range(5)}
    dialect = dialects.Dialect(kind="span_corruption", sentinel="both")
    ids = dialects.target_ids(vocabulary, dialect, "the cat").tolist()
    assert (ids[0], ids[-1]) == (last, 2)
    assert dialect.read(dialects.decode(vocabulary, ids)) == "the cat"


def test_two_of_one_content_are_one_vocabulary(tokenizer_file, tmp_path):
    path = tokenizer_file("tokenizer.json")
    copy = tmp_path / "copy.json"
    copy.write_text(json.dumps(json.loads(Path(path).read_text()), ensure_ascii=False))
    one, again = (vocabularies.tokenizer_json(path) for _ in range(2))
    assert one == again
    assert hash(one) == hash(again)
    assert vocabulary_identity(one) == vocabulary_identity(again)
    other = vocabularies.tokenizer_json(path, eos_token="<s>")
    assert other != one
    assert vocabulary_identity(other) != vocabulary_identity(one)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (("<pad>", "<s>", "<unk>"), "has no token </s>, <eos>"),
        ((), "has no token </s>"),
    ],
)
def test_a_tokenizer_without_an_end_is_refused(tokenizer_file, first, said):
    with pytest.raises(UserError) as caught:
        vocabularies.tokenizer_json(tokenizer_file("tokenizer.json", first))
    assert said in str(caught.value)


def test_an_ordinary_piece_at_0_is_text_and_refused_where_it_fills_rows(tokenizer_file, tmp_path):
    content = json.loads(Path(tokenizer_file("tokenizer.json")).read_text())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] != "<pad>"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    vocabulary = vocabularies.tokenizer_json(str(path))
    with pytest.raises(UserError, match="has '<pad>' at id 0"):
        vocabularies.check_padding(vocabulary)
    vocabularies.check(vocabulary)
    assert vocabulary.decode([*vocabulary.encode("a"), 0]) == "a<pad>"


def test_what_is_no_tokenizer_and_a_package_that_is_missing(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": 1}')
    with pytest.raises(UserError, match="is no tokenizer.json"):
        vocabularies.tokenizer_json(str(path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="needs the package `tokenizers`"):
        vocabularies.tokenizer_json(str(path))


def test_a_task_is_refused_with_such_a_vocabulary_before_anything_is_read(train_pieces):
    from promot_t5x.data.sources import resolve_tasks

    path = train_pieces("noend", pad_id=0, eos_id=-1, unk_id=1)
    vocabulary = lazy.import_seqio().SentencePieceVocabulary(path)
    with pytest.raises(UserError, match="no end-of-text token"):
        resolve_tasks("rte", vocabulary)
