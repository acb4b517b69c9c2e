"""Templates against strings written out."""

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks.templates import Template


def test_a_question_is_written_from_the_texts_of_its_fields():
    template = Template(question="{b}{br}{{q}} {a.b} {b}:{br}A:", answer="{c}")
    assert template.fields == ("b", "a.b")
    values = {"b": "x{y}", "a.b": "é\nz"}
    for line_break, expected in (
        (" ", "x{y} {q} é\nz x{y}: A:"),
        ("\n", "x{y}\n{q} é\nz x{y}:\nA:"),
    ):
        assert template.ask(values, line_break) == expected


def test_an_article_must_be_in_the_question():
    with pytest.raises(UserError, match="article is 'text', which its question does not have"):
        Template(question="{document}", answer="{summary}", article="text")
