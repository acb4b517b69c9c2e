"""Templates against strings built in plain Python, on rows made up."""

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks import rendering
from promot_t5x.tasks.sources import dataset_of
from promot_t5x.tasks.templates import Choice, Template

ROW = {"premise": "A {dog} barks.", "hypothesis": "It sleeps.", "idx": 12, "label": 1}
NESTED = {"question": {"stem": "Why?", "A": "so"}, "answers": ["a", "b"], "score": 0.5}


def rendered(rows, template, **keep):
    made = rendering.rendered(dataset_of(rows), template=template, task="a_task", keep=keep)
    return list(made.as_numpy_iterator())


def test_fill_puts_text_and_numbers_in_and_leaves_braces_of_the_row_alone():
    made = rendering.fill("{idx}: {premise} {{x}} {premise}", ROW).numpy().decode()
    assert made == "12: A {dog} barks. {x} A {dog} barks."
    assert rendering.fill("plain", ROW).numpy() == b"plain"
    assert rendering.fill("{question.stem} {answers.1} {score}", NESTED).numpy() == b"Why? b 0.5"
    with pytest.raises(KeyError, match="absent"):
        rendering.fill("{absent}", ROW)


def test_rows_become_fields_answer_id_and_label():
    template = Template(
        question="{premise} {idx}", answer=Choice(field="label", words=["no", "yes"]),
        example_id="{idx}/{label}",
    )  # fmt: skip
    (row,) = rendered([ROW], template, aliases="hypothesis")
    assert row["fields"].tolist() == [b"A {dog} barks.", b"12"]
    assert (row["targets"], row["id"], row["label"]) == (b"yes", b"12/1", 1)
    assert row["aliases"] == b"It sleeps."
    assert row.keys() == {"fields", "targets", "id", "label", "aliases"}
    (row,) = rendered([NESTED], Template(question="{answers.0}", answer="{score}", example_id="1"))
    assert (row["fields"].tolist(), row["targets"], row["label"]) == ([b"a"], b"0.5", -1)


def test_labels_may_be_text_but_must_be_known():
    import tensorflow as tf

    template = Template(
        question="{t}", answer=Choice(field="l", words=("no", "yes")), example_id=""
    )
    rows = rendered([{"t": "a", "l": "yes"}, {"t": "b", "l": "no"}], template)
    assert [(row["targets"], row["label"]) for row in rows] == [(b"yes", 1), (b"no", 0)]
    with pytest.raises(tf.errors.InvalidArgumentError, match="the label maybe is none of no, yes"):
        rendered([{"t": "a", "l": "maybe"}], template)
    with pytest.raises(tf.errors.InvalidArgumentError):
        rendered([{"t": "a", "l": 2}], template)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"question": "{premis}"}, "field premis of its rows, which have hypothesis, idx"),
        ({"answer": "{a.b} {c}"}, "fields a.b, c of"),
        ({"answer": Choice(field="class", words=("a",))}, "field class of"),
        ({"example_id": "{row_id}"}, "field row_id of"),
    ],
)
def test_a_missing_field_is_named(changes, missing):
    settings = {"question": "{premise}", "answer": "{hypothesis}", "example_id": "{idx}"} | changes
    with pytest.raises(UserError, match=f"task 'a_task' needs the {missing}"):
        rendered([ROW], Template(**settings))
