"""How a model wants to be asked and where it puts its answer: a property of the model.

A model pretrained by span corruption alone (T5 1.0, T5 1.1, mT5) fills in what stands at a
sentinel: it answers between `<extra_id_0>` and `<extra_id_1>`, asked to or not. A model that
was trained on to continue text, or on instructions, answers plainly. One task definition serves
all of them; demonstrations are plain text in every dialect, only the query's own answer has a
sentinel.

Sentinels are put in and read as token ids. Text is no way to do it: a `ByteVocabulary` spells
`<extra_id_0>` as twelve bytes, and decodes sentinels to nothing.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from promot_t5x.errors import UserError, did_you_mean

KINDS = ("span_corruption", "lm", "instruction")
SENTINELS = ("none", "targets", "both")
FIRST = "<extra_id_0>"
_SPELLED = "<extra_id_"
_SENTINEL = re.compile(r"<extra_id_\d+>")
# T5's vocabularies have 100, ByT5's 125.
_MOST_SENTINELS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dialect:
    """A model's way to be asked.

    **Attributes:**

    - `kind`: 'span_corruption' (answers are read between `<extra_id_0>` and `<extra_id_1>`), 'lm'
      (LM-adapted) or 'instruction' (tuned on instructions); the latter two are asked as the
      template stands and answer as they stand.
    - `sentinel`: where `<extra_id_0>` goes: 'none'; 'targets', in front of the answer; 'both',
      also at the end of the question. Only for span corruption.
    - `bos`: the question begins with the vocabulary's BOS, behind a prompt (T5Gemma).
    - `eos`: the question ends in EOS, as T5's do.
    - `answer_start`: what parts the answer from its question where both are one sequence, such as
      the space that demonstrations have there.
    """

    kind: str = "lm"
    sentinel: str = "none"
    bos: bool = False
    eos: bool = True
    answer_start: str = ""

    def __post_init__(self) -> None:
        for name, known in (("kind", KINDS), ("sentinel", SENTINELS)):
            value = getattr(self, name)
            if value not in known:
                raise UserError(
                    f"the dialect's {name} must be one of {', '.join(known)}, got {value!r}."
                    + did_you_mean(value, known)
                )
        if self.kind != "span_corruption" and self.sentinel != "none":
            raise UserError(
                f"a dialect of kind {self.kind!r} has no sentinels, but SENTINEL is "
                f"{self.sentinel!r}: set SENTINEL = 'none' or DIALECT = 'span_corruption'."
            )

    @property
    def marks_inputs(self) -> bool:
        """Whether the question ends in `<extra_id_0>`."""
        return self.sentinel == "both"

    @property
    def marks_targets(self) -> bool:
        """Whether the answer that is trained begins with `<extra_id_0>`."""
        return self.sentinel in ("targets", "both")

    def question(self, text: str) -> str:
        """`text` as the model is asked it."""
        return f"{text} {FIRST}" if self.marks_inputs else text

    def target(self, answer: str) -> str:
        """`answer` as the model is trained to give it."""
        return f"{FIRST} {answer}" if self.marks_targets else f"{self.answer_start}{answer}"

    def read(self, output: str) -> str:
        """Return the answer within what the model said, as `decode` writes that down."""
        if self.kind == "span_corruption":
            output = output.split(FIRST, 1)[-1]
            output = _SENTINEL.split(output, maxsplit=1)[0]
        return output.strip()

    def check(self, vocabulary: Any) -> None:
        """Raise `UserError` unless `vocabulary` has the tokens that the dialect puts in."""
        if self.bos:
            bos_id(vocabulary)
        if self.sentinel != "none" and 0 not in sentinel_ids(vocabulary).values():
            raise UserError(
                f"The model's dialect puts {FIRST} into its text (SENTINEL = {self.sentinel!r}), "
                f"but its vocabulary {type(vocabulary).__name__} of {vocabulary.vocab_size} ids "
                "has no sentinels: give the vocabulary extra_ids, or set SENTINEL = 'none'."
            )


PLAIN = Dialect()


def bos_id(vocabulary: Any) -> int:
    """Return the id of a vocabulary's beginning-of-text token; raise `UserError` without one."""
    found: int | None = vocabulary.bos_id
    if found is None or found < 0:
        raise UserError(
            f"The model begins its text with BOS, and the vocabulary {type(vocabulary).__name__} "
            "has none: give the model's own VOCABULARY, or set BOS_IN_INPUTS = False and, of an "
            "encoder-decoder, DECODER_START = 'pad'."
        )
    return found


