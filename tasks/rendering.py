"""Fills templates in, inside `tf.data`: from rows to the texts that a template needs of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from promot_t5x.errors import UserError
from promot_t5x.tasks.rows import WRITTEN, LeftOut, map_rows
from promot_t5x.tasks.templates import Candidates, Choice, Template, parts_of


def rendered(
    dataset: Any,
    *,
    template: Template,
    task: str,
    keep: Mapping[str, str],
    left_out: LeftOut | None = None,
) -> Any:
    """Return a preprocessor: from rows to the texts that a template needs of them.

    **Arguments:**

    - `dataset`: rows as the source and the task's own preprocessors make them.
    - `template`: what to render.
    - `task`: the task's name, for errors.
    - `keep`: new name -> field of the row, nested as in a template, whose text is passed on.
    - `left_out`: for errors, why the source gives no field of that name.

    **Returns:** Rows with `fields` (the text of each of `template.fields`), `targets`, `id`,
    `label` (-1 without a choice) and what is kept. With candidates, these as `candidates`, the
    place of the right one as `right`, and where they have questions of their own, `questions`.

    **Raises:**

    - `UserError`: rows lack a field that is named. Reading a row whose label is none of the
      choices', or whose list is too short, raises `tf.errors.InvalidArgumentError`.
    """
    import tensorflow as tf

    def render(row: Mapping[str, Any]) -> dict[str, Any]:
        answer = template.answer
        example_id = fill(template.example_id, row)
        ranked: dict[str, Any] = {}
        if isinstance(answer, Candidates):
            ranked = _ranked(row, answer, example_id)
            label, targets = ranked["right"], ranked["candidates"][ranked["right"]]
        elif isinstance(answer, Choice):
            label = _label(row, answer, example_id)
            targets = tf.gather(tf.constant(answer.words), label)
        else:
            label, targets = tf.constant(-1, tf.int64), fill(answer, row, example_id)
        return {
            **{name: text_of(row, path, example_id) for name, path in keep.items()},
            "fields": tf.stack([text_of(row, name, example_id) for name in template.fields]),
            "targets": targets,
            "id": example_id,
            "label": label,
            **ranked,
        }

    spec = dataset.element_spec
    missing = [path for path in _named(template, keep) if not _has(spec, path)]
    if missing:
        known = {} if left_out is None else left_out.reasons
        reasons = [r for field, r in known.items() if any(_within(p, field) for p in missing)]
        raise UserError(
            f"task {task!r} needs the field{'s' * (len(missing) > 1)} {', '.join(missing)} of its "
            f"rows, which have {', '.join(sorted(n for n in spec if not n.endswith(WRITTEN)))}"
            + "".join(f"; {reason}" for reason in reasons)
        )
    return map_rows(dataset, render)


def fill(template: str, row: Mapping[str, Any], example_id: Any = "") -> Any:
    """Put the row's fields into a template, inside `tf.data`: a scalar string tensor.

    **Arguments:**

    - `template`: text with `{field}` placeholders, but no `{br}`.
    - `row`: scalar tensors by field, perhaps nested; numbers are spelled as the row spells them.
    - `example_id`: names the row in errors.

    **Raises:**

    - `KeyError`: the template names a field that the row lacks.
    """
    import tensorflow as tf

    parts = []
    for literal, field in parts_of(template):
        parts.append(tf.constant(literal))
        if field is not None:
            parts.append(text_of(row, field, example_id))
    return tf.strings.join(parts)


def text_of(row: Mapping[str, Any], path: str, example_id: Any = "") -> Any:
    """Return the text of a field, or the texts of a list, inside `tf.data`.

    A number is spelled as its row spells it, where the source says how; otherwise it is the
    shortest text that reads back as the same number of its type. Truth values are True and False.

    **Arguments:**

    - `row`: tensors by field, perhaps nested.
    - `path`: of the field, as in a template.
    - `example_id`: names the row where the path leads beyond the end of a list.
    """
    import tensorflow as tf

    value = tf.convert_to_tensor(_checked_field(row, path, example_id))
    if value.dtype == tf.string:
        return value
    if value.dtype == tf.bool:
        return tf.where(value, "True", "False")
    written = next((p for p in _paths_of_text(path) if _has(row, p)), None)
    if written is not None:
        text = field_of(row, written)
        # A preprocessor may have changed the number since.
        same = tf.equal(tf.strings.to_number(text, tf.float64), tf.cast(value, tf.float64))
        return tf.cond(tf.reduce_all(same), lambda: text, lambda: _spelled(value))
    return _spelled(value)


def field_of(row: Any, path: str) -> Any:
    """`row["a"]["b"]` for the path `a.b`; a number picks from a list. `KeyError` if absent.

    A list of objects is an object of lists, and `a.0.b` picks from the list `a.b`.
    """
    if isinstance(row, Mapping) and path in row:
        return row[path]
    step, _, rest = path.partition(".")
    if not isinstance(row, Mapping):
        picked = row[int(step)]
        return field_of(picked, rest) if rest else picked
    if step not in row and step.isdecimal() and rest:
        return field_of(row, rest)[int(step)]
    return field_of(row[step], rest) if rest else row[step]


def _named(template: Template, keep: Mapping[str, str]) -> Sequence[str]:
    answer = template.answer
    paths: list[str | None]
    if isinstance(answer, Candidates):
        paths = [*answer.paths]
    else:
        paths = [answer.field] if isinstance(answer, Choice) else [f for _, f in parts_of(answer)]
    paths += [f for _, f in parts_of(template.example_id)]
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


def _within(path: str, field: str) -> bool:
    """Whether a path leads through a field, whose name may skip the numbers of the path."""
    steps = [step for step in path.split(".") if not step.isdecimal()]
    return path == field or f"{'.'.join(steps)}.".startswith(f"{field}.")


def _paths_of_text(path: str) -> Iterator[str]:
    """Where the text of the number at `path` may stand: beside it, or beside the list it is in."""
    steps = path.split(".")
    for end in range(len(steps), 0, -1):
        yield ".".join([*steps[: end - 1], steps[end - 1] + WRITTEN, *steps[end:]])


def _checked_field(row: Any, path: str, example_id: Any) -> Any:
    """`field_of` with an error that names the row where a list is too short."""
    import tensorflow as tf

    steps = path.split(".")
    place = next((n for n in range(len(steps) - 1, 0, -1) if steps[n].isdecimal()), None)
    if place is None or (isinstance(row, Mapping) and path in row):
        return field_of(row, path)
    several = field_of(row, ".".join([*steps[:place], *steps[place + 1 :]]))
    if not tf.is_tensor(several) or several.shape.rank == 0:
        return field_of(row, path)
    index = int(steps[place])
    message = tf.strings.join(
        [
            "row ",
            example_id,
            f": its list {'.'.join(steps[:place])!r} has no item {index} (",
            "of ",
            tf.strings.as_string(tf.shape(several)[0]),
            "; the first is 0)",
        ]
    )
    with tf.control_dependencies([_asserted(tf.shape(several)[0] > index, message)]):
        return tf.identity(several)[index]


def _ranked(row: Any, answer: Candidates, example_id: Any) -> dict[str, Any]:
    """Return the row's candidates, the place of the right one among them, and their questions."""
    import tensorflow as tf

    if isinstance(answer.texts, str):
        texts = text_of(row, answer.texts, example_id)
    else:
        texts = tf.stack([fill(text, row, example_id) for text in answer.texts])
    made = {"candidates": texts, "right": tf.constant(0, tf.int64)}
    if answer.label is not None:
        made["right"] = _place(row, answer.label, tf.size(texts), example_id)
    if answer.questions is not None:
        made["questions"] = text_of(row, answer.questions, example_id)
    return made


