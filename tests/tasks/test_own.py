"""Tasks of one's own: every source, what goes wrong with files, and shots and scores for free."""

import json
import sys

import pytest

from promot_t5x.data.questions import read_questions
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.errors import UserError
from promot_t5x.tasks import (
    accuracy,
    hugging_face,
    jsonl,
    macro_f1,
    register,
    registry,
    text_task,
    tfds,
    tsv,
)
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.sources import dataset_of

MODULE = """
from promot_t5x.tasks import jsonl, register, text_task

register(text_task(
    name="rain",
    source=jsonl({train!r}, validation={dev!r}),
    inputs="Report: {{report}} Rain? answer:",
    target="{{wet}}",
    labels=("no", "yes"),
))
"""


def rows(count, start=0):
    return [{"report": f"cloud {n}", "wet": n % 2} for n in range(start, start + count)]


def write_jsonl(path, given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return str(path)


def examples(definition, split="validation", vocabulary=None, **settings):
    import seqio

    task = definition.build(vocabulary or seqio.ByteVocabulary(), **settings)
    return task, list(task.get_dataset(None, split, shuffle=False).as_numpy_iterator())


def test_a_module_of_ten_lines_gets_shots_dialects_metrics_and_records(tmp_path):
    import seqio

    train = write_jsonl(tmp_path / "train.jsonl", rows(8))
    dev = write_jsonl(tmp_path / "dev.jsonl", rows(6, start=8))
    file = tmp_path / "my_rain_tasks.py"
    file.write_text(MODULE.format(train=train, dev=dev))
    vocabulary = seqio.ByteVocabulary(extra_ids=125)
    dialect = Dialect(kind="span_corruption", sentinel="both")
    (bound,) = resolve_tasks("rain_2shot", vocabulary, module=str(file), dialect=dialect)
    assert (bound.scored_split, bound.splits) == ("validation", ("train", "validation"))
    found = read_questions(bound, "validation", limit=None, token_budget=200, answer_length=8)
    assert [question.id for question in found] == [f"dev-{n}" for n in range(1, 7)]
    words = ("no", "yes")
    for question, row in zip(found, rows(6, start=8), strict=True):
        one, other, query = question.text.split("\n\n")
        assert query == f"Report: {row['report']} Rain? answer: <extra_id_0>"
        assert question.answer == f"<extra_id_0> {words[row['wet']]}"
        shown = [f"Report: {r['report']} Rain? answer: {words[r['wet']]}" for r in rows(8)]
        assert one in shown
        assert other in shown
    task = bound.task
    wanted = [task.postprocess_fn("", example=q.example, is_target=True) for q in found]
    said = [task.postprocess_fn("<extra_id_0> no.", example=q.example) for q in found]
    assert (wanted, said) == (["no", "yes"] * 3, ["no"] * 6)
    scores = [metric(wanted, said) for metric in task.predict_metric_fns]
    assert scores == [{"accuracy": 50.0}]


def test_tab_separated_columns(tmp_path):
    (tmp_path / "dev.tsv").write_text('word\tcode\n"quoted\t1\nzwei\t2\n\n')
    definition = text_task(
        name="codes",
        source=tsv(tmp_path / "dev.tsv"),
        inputs="{word} =",
        target="{code}",
        prefix="Q",
    )
    assert definition.splits == ("train",)
    assert definition.scored_split == "train"
    task, made = examples(definition, "train")
    assert [row["inputs_pretokenized"] for row in made] == [b'"quoted =', b"zwei ="]
    assert [row["answer"] for row in made] == [b"1", b"2"]
    assert [row["id"] for row in made] == [b"dev-1", b"dev-2"]
    assert task.postprocess_fn("2 Q more", example=made[1]) == "2"


def test_a_tfds_builder_with_slices_as_splits(real_rows):
    definition = text_task(
        name="own_wic",
        source=tfds("super_glue/wic:1.0.2", {"train": "train[:50%]", "dev": "validation[:10]"}),
        inputs="{word}?",
        target="{label}",
        labels=["different", "same"],
        metrics=[accuracy, macro_f1(["different", "same"])],
        example_id="{idx}",
    )
    _, made = examples(definition, definition.scored_split)
    assert definition.scored_split == "dev"
    assert len(made) == 10
    assert {row["answer"] for row in made} == {b"different", b"same"}


def test_hugging_face_data_need_their_package(monkeypatch):
    definition = text_task(
        name="hub",
        source=hugging_face("some/data", splits={"train": "train", "validation": "dev"}),
        inputs="{q}",
        target="{a}",
    )
    assert definition.splits == ("train", "validation")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="'some/data' needs the package `datasets`: install it"):
        examples(definition)


def test_hugging_face_rows_are_read_by_load_dataset(monkeypatch):
    """The package is not a dependency: what it is asked, and what becomes of its rows."""
    import types

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return [{"q": "why", "a": {"text": ["so", "thus"]}, "image": object(), "note": None}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    source = hugging_face("some", "part", splits={"validation": "dev[:5]"}, revision="abc")
    definition = text_task(
        name="hub2", source=source, inputs="{q}", target="{a.text.0}", references="a.text"
    )
    task, (row,) = examples(definition)
    assert asked == [(("some", "part"), {"split": "dev[:5]", "revision": "abc"})]
    assert (row["answer"], row["id"]) == (b"so", b"validation-0")
    assert task.postprocess_fn("", example=row, is_target=True) == ["so", "thus"]


def test_kinds_of_fields():
    given = [
        {"t": "a", "n": 1, "x": 1, "b": True, "l": ["p", "q"], "d": {"e": [1]}, "o": object()},
        {"t": None, "n": 2, "x": 0.5, "b": False, "l": [], "d": {"e": []}, "o": None},
    ]
    first, second = dataset_of(given).as_numpy_iterator()
    assert (first["t"], first["n"], first["x"], first["b"]) == (b"a", 1, 1.0, b"True")
    assert (second["t"], second["x"], second["b"]) == (b"", 0.5, b"False")
    assert first["l"].tolist() == [b"p", b"q"]
    assert second["l"].tolist() == []
    assert first["d"]["e"].tolist() == [1]
    assert "o" not in first


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{'a': 1}\n", r"train.jsonl: line 1 is not JSON"),
        ('{"report": "x", "wet": 1}\n[]\n', "line 2 is not a JSON object"),
        ('{"report": "x", "wet": 1}\n{"report": "y"}\n', "row 2 has no field 'wet', which other"),
        ('{"report": "x", "wet": 1}\n{"report": 7, "wet": 1}\n', "'report' holds int in some rows"),
        ("", "a split has no rows"),
        (None, "the train rows cannot be read: .*train.jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_explained(tmp_path, lines, message):
    path = tmp_path / "train.jsonl"
    if lines is not None:
        path.write_text(lines)
    definition = text_task(
        name="broken", source=jsonl(path), inputs="{report}", target="{wet}", labels=("no", "yes")
    )
    with pytest.raises(UserError, match=message):
        examples(definition, "train")
    (tmp_path / "bad.tsv").write_text("a\tb\n1\n")
    with pytest.raises(UserError, match="line 2 has 1 columns, the first line names 2"):
        tsv(tmp_path / "bad.tsv").rows("train")


def test_contradicting_settings_and_a_taken_name(tmp_path):
    settings = {"source": jsonl("x"), "inputs": "{a}", "target": "{b}"}
    with pytest.raises(UserError, match="has labels, .* and a prefix"):
        text_task(name="t", labels=("a",), prefix="Q:", **settings)
    registry.names()
    with pytest.raises(UserError, match="'rte' is registered already"):
        register(text_task(name="rte", **settings))
