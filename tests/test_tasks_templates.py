"""Templates against strings built in plain Python, on rows made up and real."""

import json

import pytest
from promot_t5x.tasks import registry, templates
from real_rows import SAMPLES

ROW = {"premise": "A {dog} barks.", "hypothesis": "It sleeps.", "idx": 12, "label": 1}


def render(preprocessor, rows):
    import tensorflow as tf

    columns = {field: [row[field] for row in rows] for field in rows[0]}
    made = preprocessor(tf.data.Dataset.from_tensor_slices(columns))
    return [
        {field: value.decode() for field, value in row.items()} for row in made.as_numpy_iterator()
    ]


def test_fill_puts_text_and_numbers_in_and_leaves_braces_of_the_row_alone():
    made = templates.fill("{idx}: {premise} {{x}} {premise}", ROW).numpy().decode()
    assert made == "12: A {dog} barks. {x} A {dog} barks."
    assert templates.fill("plain", ROW).numpy() == b"plain"
    with pytest.raises(KeyError, match="absent"):
        templates.fill("{absent}", ROW)


def test_a_template_for_the_answer_and_kept_fields():
    preprocessor = templates.render(
        "Translate: {premise}", "{hypothesis}", example_id="mt-{idx}", keep=("premise",)
    )
    assert render(preprocessor, [ROW]) == [
        {
            "premise": "A {dog} barks.",
            "inputs": "Translate: A {dog} barks.",
            "targets": "It sleeps.",
            "id": "mt-12",
        }
    ]


def test_rte_by_hand():
    (preprocessor,) = registry.get_task("rte").preprocessors
    rows = [ROW, {**ROW, "label": 0, "idx": 13}]
    text = "A {dog} barks. question: It sleeps. Is it true or false? answer:"
    assert render(preprocessor, rows) == [
        {"inputs": text, "targets": "False", "id": "12"},
        {"inputs": text, "targets": "True", "id": "13"},
    ]


def test_rte_scores_first_words_and_counts_the_rest():
    task = registry.get_task("rte")
    gold = ["True", "False", "True", "False"]
    scored = [task.postprocess(text) for text in ("True.", "False", "paris", "")]
    assert task.score(gold, gold) == {"accuracy": 100.0, "unmatched": 0.0}
    assert task.score(gold, scored) == {"accuracy": 50.0, "unmatched": 50.0}
    assert task.score(gold, [""] * 4) == {"accuracy": 0.0, "unmatched": 100.0}
    assert list(task.score(gold, gold))[0] == "accuracy"


def test_rte_reads_the_splits_that_have_labels_and_needs_no_network_to_be_built():
    import seqio

    definition = registry.get_task("rte")
    task = definition.build(seqio.ByteVocabulary())
    assert tuple(task.splits) == definition.splits == ("train", "validation")
    assert task.source.tfds_dataset.name == "super_glue/rte:1.0.2"


def test_real_rte_rows_read_as_the_paper_writes_them(real_rows):
    import seqio

    definition = registry.get_task("rte")
    task = definition.build(seqio.ByteVocabulary())
    bounds = json.loads((SAMPLES / "splits.json").read_text())["super_glue_rte"]["splits"]
    lines = (SAMPLES / "super_glue_rte.jsonl").read_text().splitlines()
    for split in definition.splits:
        wanted = {}
        for row in map(json.loads, lines[slice(*bounds[split])]):
            text = f"{row['premise']} question: {row['hypothesis']} "
            text += "Is it true or false? answer:"
            wanted[str(row["idx"])] = (text, ["True", "False"][row["label"]])
        rows = list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())
        made = {
            row["id"].decode(): (
                row["inputs_pretokenized"].decode(),
                row["targets_pretokenized"].decode(),
            )
            for row in rows
        }
        assert made == wanted and len(rows) == len(wanted) == 100
        gold = [definition.reference(row) for row in rows]
        assert definition.score(gold, gold) == {"accuracy": 100.0, "unmatched": 0.0}
