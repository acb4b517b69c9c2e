"""The examples of an evaluation: what is asked, and all that scoring an answer needs."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from promot_t5x.data.lazy import import_tensorflow
from promot_t5x.data.sources import BoundTask
from promot_t5x.data.tokenization import depends_on_lengths, examples, unreadable
from promot_t5x.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """One example of an evaluation.

    Attributes:
        id: the example's own id, or its place in the split.
        inputs: token ids of the text, untrimmed, without any prompt.
        text: the text as asked.
        answer: the reference answer's text.
        example: every field that the task's pipeline yields, for its post-processing.

    """

    id: str
    inputs: Int32[np.ndarray, " length"]
    text: str
    answer: str
    example: Mapping[str, Any]


def read_questions(
    bound: BoundTask, split: str, *, limit: int | None, token_budget: int, answer_length: int
) -> list[Question]:
    """Return the examples of a split in the order of the source, the first `limit` if given.

    Args:
        bound: the task.
        split: one of its splits.
        limit: how many; None for all.
        token_budget: tokens that the text may take, for a task whose preprocessors ask for it.
        answer_length: likewise of the answer.

    Raises `UserError` for a split without examples, and one that cannot be read.

    """
    bound.check_split(split)
    lengths = {"inputs": token_budget, "targets": answer_length}
    data = examples(bound.task, split, lengths if depends_on_lengths(bound.task) else None)
    rows = itertools.islice(data.as_numpy_iterator(), limit)
    try:
        questions = [_question(bound.task, row, index) for index, row in enumerate(rows)]
    except import_tensorflow().errors.OpError as error:
        raise unreadable(bound.task, split, error) from error
    if not questions:
        raise UserError(f"Split {split!r} of task {bound.name!r} has no examples to evaluate.")
    return questions


def answer_text(question: Question) -> str:
    """Return the right answer's text, without what the dialect puts around it."""
    return _text(question.example.get("answer", question.answer))


def trim(
    ids: Int32[np.ndarray, " length"], token_budget: int, eos_id: int | None
) -> Int32[np.ndarray, " trimmed"]:
    """Return the first `token_budget` ids; text that ended in EOS still does."""
    if len(ids) <= token_budget:
        return ids
    cut = ids[:token_budget].copy()
    if ids[-1] == eos_id:
        cut[-1] = eos_id
    return cut


def _question(task: Any, row: Mapping[str, Any], index: int) -> Question:
    inputs = np.asarray(row["inputs"], np.int32)
    vocabularies = {name: task.output_features[name].vocabulary for name in ("inputs", "targets")}

    def text_of(name: str) -> str:
        if f"{name}_pretokenized" in row:
            return _text(row[f"{name}_pretokenized"])
        return vocabularies[name].decode([int(i) for i in row[name]])  # type: ignore[no-any-return]

    identity = next((row[key] for key in ("id", "idx") if key in row), index)
    return Question(
        id=_text(identity),
        inputs=inputs,
        text=text_of("inputs"),
        answer=text_of("targets"),
        example=row,
    )


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
