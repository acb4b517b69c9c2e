"""How a row of a data set becomes a question and an answer.

A template is text with `{field}` where a field of the row goes; `{answer.value}` and
`{answers.0}` reach into nested rows and lists, `{br}` is a place where `format.Format` may break
the line, and `{{`, `}}` are braces.
"""

import dataclasses
import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError

BREAK = "br"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """An answer given by a class label: `words[row[field]]`.

    Attributes:
      field: the field that holds the label: an integer, or the text of one of `words`.
      words: the answer for each label, in the order of the data set's classes.
    """

    field: str
    words: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A task's way to ask and to answer.

    Attributes:
      question: template of the question, up to and with the cue for the answer.
      answer: template of the answer, or a choice by label.
      example_id: template of the example's id, unique within a split. Rows read by
        `promot_t5x.tasks.sources` have a `row_id`.
      article: the field that is cut when a prompt is too long, if the task has one that may
        lose its end; without one the question's longest field is.
    """

    question: str
    answer: str | Choice
    example_id: str = "{row_id}"
    article: str | None = None

    def __post_init__(self) -> None:
        if self.article is not None and self.article not in self.fields:
            raise UserError(
                f"a template's article is {self.article!r}, which its question does not have: "
                f"{self.question!r}"
            )

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """The row's fields in the question, each once, in their order."""
        return tuple(dict.fromkeys(f for _, f in _parts(self.question) if f not in (None, BREAK)))

    def ask(self, values: Mapping[str, str], line_break: str) -> str:
        """The question's text, from the text of each of `fields`."""
        return "".join(_filled(self.question, {**values, BREAK: line_break}))


# For rows that have been written out already: nothing in them may be cut.
AS_IT_STANDS = Template(question="{inputs}", answer="{targets}", example_id="{id}")


def rendered(dataset: Any, *, template: Template, task: str, keep: Mapping[str, str]) -> Any:
    """A preprocessor: from rows to the texts that a template needs of them.

    Args:
      dataset: rows as the source and the task's own preprocessors make them.
      template: what to render.
      task: the task's name, for errors.
      keep: new name -> field of the row, nested as in a template, to pass on.

    Returns:
      Rows with `fields` (the text of each of `template.fields`), `targets`, `id`, `label` (-1
      without a choice) and what is kept.
    """
    import seqio
    import tensorflow as tf

    def render(row: Mapping[str, Any]) -> dict[str, Any]:
        answer = template.answer
        if isinstance(answer, Choice):
            label = _label(field_of(row, answer.field), answer.words)
            targets = tf.gather(tf.constant(answer.words), label)
        else:
            label, targets = tf.constant(-1, tf.int64), fill(answer, row)
        return {
            **{name: field_of(row, path) for name, path in keep.items()},
            "fields": tf.stack([_as_text(field_of(row, name)) for name in template.fields]),
            "targets": targets,
            "id": fill(template.example_id, row),
            "label": label,
        }

    spec = dataset.element_spec
    missing = [path for path in _named(template, keep) if not _has(spec, path)]
    if missing:
        raise UserError(
            f"task {task!r} needs the field{'s' * (len(missing) > 1)} {', '.join(missing)} of its "
            f"rows, which have {', '.join(sorted(spec))}"
        )
    return seqio.map_over_dataset(render)(dataset)


def fill(template: str, row: Mapping[str, Any]) -> Any:
    """Put the row's fields into a template, inside `tf.data`: a scalar string tensor.

    Args:
      template: text with `{field}` placeholders, but no `{br}`.
      row: scalar tensors by field, perhaps nested; numbers are written in decimal.

    Raises:
      KeyError: the template names a field that the row lacks.
    """
    import tensorflow as tf

    parts = []
    for literal, field in _parts(template):
        parts.append(tf.constant(literal))
        if field is not None:
            parts.append(_as_text(field_of(row, field)))
    return tf.strings.join(parts)


def field_of(row: Any, path: str) -> Any:
    """`row["a"]["b"]` for the path `a.b`; a number picks from a list. `KeyError` if absent."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    for step in path.split("."):
        row = row[step] if isinstance(row, Mapping) else row[int(step)]
    return row


def _filled(template: str, values: Mapping[str, Any]) -> list[Any]:
    filled = []
    for literal, field in _parts(template):
        filled.append(literal)
        if field is not None:
            filled.append(values[field])
    return filled


@functools.cache
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Take a template apart; it is filled in once a row."""
    parts = string.Formatter().parse(template)
    return tuple((literal, field) for literal, field, _, _ in parts)


def _named(template: Template, keep: Mapping[str, str]) -> Sequence[str]:
    answer = template.answer
    paths = [answer.field] if isinstance(answer, Choice) else [f for _, f in _parts(answer)]
    paths += [f for _, f in _parts(template.example_id)]
    return tuple(dict.fromkeys(p for p in (*template.fields, *paths, *keep.values()) if p))


def _has(spec: Any, path: str) -> bool:
    try:
        field_of(spec, path)
    except (KeyError, ValueError, IndexError):
        return False
    # A number in the path picks from a list, whose length is not known here.
    except TypeError:
        return True
    return True


def _label(value: Any, words: Sequence[str]) -> Any:
    import tensorflow as tf

    if value.dtype != tf.string:
        return tf.cast(value, tf.int64)
    known = tf.equal(value, tf.constant(words))
    message = tf.strings.join(["the label ", value, f" is none of {', '.join(words)}"])
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_any(known), [message])]):
        return tf.argmax(known, output_type=tf.int64)


def _as_text(value: Any) -> Any:
    import tensorflow as tf

    value = tf.convert_to_tensor(value)
    if value.dtype == tf.string:
        return value
    return tf.strings.as_string(value, shortest=value.dtype.is_floating)