def _place(row: Any, path: str, count: Any, example_id: Any) -> Any:
    """Return a place in a list of `count`, checked."""
    import tensorflow as tf

    text = tf.strings.strip(text_of(row, path, example_id))
    whole = tf.strings.regex_full_match(text, r"\d{1,9}(\.0+)?")
    place = tf.cast(tf.strings.to_number(tf.where(whole, text, "-1"), tf.float64), tf.int64)
    message = tf.strings.join(
        [
            "the label ",
            text,
            " is none of the row's candidates (0 to ",
            tf.strings.as_string(count - 1),
            "): row ",
            example_id,
            f", field {path!r}",
        ]
    )
    right = whole & (place < tf.cast(count, tf.int64))
    with tf.control_dependencies([tf.debugging.Assert(right, [message])]):
        return tf.identity(place)


def _label(row: Any, choice: Choice, example_id: Any) -> Any:
    """Return the place of the row's label among the words; it is in their range."""
    import tensorflow as tf

    value = _checked_field(row, choice.field, example_id)
    words = choice.words
    if value.dtype == tf.string:
        value = tf.strings.strip(value)
        known = tf.equal(value, tf.constant(words))
        # In text files a label is text too; a word that is a number counts as a word.
        whole = tf.strings.regex_full_match(value, r"\d{1,9}(\.0+)?")
        number = tf.strings.to_number(tf.where(whole, value, "-1"), tf.float64)
        named = tf.reduce_any(known)
        label = tf.where(named, tf.argmax(known, output_type=tf.int64), tf.cast(number, tf.int64))
        right = named | (whole & (label < len(words)))
    else:
        label = tf.cast(value, tf.int64)
        whole = tf.equal(tf.cast(label, value.dtype), value)
        right = whole & (label >= 0) & (label < len(words))
    message = tf.strings.join(
        [
            "the label ",
            text_of(row, choice.field),
            f" is none of {', '.join(words)}",
            " (as an integer, 0 ",
            f"to {len(words) - 1}): row ",
            example_id,
            f", field {choice.field!r}",
        ]
    )
    with tf.control_dependencies([_asserted(right, message)]):
        return tf.identity(label)


def _asserted(condition: Any, message: Any) -> Any:
    """Return an operation that fails; `tf.debugging.Assert` would hide it in a branch.

    For many rows at once, a branch is slow.
    """
    import tensorflow as tf

    return tf.raw_ops.Assert(condition=condition, data=[message])


def _spelled(value: Any) -> Any:
    """Return the shortest text of each number that reads back as the same of its type."""
    import tensorflow as tf

    if not value.dtype.is_floating:
        return tf.strings.as_string(value)

    def spell(numbers: Any) -> Any:
        # Of a numpy scalar, `str` is the shortest text for its precision.
        texts = [str(number).encode() for number in np.ravel(numbers)]
        return np.array(texts, object).reshape(np.shape(numbers))

    texts = tf.numpy_function(spell, [value], tf.string, stateful=False)
    texts.set_shape(value.shape)
    return texts
