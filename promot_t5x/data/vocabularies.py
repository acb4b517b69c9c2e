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

    Args:
        path: the `.model` file, local or `gs://`.
        extra_ids: sentinels to add; T5's `…100extra` models hold theirs already.

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


def tokenizer_json(path: str, eos_token: str | None = None) -> Any:
    """Read a Hugging Face `tokenizer.json` as a `seqio.Vocabulary`; needs `pip install tokenizers`.

    Args:
        path: the file, local or remote.
        eos_token: the token that ends a text; by default `</s>` or another usual name.

    """
    lazy.import_seqio()
    from promot_t5x.data.tokenizer_json import TokenizerJsonVocabulary

    return TokenizerJsonVocabulary(path, eos_token)


def check(vocabulary: Any) -> None:
    """Raise `UserError` for a vocabulary that no model here can be trained or asked with.

    Args:
        vocabulary: a `seqio.Vocabulary`; texts end in its EOS.

    """
    name = _described(vocabulary)
    try:
        eos, size = vocabulary.eos_id, vocabulary.vocab_size
    except UserError:
        raise
    # Files that are not there, or not what their name says, show when they are first read.
    except Exception as error:
        raise UserError(f"The vocabulary {name} cannot be read: {error}") from error
    if eos is None or not 0 < eos < size:
        raise UserError(
            f"The vocabulary {name} has no end-of-text token (its eos_id is {eos}): training "
            "targets would not end, and answers never would. Train it again with one "
            "(SentencePiece: --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1)."
        )


def check_padding(vocabulary: Any) -> None:
    """Raise `UserError` for a vocabulary that no encoder-decoder can be trained or asked with.

    Its rows are filled up with id 0: an ordinary piece of that id would not be seen at their end.

    Args:
        vocabulary: a `seqio.Vocabulary`.

    """
    if (piece := _ordinary_piece_at_0(vocabulary)) is not None:
        raise UserError(
            f"The vocabulary {_described(vocabulary)} has {piece!r} at id 0, which the rows of "
            "an encoder-decoder are filled up with. Id 0 must be the padding: train it again with "
            "one (SentencePiece: --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1)."
        )


def _ordinary_piece_at_0(vocabulary: Any) -> str | None:
    """Return the piece of id 0 where text can have that id; None where it cannot."""
    if hasattr(vocabulary, "is_special"):
        return None if vocabulary.is_special(0) else str(vocabulary.id_to_piece(0))
    tokenizer = getattr(vocabulary, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "is_control"):
        return None
    if tokenizer.is_control(0) or tokenizer.is_unused(0):
        return None
    return str(tokenizer.id_to_piece(0))


def _described(vocabulary: Any) -> str:
    file = getattr(vocabulary, "sentencepiece_model_file", None)
    return str(file or vocabulary)


def tiny_world() -> Any:
    """Return the demonstration's `tasks.tiny.vocabulary.WordVocabulary`: 416 words."""
    lazy.import_seqio()
    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    return WordVocabulary()


def byte_level(extra_ids: int = 125) -> Any:
    """Return a `seqio.ByteVocabulary`: 3 special ids, 256 bytes, then sentinels (ByT5 has 125).

    Args:
        extra_ids: number of sentinels.

    """
    return lazy.import_seqio().ByteVocabulary(extra_ids)
