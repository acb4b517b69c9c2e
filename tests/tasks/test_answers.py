"""Labels read from what models say, in every way that they say them."""

import json

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks import LabelAtStart, accuracy, jsonl, macro_f1, registry, text_task

TRUE_FALSE = ("True", "False")
SUBJECTS = ("Society & Culture", "Society", "Science")


@pytest.mark.parametrize(
    ("labels", "said", "read"),
    [
        (TRUE_FALSE, "True", "True"),
        (TRUE_FALSE, "  True\n", "True"),
        (TRUE_FALSE, "True.", "True"),
        (TRUE_FALSE, "True…", "True"),
        (TRUE_FALSE, "“True”", "True"),
        (TRUE_FALSE, "«True»", "True"),
        (TRUE_FALSE, "**True**", "True"),
        (TRUE_FALSE, "- True", "True"),
        (TRUE_FALSE, "• True", "True"),
        (TRUE_FALSE, "(True)", "True"),
        (TRUE_FALSE, "¿True?", "True"),
        (TRUE_FALSE, "True, because", "True"),
        (TRUE_FALSE, "True—because", "True"),
        (TRUE_FALSE, "True\n\nQ: next", "True"),
        (TRUE_FALSE, "true", "true"),
        (TRUE_FALSE, "Truely", "Truely"),
        (TRUE_FALSE, "It is True", "It is True"),
        (TRUE_FALSE, "True/False", "True/False"),
        (TRUE_FALSE, "", ""),
        (TRUE_FALSE, "“”", "“”"),
        (("no", "yes"), "no-one", "no-one"),
        (("no", "yes"), "nothing", "nothing"),
        (("no", "yes"), "no - one", "no"),
        (("no", "yes"), "- yes", "yes"),
        (("no", "not sure"), "not  sure at all", "not sure"),
        (("3", "4"), "3.5", "3.5"),
        (("3", "4"), "3.", "3"),
        (("1", "-1"), "-1", "-1"),
        (("1", "-1"), "1", "1"),
        (("是", "不是"), "是。", "是"),
        (("是", "不是"), "不是的", "不是"),
        (("是", "不是"), "「不是」", "不是"),
        (("はい", "いいえ"), "いいえ、違います", "いいえ"),
        (("ใช่", "ไม่ใช่"), "ไม่ใช่ครับ", "ไม่ใช่"),
        (("हाँ", "नहीं"), "नहीं।", "नहीं"),
        (("नह", "नहीं"), "नहीं", "नहीं"),
        (("نعم", "لا"), "نعم،", "نعم"),
        (SUBJECTS, "Society & Culture", "Society & Culture"),
        (SUBJECTS, "Society & Culture.", "Society & Culture"),
        (SUBJECTS, "Society and more", "Society"),
        (("C", "C++", "C#"), "C++", "C++"),
        (("C", "C++", "C#"), "C#.", "C#"),
        (("C", "C++", "C#"), "C", "C"),
        (("C", "C++", "C#"), "C, I think", "C"),
        (("C", "C++", "C#"), "CPython", "CPython"),
        ((".NET", "Java"), "`.NET`", ".NET"),
        (("not_entailment", "entailment"), "not_entailment", "not_entailment"),
    ],
)
def test_the_longest_label_at_the_start_is_read(labels, said, read):
    assert LabelAtStart(labels)(said) == read


def test_every_label_reads_as_itself():
    for labels in (TRUE_FALSE, SUBJECTS, ("C", "C++", "C#"), ("-1", "1", "+1"), ("?", "!")):
        assert [LabelAtStart(labels)(label) for label in labels] == list(labels)


def test_space_around_targets_makes_no_answer_wrong(tmp_path):
    import seqio

    path = tmp_path / "dev.jsonl"
    rows = [{"q": "a", "y": " yes\t", "t": "Paris "}, {"q": "b", "y": "no", "t": " Rome"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    labeled = text_task(
        name="spaced_labels",
        source=jsonl(path),
        inputs="{q}",
        target="{y}",
        labels=(" no ", "yes"),
        metrics=[accuracy, macro_f1(("no", "yes"))],
    )
    assert labeled.labels == ("no", "yes")
    free = text_task(name="spaced_text", source=jsonl(path), inputs="{q}", target="{t}")
    mixed = text_task(
        name="spaced_mix", source=jsonl(path), inputs="{q}", target="{y} ", labels=("no", "yes")
    )
    for definition, said in ((labeled, ["yes", "no"]), (free, ["Paris", "Rome"]),
                             (mixed, ["yes", "no"])):  # fmt: skip
        data = definition.build(seqio.ByteVocabulary()).get_dataset(None, "train", shuffle=False)
        targets = [definition.reference(row) for row in data.as_numpy_iterator()]
        scores = definition.score(targets, [definition.postprocess(text) for text in said])
        assert set(scores.values()) == {100.0}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ((), "a label is empty in ()"),
        (("no", " "), "a label is empty"),
        (("no", "no "), "the label 'no' is given twice"),
        ("yes", "labels are a list of texts, got 'yes'"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels, said):
    with pytest.raises(UserError) as caught:
        text_task(name="t", source=jsonl("x"), inputs="{q}", target="{y}", labels=labels)
    assert said in str(caught.value)


def test_the_papers_tasks_read_their_first_word():
    for name in ("rte", "snli", "cb", "wic", "openbookqa"):
        task = registry.get_task(name)
        assert task.postprocess("True-ish, perhaps") == "True-ish"
        assert task.postprocess("“True”") == "“True”"
