"""The last step of a task's pipeline: from rendered rows to the token ids that a model is given.

Prompts are put together and measured, and ids are made, by one Python function with one call of
the vocabulary, whoever reads the task: SeqIO a row at a time (calling the step), the project's
token stores hundreds of rows at a time (`examples`).
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from promot_t5x.tasks import dialects
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.rows import map_rows
from promot_t5x.tasks.shots import Assembler, Row

# What `rendering.rendered` makes and this step reads.
RENDERED = ("fields", "targets", "id", "label")


@dataclasses.dataclass(kw_only=True, slots=True)
class Encoded:
    """One example.

    **Attributes:**

    - `inputs`, `targets`: ids, sentinels included, EOS not.
    - `question`, `target`: the same as text.
    - `answer`: the plain answer.
    - `shots`: ids of the demonstrations that are shown.
    - `dropped_shots`, `cut_articles`: how many of these the example has lost.
    """

    inputs: list[int]
    targets: list[int]
    question: str
    target: str
    answer: str
    shots: tuple[str, ...]
    dropped_shots: int
    cut_articles: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodeWhole:
    """A preprocessor for questions that nothing is taken from: their lengths play no part.

    **Attributes:**

    - `assembler`: puts the task's prompts together.
    - `dialect`: how the model is asked.
    """

    assembler: Assembler
    dialect: Dialect

    def __call__(self, dataset: Any) -> Any:
        """From what `rendering.rendered` makes to examples, a row at a time.

        **Returns:** rows with `inputs` and `targets` as ids, `inputs_pretokenized`,
        `targets_pretokenized` and `answer` as text, `shots`, `dropped_shots`, `cut_articles`, and
        what else the rows had but `fields` and `label`.

        **Raises:** `UserError` where the template alone is too long, or there are too few rows to
        show.
        """
        return self._mapped(dataset, self.budget(None))

    def budget(self, sequence_length: Mapping[str, int] | None) -> int | None:
        """Return the tokens that a prompt may take, checked; None for as many as it wants.

        **Arguments:**

        - `sequence_length`: tokens by feature, EOS and sentinels included.

        **Raises:** `UserError` where the template alone is too long, or there are too few rows to
        show.
        """
        del sequence_length
        self.assembler.check(None)
        return None

    def examples(
        self,
        rows: Mapping[str, Iterable[Any]],
        budget: int | None,
        epochs: Iterable[tuple[int, int] | None] = itertools.repeat(None),
    ) -> list[Encoded]:
        """Return the examples of rendered rows.

        **Arguments:**

        - `rows`: by name in `RENDERED`, the values of all rows.
        - `budget`: what `budget` has returned.
        - `epochs`: in training, of each row the run's seed and the epoch, which choose its
          demonstrations; without them they are those of evaluation.
        """
        names = self.assembler.template.fields
        columns = (np.asarray(rows[name]).tolist() for name in RENDERED)
        queries = [
            Row(
                fields=dict(zip(names, map(_text, fields), strict=True)),
                answer=_text(answer),
                id=_text(row_id),
                label=label,
            )
            for fields, answer, row_id, label in zip(*columns, strict=True)
        ]
        prompts = self.assembler.prompts(queries, budget, epochs)
        vocabulary, dialect = self.assembler.vocabulary, self.dialect
        written = [f"{dialect.answer_start}{query.answer}" for query in queries]
        answers = dialects.texts_ids(vocabulary, written)
        begin = [dialects.bos_id(vocabulary)] if dialect.bos else []
        last = self._sentinel if dialect.marks_inputs else []
        first = self._sentinel if dialect.marks_targets else []
        return [
            Encoded(
                inputs=[*begin, *prompt.ids, *last],
                targets=[*first, *ids],
                question=dialect.question(prompt.text),
                target=dialect.target(query.answer),
                answer=query.answer,
                shots=prompt.shots,
                dropped_shots=prompt.dropped_shots,
                cut_articles=prompt.cut_articles,
            )
            for query, prompt, ids in zip(queries, prompts, answers, strict=True)
        ]

    @functools.cached_property
    def _sentinel(self) -> list[int]:
        known = dialects.sentinel_ids(self.assembler.vocabulary)
        return [token for token, number in known.items() if number == 0]

    def _mapped(self, dataset: Any, budget: int | None) -> Any:
        import tensorflow as tf

        def example(*values: Any) -> tuple[Any, ...]:
            rows = {name: [value] for name, value in zip(RENDERED, values, strict=True)}
            (made,) = self.examples(rows, budget)
            texts = (made.question, made.target, made.answer)
            return (
                np.array(made.inputs, np.int32),
                np.array(made.targets, np.int32),
                *(text.encode() for text in texts),
                np.array([shot.encode() for shot in made.shots], dtype=object),
                np.int32(made.dropped_shots),
                np.int32(made.cut_articles),
            )

        kinds = {
            "inputs": (tf.int32, [None]),
            "targets": (tf.int32, [None]),
            "inputs_pretokenized": (tf.string, []),
            "targets_pretokenized": (tf.string, []),
            "answer": (tf.string, []),
            "shots": (tf.string, [None]),
            "dropped_shots": (tf.int32, []),
            "cut_articles": (tf.int32, []),
        }

        def encoded(row: Mapping[str, Any]) -> dict[str, Any]:
            made = tf.numpy_function(
                example,
                [row[name] for name in RENDERED],
                [dtype for dtype, _ in kinds.values()],
                stateful=False,
            )
            found = dict(zip(kinds, made, strict=True))
            for name, (_, shape) in kinds.items():
                found[name].set_shape(shape)
            rest = {name: row[name] for name in row if name not in ("fields", "label")}
            return {**rest, **found}

        return map_rows(dataset, encoded)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encode(EncodeWhole):
    """A preprocessor for questions that demonstrations and articles may be taken from.

    **Attributes:**

    - `sequence_length`: the lengths of the run. SeqIO sets this field of a dataclass, where it
      would pass an argument to a function; without any lengths nothing is taken.
    """

    sequence_length: Mapping[str, int] | None = None

    def __call__(self, dataset: Any) -> Any:
        """Encode as `EncodeWhole` does, within the lengths of the run."""
        return self._mapped(dataset, self.budget(self.sequence_length))

    def budget(self, sequence_length: Mapping[str, int] | None) -> int | None:
        """Return the tokens that a prompt may take: those of `inputs` but what the dialect adds."""
        taken = self.dialect.marks_inputs + self.dialect.bos + self.dialect.eos
        budget = None if sequence_length is None else sequence_length["inputs"] - taken
        self.assembler.check(budget)
        return budget


def _text(value: Any) -> str:
    # As SentencePiece reads bytes that are no UTF-8.
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
