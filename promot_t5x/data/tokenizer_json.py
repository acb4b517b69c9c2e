"""A Hugging Face `tokenizer.json` as a `seqio.Vocabulary`.

Import it when a vocabulary is made, and not before: it imports SeqIO and TensorFlow.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from promot_t5x.errors import UserError

_END_NAMES = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "[SEP]")
_BEGIN_NAMES = ("<bos>", "<s>", "<|begin_of_text|>")
_UNKNOWN_NAMES = ("<unk>", "[UNK]")


class TokenizerJsonVocabulary(seqio.Vocabulary):  # type: ignore[misc]
    """The ids of a `tokenizer.json`, one path for Python and for `tf.data`.

    Text stands for itself: a row that spells a special token out does not get its id. Sentinels
    `<extra_id_0>` and on are those of the file.
    """

    def __init__(self, path: str, eos_token: str | None = None):
        """Read the file.

        **Arguments:**

        - `path`: of the `tokenizer.json`, local or remote.
        - `eos_token`: ends a text; by default `</s>` or another usual name that the file has.

        **Raises:** `UserError` where the file cannot be read, or has no end-of-text token.
        """
        super().__init__()
        self._path = path
        self._content = _read(path)
        self._tokenizer = _loaded(path, self._content)
        self._eos_id = self._id_of((eos_token,) if eos_token else _END_NAMES)
        if self._eos_id is None:
            looked_for = repr(eos_token) if eos_token else ", ".join(_END_NAMES)
            raise UserError(
                f"The tokenizer {path} has no token {looked_for} to end a text with: name the one "
                "that it has as vocabularies.tokenizer_json.eos_token."
            )
        self._unk_id = self._id_of(_UNKNOWN_NAMES)

    def _id_of(self, names: Iterable[str | None]) -> int | None:
        found = (self._tokenizer.token_to_id(name) for name in names)
        return next((i for i in found if i is not None), None)

    @property
    def bos_id(self) -> int | None:
        """Return the id that begins a text; None where the file has no usual name for one."""
        return self._id_of(_BEGIN_NAMES)

    @property
    def eos_id(self) -> int:
        """Return the id that ends a text."""
        assert self._eos_id is not None  # checked when it was made
        return self._eos_id

    @property
    def unk_id(self) -> int | None:
        """Return the id of unknown text; None where the tokenizer can write everything."""
        return self._unk_id

    @property
    def _base_vocab_size(self) -> int:
        # Ids may have gaps, and the embedding needs a row up to the largest.
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1  # type: ignore[no-any-return]

    @property
    def sp_model(self) -> bytes:
        """Return the file's content, by which vocabularies are told apart."""
        return self._content.encode()

    @property
    def tokenizer(self) -> "_Pieces":
        """Return what SentencePiece's processor is to other vocabularies: ids of pieces."""
        return _Pieces(self._tokenizer, -1 if self._unk_id is None else self._unk_id)

    def id_to_piece(self, token: int) -> str | None:
        """Return the piece of an id."""
        piece: str | None = self._tokenizer.id_to_token(token)
        return piece

    def is_special(self, token: int) -> bool:
        """Return whether no text has this id."""
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        return added is not None and added.special

    def _encode(self, s: str) -> Sequence[int]:
        return self._tokenizer.encode(s, add_special_tokens=False).ids  # type: ignore[no-any-return]

    def _decode(self, ids: Sequence[int]) -> str:
        # Id 0 is the padding's only where no text has it.
        unwritten = (self.eos_id, *([self.pad_id] if self.is_special(self.pad_id) else []))
        return self._tokenizer.decode(  # type: ignore[no-any-return]
            [i for i in ids if i not in unwritten], skip_special_tokens=False
        )

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: Any) -> np.ndarray:
            # Bytes, or outside of `tf.data` an array without axes that holds them.
            raw: bytes = text if isinstance(text, bytes) else text.item()
            return np.array(self._encode(raw.decode("utf-8", "replace")), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        def decode(rows: np.ndarray) -> np.ndarray:
            texts = [self._decode(row.tolist()) for row in rows.reshape(-1, rows.shape[-1])]
            made = np.array([text.encode("utf-8") for text in texts], object)
            return made.reshape(rows.shape[:-1])

        texts = tf.numpy_function(decode, [ids], tf.string, stateful=False)
        texts.set_shape(ids.shape[:-1])
        return texts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerJsonVocabulary) and (self._content, self._eos_id) == (
            other._content,
            other._eos_id,
        )

    def __hash__(self) -> int:
        return hash((self._content, self._eos_id))

    def __str__(self) -> str:
        return f"TokenizerJsonVocabulary(path={self._path}, size={self.vocab_size})"


class _Pieces:
    """Ids of pieces, by the names that SentencePiece has for these questions."""

    def __init__(self, tokenizer: Any, unknown: int):
        self._tokenizer, self._unknown = tokenizer, unknown

    def PieceToId(self, piece: str) -> int:  # noqa: N802
        """Return the id of a piece, or that of unknown text."""
        found: int | None = self._tokenizer.token_to_id(piece)
        return self._unknown if found is None else found

    def unk_id(self) -> int:
        """Return the id of unknown text, -1 without one."""
        return self._unknown


def _read(path: str) -> str:
    try:
        return epath.Path(path).read_text("utf-8")  # type: ignore[no-any-return]
    # Local and remote file systems fail in their own ways.
    except Exception as error:
        raise UserError(f"The tokenizer {path} cannot be read: {error}") from error


def _loaded(path: str, content: str) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(
            f"Reading the tokenizer {path} needs the package `tokenizers`: install it with "
            "`pip install tokenizers`."
        ) from error
    try:
        tokenizer = Tokenizer.from_str(content)
    # The library raises plain exceptions for whatever it cannot parse.
    except Exception as error:
        raise UserError(f"{path} is no tokenizer.json: {error}") from error
    # Lengths are the run's affair, and special tokens in a row's text are text.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer
