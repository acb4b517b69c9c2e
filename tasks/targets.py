"""The tasks that are fine-tuned on, with the paper's templates: RTE, WMT14 En-Fr, SNLI, OpenbookQA.

Class labels follow each data set's own order, which differ: RTE 0 entailment, 1 not_entailment;
SNLI 0 entailment, 1 neutral, 2 contradiction, and -1 where annotators disagree (these rows are
left out). OpenbookQA is answered with the letter; the paper does not say whether it is.

`rte_shuffled_labels` is RTE with its labels permuted among the rows of each split: the same
answers as often, without their meaning. Each split's permutation is fixed by a hash of the rows'
ids, so every reader sees the same one.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from promot_t5x.tasks import metrics
from promot_t5x.tasks.answers import Until, first_word
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.rendering import field_of
from promot_t5x.tasks.rows import map_rows
from promot_t5x.tasks.sources import tfds
from promot_t5x.tasks.templates import Choice, Template

TRUE_FALSE = ("True", "False")
TRUE_NEITHER_FALSE = ("True", "Neither", "False")
LETTERS = ("A", "B", "C", "D")
# Tokens of an answer: a label between two sentinels, a sentence.
LABEL_LENGTH, SENTENCE_LENGTH = 8, 256
LISTED_SHOTS = (1,)

ENTAILMENT_3_WAY = "{premise}{br}question: {hypothesis} Is it true or false or neither?{br}answer:"


def labeled(field: str) -> Callable[[Any], Any]:
    """Return a preprocessor that leaves out the rows whose class label is -1: they have none."""

    def preprocessor(dataset: Any) -> Any:
        return dataset.filter(lambda row: row[field] >= 0)

    return preprocessor


def translation(language: str, code: str) -> Template:
    """Return the paper's template from English; rows have `en` and `code`."""
    return Template(question=f"Translate English to {language}: {{en}}", answer=f"{{{code}}}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffledLabels:
    """A source with the labels of each split permuted among its rows.

    **Attributes:**

    - `source`: makes the source with the true labels.
    - `splits`: of the source.
    - `field`: the label's.
    - `example_id`: an integer field, unique within a split.
    - `seed`: another seed, another permutation.
    """

    source: Callable[[], Any]
    splits: tuple[str, ...]
    field: str
    example_id: str
    seed: int = 0

    def __call__(self) -> Any:
        """Make the `seqio.DataSource`."""
        import seqio

        inner = self.source()

        def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
            import tensorflow as tf

            given = self.permuted(inner, split)
            initializer = tf.lookup.KeyValueTensorInitializer(
                tf.constant(list(given), tf.int64), tf.constant(list(given.values()), tf.int64)
            )
            table = tf.lookup.StaticHashTable(initializer, default_value=-1)

            def relabeled(row: dict[str, Any]) -> dict[str, Any]:
                return {**row, self.field: table.lookup(tf.cast(row[self.example_id], tf.int64))}

            return map_rows(inner.get_dataset(split, shuffle=shuffle_files, seed=seed), relabeled)

        source = seqio.FunctionDataSource(dataset, splits=self.splits)
        # For those who look for the data sets behind a source.
        source.inner = inner
        return source

    def permuted(self, inner: Any, split: str) -> dict[int, int]:
        """Return a map from an example id to the label that it gets in place of its own."""
        rows = inner.get_dataset(split, shuffle=False)
        labels = {
            int(field_of(row, self.example_id)): int(field_of(row, self.field))
            for row in rows.as_numpy_iterator()
        }
        ordered = sorted(labels)
        giving = sorted(labels, key=self._rank)
        return {to: labels[giver] for to, giver in zip(ordered, giving, strict=True)}

    def _rank(self, example_id: int) -> tuple[bytes, int]:
        return hashlib.sha256(f"{self.seed}\0{example_id}".encode()).digest(), example_id


RTE = TaskDef(
    name="rte",
    description="RTE (SuperGLUE): does the premise entail the hypothesis? True / False",
    source=tfds("super_glue/rte:1.0.2", ("train", "validation")),
    splits=("train", "validation"),
    template=Template(
        question="{premise}{br}question: {hypothesis} Is it true or false?{br}answer:",
        answer=Choice(field="label", words=TRUE_FALSE),
        example_id="{idx}",
    ),
    postprocess=first_word,
    metrics=(metrics.accuracy,),
    labels=TRUE_FALSE,
    output_length=LABEL_LENGTH,
    listed_shots=LISTED_SHOTS,
)
register(RTE)
register(
    dataclasses.replace(
        RTE,
        name="rte_shuffled_labels",
        description="RTE with its labels permuted among the rows: the format without the task",
        source=ShuffledLabels(
            source=RTE.source, splits=RTE.splits, field="label", example_id="idx"
        ),
    )
)
register(
    TaskDef(
        name="wmt14_enfr",
        description="WMT14 English to French",
        source=tfds("wmt14_translate/fr-en:1.0.0", ("train", "validation", "test")),
        splits=("train", "validation", "test"),
        template=translation("French", "fr"),
        postprocess=Until("Translate"),
        metrics=(Bleu(),),
        output_length=SENTENCE_LENGTH,
        language="fr",
        scored_split="test",
        listed_shots=LISTED_SHOTS,
    )
)
register(
    TaskDef(
        name="snli",
        description="SNLI: does the premise entail the hypothesis? True / Neither / False",
        source=tfds("snli:1.1.0", ("train", "validation", "test")),
        splits=("train", "validation", "test"),
        preprocessors=(labeled("label"),),
        template=Template(
            question=ENTAILMENT_3_WAY, answer=Choice(field="label", words=TRUE_NEITHER_FALSE)
        ),
        postprocess=first_word,
        metrics=(metrics.accuracy,),
        labels=TRUE_NEITHER_FALSE,
        output_length=LABEL_LENGTH,
        scored_split="test",
        listed_shots=LISTED_SHOTS,
    )
)
register(
    TaskDef(
        name="openbookqa",
        description="OpenbookQA: a question about elementary science with four choices, A to D",
        source=tfds("openbookqa:0.1.0", ("train", "validation", "test")),
        splits=("train", "validation", "test"),
        template=Template(
            question=(
                "Q: {question.stem} A) {question.choice_A} B) {question.choice_B} "
                "C) {question.choice_C} D) {question.choice_D}{br}A:"
            ),
            answer=Choice(field="answerKey", words=LETTERS),
        ),
        postprocess=first_word,
        metrics=(metrics.accuracy,),
        labels=LETTERS,
        output_length=LABEL_LENGTH,
        scored_split="test",
        listed_shots=LISTED_SHOTS,
    )
)
register(
    Mixture(
        name="rte_wmt14_enfr",
        description="RTE and WMT14 En-Fr, the paper's multi-task target; change rates by RATES",
        rates={"rte": 1.0, "wmt14_enfr": 1.0},
        listed_shots=LISTED_SHOTS,
    )
)