def sentinel_ids(vocabulary: Any) -> dict[int, int]:
    """Token id -> number of the sentinel that it is; empty for a vocabulary without any."""
    if vocabulary.extra_ids:
        last = vocabulary.vocab_size - 1
        return {last - number: number for number in range(vocabulary.extra_ids)}
    tokenizer = getattr(vocabulary, "tokenizer", None)
    if tokenizer is None or not hasattr(tokenizer, "PieceToId"):
        return {}
    # T5's and mT5's published models hold their sentinels as pieces of their own.
    found = {}
    for number in range(_MOST_SENTINELS):
        ids = (tokenizer.PieceToId(f"{lead}<extra_id_{number}>") for lead in ("▁", ""))
        known = [i for i in ids if i != tokenizer.unk_id()]
        if not known:
            break
        found[known[0]] = number
    return found


def text_ids(vocabulary: Any, text: str) -> Sequence[int]:
    """Return the ids of a row's own text, in which no sentinel is meant.

    Text that spells `<extra_id_0>` out becomes the sentinel in a vocabulary that has it as a
    piece; there the ids are those of `< extra_id_0>`.
    """
    return texts_ids(vocabulary, [text])[0]


def texts_ids(vocabulary: Any, texts: Sequence[str]) -> list[Sequence[int]]:
    """Return the ids of several texts, each as `text_ids` gives them, in one call of a library."""
    listed = _encoded(vocabulary, texts)
    for place, text in enumerate(texts):
        if _SPELLED in text and not sentinel_ids(vocabulary).keys().isdisjoint(listed[place]):
            listed[place] = vocabulary.encode(text.replace(_SPELLED, f"< {_SPELLED[1:]}"))
    return listed


def _encoded(vocabulary: Any, texts: Sequence[str]) -> list[Sequence[int]]:
    import seqio

    own = getattr(type(vocabulary), "_encode", None)
    if own is seqio.SentencePieceVocabulary._encode:
        # The work is the calling threads' to divide; outside of Python, they run side by side.
        found: list[Sequence[int]] = vocabulary.tokenizer.encode(list(texts), num_threads=1)
        return found
    return [vocabulary.encode(text) for text in texts]


def question_ids(vocabulary: Any, dialect: Dialect, text: str) -> Int32[np.ndarray, " tokens"]:
    """`text` as the ids that a model is asked it with, BOS and EOS included where it has them."""
    ids = _spoken(vocabulary, text_ids(vocabulary, text), last=dialect.marks_inputs)
    begin = [bos_id(vocabulary)] if dialect.bos else []
    return np.concatenate([np.array(begin, np.int32), ids if dialect.eos else ids[:-1]])


def target_ids(vocabulary: Any, dialect: Dialect, answer: str) -> Int32[np.ndarray, " tokens"]:
    """`answer`, with what parts it from its question, as ids; sentinel and EOS included."""
    return _spoken(vocabulary, text_ids(vocabulary, answer), first=dialect.marks_targets)


def label_ids(vocabulary: Any, dialect: Dialect, label: str) -> Int32[np.ndarray, " tokens"]:
    """`label` as the ids that a model is trained to give it with."""
    return target_ids(vocabulary, dialect, f"{dialect.answer_start}{label}")


def _spoken(
    vocabulary: Any, ids: Sequence[int], *, first: bool = False, last: bool = False
) -> Int32[np.ndarray, " tokens"]:
    sentinel = [i for i, number in sentinel_ids(vocabulary).items() if number == 0]
    parts = [*(sentinel if first else ()), *ids, *(sentinel if last else ()), vocabulary.eos_id]
    return np.array(parts, np.int32)


def decode(vocabulary: Any, ids: Sequence[int]) -> str:
    """Token ids up to the first EOS as text in which sentinels are written out.

    `Vocabulary.decode` makes unknown words, or nothing at all, of sentinels beyond the base
    vocabulary; without them an answer cannot be distinguished from what surrounds it.
    """
    sentinels = sentinel_ids(vocabulary)
    parts: list[str] = []
    plain: list[int] = []
    for token in (int(i) for i in ids):
        if token == vocabulary.eos_id:
            break
        if token in sentinels:
            parts += [vocabulary.decode(plain), f"<extra_id_{sentinels[token]}>"]
            plain = []
        else:
            plain.append(token)
    parts.append(vocabulary.decode(plain))
    return " ".join(part.strip() for part in parts if part.strip()) if len(parts) > 1 else parts[0]
