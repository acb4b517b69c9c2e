"""Numbers are asked, answered and scored as their rows write them; labels are whole numbers."""

import json

import numpy as np
import pytest

from promot_t5x.data.questions import read_questions
from promot_t5x.data.sources import BoundTask
from promot_t5x.errors import UserError
from promot_t5x.tasks import jsonl, rendering, templates, text_task
from promot_t5x.tasks.rows import dataset_of


def write(path, rows):
    path.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    return path


def questions(path, shots=0, **settings):
    import seqio

    from promot_t5x.tasks import registry

    definition = text_task(name="numbers", source=jsonl(path), **settings)
    if shots:
        definition = registry._with_shots(definition, "numbers_1shot", shots)
    task = definition.build(seqio.ByteVocabulary())
    bound = BoundTask(name="numbers", task=task, splits=("train",), definition=definition)
    return read_questions(bound, "train", limit=None, token_budget=500, answer_length=50)


def score(question, said, **settings):
    """The exact match of an answer, as an evaluation computes it."""
    definition = text_task(name="n", source=jsonl("x"), inputs="{q}", target="{q}", **settings)
    return definition.score([definition.reference(question.example)], [said])["exact_match"]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("1234.5", "1234.5"),
        ("99999.75", "99999.75"),
        ("101234.25", "101234.25"),
        ("2500000.5", "2500000.5"),
        ("0.1", "0.1"),
        ("2.0", "2.0"),
        ("-0.0", "-0.0"),
        ("1e22", "1e+22"),
        ("1e-300", "1e-300"),
        ("0.30000000000000004", "0.30000000000000004"),
        ("123456789012345678", "123456789012345678"),
        ("18446744073709551616", "18446744073709551616"),
        ("-12345678901234567890123456789", "-12345678901234567890123456789"),
        ("true", "True"),
    ],
)
def test_a_number_is_asked_and_answered_as_its_row_writes_it(written, asked, tmp_path):
    path = write(tmp_path / "train.jsonl", [f'{{"q": {written}}}\n'])
    (question,) = questions(path, inputs="Add: {q} =", target="{q}")
    assert (question.text, question.answer) == (f"Add: {asked} =", asked)


def test_each_row_of_a_column_spells_its_own_number(tmp_path):
    lines = ['{"q": 1, "l": [1, 2.0]}\n', '{"q": 0.5, "l": [3]}\n', '{"q": 2.0, "l": []}\n']
    path = write(tmp_path / "train.jsonl", lines)
    found = questions(path, inputs="{q}", target="{q}", references="l")
    assert [q.text for q in found] == ["1", "0.5", "2.0"]
    assert found[0].example["references"].tolist() == [b"1", b"2.0"]
    assert score(found[0], "2.0", references="l") == 100.0
    assert score(found[0], "2", references="l") == 0.0
    shown = questions(path, shots=1, inputs="{q}", target="{q}")
    assert {q.text for q in shown} <= {
        f"{a} {a}\n\n{b}" for a in ("1", "0.5", "2.0") for b in ("1", "0.5", "2.0")
    }


def test_integers_beyond_64_bits_stand_among_small_ones_and_among_floats(tmp_path):
    lines = ['{"q": 7, "r": 0.5}\n', '{"q": 9223372036854775808, "r": 9223372036854775808}\n']
    found = questions(write(tmp_path / "a.jsonl", lines), inputs="{q}", target="{r}")
    assert [(q.text, q.answer) for q in found] == [
        ("7", "0.5"),
        ("9223372036854775808", "9223372036854775808"),
    ]


def test_a_number_that_a_preprocessor_changed_is_spelled_anew(tmp_path):
    path = write(tmp_path / "train.jsonl", [{"q": 0.1}, {"q": 2}])
    found = questions(
        path,
        inputs="{q}",
        target="{q}",
        preprocessors=[lambda data: data.map(lambda row: {**row, "q": row["q"] * 3})],
    )
    assert [q.text for q in found] == ["0.30000000000000004", "6.0"]


def test_numbers_of_other_types_have_the_shortest_text_of_their_type():
    def text(value):
        return rendering.text_of({"x": value}, "x").numpy()

    assert text(np.float32(0.1)) == b"0.1"
    assert text(np.float32(99999.75)) == b"99999.75"
    assert text(np.float64(1 / 3)) == b"0.3333333333333333"
    assert text(np.float32(5)) == b"5.0"
    assert text(np.uint64(2**64 - 1)) == b"18446744073709551615"
    assert text(np.bool_(True)) == b"True"
    assert text(np.array([0.5, 2.5])).tolist() == [b"0.5", b"2.5"]


# ------------------------------------------------------------------------------- labels


LABELS = {"inputs": "{q}?", "target": "{y}", "labels": ("no", "yes")}


@pytest.mark.parametrize(
    ("labels", "answers"),
    [
        ((0, 1), ["no", "yes"]),
        ((0.0, 1.0), ["no", "yes"]),
        ((0, 1.0), ["no", "yes"]),
        (("yes ", "\tno"), ["yes", "no"]),
    ],
)
def test_whole_numbers_and_words_are_labels(labels, answers, tmp_path):
    path = write(tmp_path / "train.jsonl", [{"q": "a", "y": y} for y in labels])
    assert [q.answer for q in questions(path, **LABELS)] == answers


@pytest.mark.parametrize(
    ("label", "said"),
    [
        (0.9, "0.9"),
        (1.4, "1.4"),
        (-0.7, "-0.7"),
        (2, "2"),
        (-1, "-1"),
        (2.0, "2.0"),
        (1e30, "1e+30"),
        (float("nan"), "nan"),
        ("½ maybe", "½ maybe"),
    ],
)
@pytest.mark.parametrize("shots", [0, 1])
def test_another_label_is_an_error_that_names_row_and_field(label, said, shots, tmp_path):
    good = [{"q": str(n), "y": "no" if isinstance(label, str) else n % 2} for n in range(3)]
    path = write(tmp_path / "dev.jsonl", [*good, {"q": "d", "y": label}])
    with pytest.raises(UserError) as caught:
        questions(path, shots, **LABELS)
    where = (
        "The demonstrations of task 'numbers', split 'train', cannot be read:"
        if shots
        else "The examples of task 'numbers', split 'train', cannot be read:"
    )
    assert str(caught.value) == (
        f"{where} the label {said} is none of no, yes (as an integer, 0 to 1): row dev-4, field "
        "'y'."
    )


def test_truth_values_of_a_tensor_are_labels():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices({"y": [False, True], "q": ["a", "b"]})
    template = templates.Template(
        question="{q}", answer=templates.Choice(field="y", words=("no", "yes")), example_id="{q}"
    )
    made = rendering.rendered(data, template=template, task="t", keep={})
    assert [row["targets"] for row in made.as_numpy_iterator()] == [b"no", b"yes"]


def test_integers_and_floats_may_stand_in_one_column_of_the_data_set():
    first, second = dataset_of([{"x": 1}, {"x": 0.5}]).as_numpy_iterator()
    assert (first["x"], second["x"]) == (1.0, 0.5)
