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


def _check_placeholders(template: str) -> None:
    """Raise `UserError` for a placeholder that means more or less than a field's text."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(
            f"the template {template!r} cannot be read: {error}. A brace itself is written {{{{ or "
            "}}."
        ) from error
    for _, field, form, conversion in parts:
        if field is None:
            continue
        written = field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
        if conversion or form:
            raise UserError(
                f"the template {template!r} asks for {{{written}}}: a template takes a field as it "
                f"is, {{{field}}}; change its form with a preprocessor of the task"
            )
        if not field.strip():
            raise UserError(
                f"the template {template!r} has a placeholder without a name, {{{field}}}: name "
                "the field that goes there, or write {{}} for braces"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """An answer given by a class label: `words[row[field]]`.

    **Attributes:**

    - `field`: the field that holds the label: an integer, or the text of one of `words`.
    - `words`: the answer for each label, in the order of the data set's classes.
    """

    field: str
    words: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """An answer among candidates of the row's own: a model gives the one that it finds likeliest.

    Nothing is decoded, whatever DECODING is. A candidate's likelihood is that of its own tokens,
    without the end of text and without a dialect's sentinel.

    **Attributes:**

    - `texts`: a template of each candidate; or the field, a list, that holds all of them.
    - `label`: the field with the place of the right one, from 0, as a number or as its text; None
      where there is but one candidate, whose likelihood is the score.
    - `questions`: the field, a list, of the question that each candidate answers, where these
      differ. The template's question must then end in the right candidate's.
    - `delimiter`: what precedes a candidate when its likelihood is computed, as in
      lm-evaluation-harness. T5's SentencePiece models begin every text with a space anyway.
    """

    texts: Sequence[str] | str
    label: str | None = None
    questions: str | None = None
    delimiter: str = " "

    def __post_init__(self) -> None:
        if not isinstance(self.texts, str):
            object.__setattr__(self, "texts", tuple(self.texts))
            for text in self.texts:
                _check_placeholders(text)

    @property
    def paths(self) -> Sequence[str]:
        """The row's fields that the candidates are made of."""
        texts = self.texts
        fields = [texts] if isinstance(texts, str) else [f for t in texts for _, f in parts_of(t)]
        return [path for path in (*fields, self.label, self.questions) if path is not None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A task's way to ask and to answer.

    **Attributes:**

    - `question`: template of the question, up to and with the cue for the answer.
    - `answer`: template of the answer, a choice by label, or candidates of the row's own.
    - `example_id`: template of the example's id, unique within a split. Rows read by
      `promot_t5x.tasks.sources` have a `row_id`.
    - `article`: the field that is cut when a prompt is too long, if the task has one that may lose
      its end; without one the question's longest field is.
    """

    question: str
    answer: str | Choice | Candidates
    example_id: str = "{row_id}"
    article: str | None = None

    def __post_init__(self) -> None:
        for text in (self.question, self.answer, self.example_id):
            if isinstance(text, str):
                _check_placeholders(text)
        if self.article is not None and self.article not in self.fields:
            raise UserError(
                f"a template's article is {self.article!r}, which its question does not have: "
                f"{self.question!r}"
            )

    @functools.cached_property
    def fields(self) -> tuple[str, ...]:
        """The row's fields in the question, each once, in their order."""
        return tuple(dict.fromkeys(f for _, f in parts_of(self.question) if f not in (None, BREAK)))

    def ask(self, values: Mapping[str, str], line_break: str) -> str:
        """Return the question's text, from the text of each of `fields`."""
        return "".join(_filled(self.question, {**values, BREAK: line_break}))


# For rows that have been written out already: nothing in them may be cut.
AS_IT_STANDS = Template(question="{inputs}", answer="{targets}", example_id="{id}")


def _filled(template: str, values: Mapping[str, Any]) -> list[Any]:
    filled = []
    for literal, field in parts_of(template):
        filled.append(literal)
        if field is not None:
            filled.append(values[field])
    return filled


@functools.cache
def parts_of(template: str) -> tuple[tuple[str, str | None], ...]:
    """Take a template apart; it is filled in once a row."""
    parts = string.Formatter().parse(template)
    return tuple((literal, field) for literal, field, _, _ in parts)
