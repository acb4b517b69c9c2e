"""Vocabularies by name, for gin files.

SeqIO, and TensorFlow with it, is imported when a vocabulary is made: a configuration can name
one and be read, checked and planned without them.
"""

from typing import Any

from promot_t5x.data import lazy
from promot_t5x.errors import UserError
from promot_t5x.paths import is_remote, user_path

_BINDING = "vocabularies.sentencepiece.path"


def sentencepiece(path: str, extra_ids: int = 0) -> Any:
    """Return a `seqio.SentencePieceVocabulary` whose file has been read.

    **Arguments:**

    - `path`: the `.model` file, local or `gs://`.
    - `extra_ids`: sentinels to add; T5's `…100extra` models hold theirs already.

    **Raises** `UserError` where the file does not exist, is out of reach or is no such model.
    """
    place = user_path(path, _BINDING)
    if not is_remote(place) and not place.is_file():
        raise UserError(f"{_BINDING} = {path!r}: there is no such file. {_advice(path)}")
    vocabulary = lazy.import_seqio().SentencePieceVocabulary(str(place), extra_ids)
    try:
        len(vocabulary.tokenizer)
    # TensorFlow and SentencePiece raise errors of many kinds, and a damaged file any of them.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{_BINDING} = {path!r} cannot be read: {reason}. {_advice(path)}"
        ) from error
    return vocabulary


def _advice(path: str) -> str:
    """Return what helps where a vocabulary cannot be read."""
    bucket = path.startswith("gs://")
    source = path.replace("gs://", "https://storage.googleapis.com/", 1) if bucket else ""
    fetch = f"Fetch it where there is a network (curl -O {source}), and name" if bucket else "Name"
    return (
        f"{fetch} the copy: --gin_bindings='{_BINDING} = \"/data/sentencepiece.model\"'. To try a "
        "model from random weights without any file, name models/byte_vocabulary.gin after the "
        "model's file."
    )


def tiny_world() -> Any:
    """Return the demonstration's `tasks.tiny.vocabulary.WordVocabulary`: 416 words."""
    lazy.import_seqio()
    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    return WordVocabulary()


def byte_level(extra_ids: int = 125) -> Any:
    """Return a `seqio.ByteVocabulary`: 3 special ids, 256 bytes, then the sentinels.

    **Arguments:**

    - `extra_ids`: number of sentinels; ByT5 has 125.
    """
    return lazy.import_seqio().ByteVocabulary(extra_ids)
