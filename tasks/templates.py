"""How a row of a data set becomes a question and an answer: the paper's templates.

A template is text with `{field}` where a field of the row goes (arXiv 2211.00635, appendix;
the paper does not say where it breaks lines, so parts are joined by single spaces).
"""

import dataclasses
import string
from collections.abc import Callable, Mapping
from typing import Any

RTE = "{premise} question: {hypothesis} Is it true or false? answer:"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """An answer given by a class label: `words[row[field]]`.

    Attributes:
      field: the integer field that holds the label.
      words: the answer for each label, in the order of the data set's classes.
    """

    field: str
    words: tuple[str, ...]


def fill(template: str, row: Mapping[str, Any]) -> Any:
    """Put the row's fields into a template, inside `tf.data`.

    Args:
      template: text with `{field}` placeholders; `{{` and `}}` stand for braces.
      row: scalar tensors by field; numbers are written in decimal.

    Returns:
      A scalar string tensor.

    Raises:
      KeyError: the template names a field that the row lacks.
    """
    import tensorflow as tf

    parts = []
    for literal, field, _, _ in string.Formatter().parse(template):
        parts.append(tf.constant(literal))
        if field is not None:
            value = tf.convert_to_tensor(row[field])
            parts.append(value if value.dtype == tf.string else tf.strings.as_string(value))
    return tf.strings.join(parts)


def render(
    inputs: str, targets: str | Choice, *, example_id: str, keep: tuple[str, ...] = ()
) -> Callable[[Any], Any]:
    """A preprocessor that asks and answers by template.

    Args:
      inputs: template of the question.
      targets: template of the answer, or a choice by label.
      example_id: template of the example's id, unique within a split.
      keep: fields of the row to pass on for scoring.

    Returns:
      A function Dataset -> Dataset whose rows have string fields `inputs`, `targets`, `id`
      and the kept ones.
    """

    def rendered(row: Mapping[str, Any]) -> dict[str, Any]:
        import tensorflow as tf

        if isinstance(targets, Choice):
            answer = tf.gather(tf.constant(targets.words), row[targets.field])
        else:
            answer = fill(targets, row)
        made = {"inputs": fill(inputs, row), "targets": answer, "id": fill(example_id, row)}
        return {**{field: row[field] for field in keep}, **made}

    def preprocessor(dataset: Any) -> Any:
        import seqio

        return seqio.map_over_dataset(rendered)(dataset)

    return preprocessor
