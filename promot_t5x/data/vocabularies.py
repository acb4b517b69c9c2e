"""Vocabularies by name, for gin files.

SeqIO, and TensorFlow with it, is imported when a vocabulary is made: a configuration can name
one and be read, checked and planned without them.
"""

from typing import Any

from promot_t5x.data import lazy


def sentencepiece(path: str, extra_ids: int = 0) -> Any:
    """A `seqio.SentencePieceVocabulary`.

    Args:
        path: the `.model` file, local or `gs://`.
        extra_ids: sentinels to add; T5's `…100extra` models hold theirs already.

    """
    return lazy.import_seqio().SentencePieceVocabulary(path, extra_ids)


def tiny_world() -> Any:
    """The demonstration's `tasks.tiny.vocabulary.WordVocabulary`: 416 words."""
    lazy.import_seqio()
    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    return WordVocabulary()


def byte_level(extra_ids: int = 125) -> Any:
    """A `seqio.ByteVocabulary`: 3 special ids, 256 bytes, then the sentinels (ByT5 has 125).

    Args:
        extra_ids: number of sentinels.

    """
    return lazy.import_seqio().ByteVocabulary(extra_ids)
