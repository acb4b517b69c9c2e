"""Tasks by name: laziness, errors, and one definition built for several vocabularies."""

import dataclasses
import subprocess
import sys

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks import metrics, registry
from promot_t5x.tasks.registry import Mixture, TaskDef
from promot_t5x.tasks.templates import Template

ROWS = {
    "n": [7, 8],
    "text": ["one two", "three"],
    "answers": [["a", "b"], ["c", "d"]],
}


def rows_task(**changes):
    """A task of two rows that is not registered."""
    import seqio
    import tensorflow as tf

    settings = {
        "name": "two_rows",
        "description": "two rows",
        "source": lambda: seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(ROWS),
            splits=("train",),
        ),
        "splits": ("train",),
        "template": Template(question="say {text}", answer="{n}", example_id="row-{n}"),
        "metrics": (metrics.exact_match, metrics.accuracy),
        "references": "answers",
        "output_length": 4,
    }
    return TaskDef(**(settings | changes))


def examples(task, lengths=None, split="train"):
    return list(task.get_dataset(lengths, split, shuffle=False).as_numpy_iterator())


def test_the_registry_needs_no_tensorflow_to_know_every_definition():
    code = (
        "import sys; from promot_t5x.tasks import registry as r; names = r.names();"
        "[r.is_mixture(n) and r.get_mixture(n) or r.is_task(n) and r.get_task(n) for n in names];"
        "assert 'rte' in names and 'tiny_icl_1shot' in names, names;"
        "heavy = {'tensorflow', 'seqio', 'jax', 'flax'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_sorted_and_match_a_glob():
    names = registry.names()
    assert names == sorted(names)
    assert set(registry.names("tiny_icl_*_1shot")) == set(
        registry.get_mixture("tiny_icl_1shot").rates
    )
    assert len(registry.names("tiny_icl_*_1shot")) == 8
    assert registry.names("no such *") == []


def test_tasks_and_mixtures_are_told_apart():
    assert registry.is_task("rte")
    assert not registry.is_mixture("rte")
    assert registry.is_mixture("tiny_icl_1shot")
    assert not registry.is_task("tiny_icl_1shot")
    assert not registry.is_task("absent")
    assert not registry.is_mixture("absent")
    with pytest.raises(UserError, match="is a mixture, not a task"):
        registry.get_task("tiny_icl_1shot")
    with pytest.raises(UserError, match="is a task, not a mixture"):
        registry.get_mixture("rte")


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(UserError, match="no task 'tiny_rt'. Did you mean 'tiny_rte'?"):
        registry.get_task("tiny_rt")
    with pytest.raises(UserError, match="no mixture 'tiny_icl_1shots'. Did you mean"):
        registry.get_mixture("tiny_icl_1shots")


def test_a_name_can_be_taken_only_once_and_mixtures_are_checked(monkeypatch):
    registry.names()
    monkeypatch.setattr(registry, "_DEFINITIONS", dict(registry._DEFINITIONS))
    with pytest.raises(UserError, match="registered already"):
        registry.register(dataclasses.replace(registry.get_task("rte"), description="mine"))
    registry.register(Mixture(name="broken", description="", rates={"rte": 1.0, "rto": 1.0}))
    with pytest.raises(UserError, match="'rto', which is not a task. Did you mean 'rte'?"):
        registry.get_mixture("broken")


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_positive_is_refused(rate):
    with pytest.raises(UserError, match="must be above 0"):
        Mixture(name="m", description="", rates={"rte": rate})
    with pytest.raises(UserError, match="has no tasks"):
        Mixture(name="m", description="", rates={})


def test_a_built_task_keeps_text_id_and_references():
    import seqio

    vocabulary = seqio.ByteVocabulary()
    first, second = examples(rows_task().build(vocabulary))
    assert vocabulary.decode(first["inputs"].tolist()) == "say one two"
    assert vocabulary.decode(first["targets"].tolist()) == "7"
    assert first["inputs"][-1] == first["targets"][-1] == vocabulary.eos_id
    assert first["inputs"].dtype == first["targets"].dtype == "int32"
    assert first["inputs_pretokenized"] == b"say one two"
    assert second["targets_pretokenized"] == b"8"
    assert (first["id"], second["id"]) == (b"row-7", b"row-8")
    assert rows_task().reference(second) == ["c", "d"]
    assert rows_task(references=None).reference(second) == "8"


def test_a_question_that_is_too_long_is_cut_before_its_cue():
    import seqio

    vocabulary = seqio.ByteVocabulary()
    template = Template(question="say {text}:", answer="{n}", example_id="row-{n}")
    task = rows_task(template=template).build(vocabulary)
    first, second = examples(task, {"inputs": 9, "targets": 9})
    assert first["inputs_pretokenized"] == b"say one:"
    assert vocabulary.decode(first["inputs"].tolist()) == "say one:"
    assert first["inputs"][-1] == vocabulary.eos_id
    assert len(first["inputs"]) == 9
    assert (first["cut_articles"], second["cut_articles"]) == (1, 1)


def test_text_that_was_written_elsewhere_is_trimmed_from_the_right_and_keeps_eos():
    import seqio

    vocabulary = seqio.ByteVocabulary()
    definition = registry.get_task("tiny_rte")
    (row, *_) = examples(definition.build(vocabulary), {"inputs": 6, "targets": 9}, "validation")
    assert len(row["inputs"]) == 6
    assert row["inputs"][-1] == vocabulary.eos_id
    assert row["inputs_pretokenized"].decode().startswith(vocabulary.decode(row["inputs"].tolist()))


def test_any_number_of_shots_makes_a_task_of_its_own_name():
    task = registry.get_task("rte_3shot")
    assert (task.name, task.base, task.shots) == ("rte_3shot", "rte", 3)
    assert registry.get_task("rte").shots == 0
    assert registry.is_task("rte_0shot")
    assert "rte_1shot" in registry.names()
    assert "rte_3shot" not in registry.names()
    for name in ("rte_01shot", "rte_-1shot", "rte_shot", "nothing_1shot", "rte_1shot_1shot"):
        assert not registry.is_task(name)
        assert not registry.is_mixture(name)
    mixture = registry.get_mixture("rte_wmt14_enfr_2shot")
    assert mixture.rates == {"rte_2shot": 1.0, "wmt14_enfr_2shot": 1.0}
    with pytest.raises(UserError, match="there is no task 'rt_1shot'. Did you mean 'rte_1shot'?"):
        registry.get_task("rt_1shot")


def test_a_task_without_a_template_is_shown_as_it_stands():
    import seqio

    definition = registry.get_task("tiny_rte_2shot")
    vocabulary = seqio.ByteVocabulary()
    row = examples(definition.build(vocabulary), split="validation")[0]
    one, other, query = row["inputs_pretokenized"].decode().split("\n\n")
    assert one != other
    assert all(d.split()[-1] in ("True", "False") for d in (one, other))
    plain = examples(registry.get_task("tiny_rte").build(vocabulary), split="validation")[0]
    assert query == plain["inputs_pretokenized"].decode()


def test_the_format_reaches_bleu_and_rouge():
    import seqio

    from promot_t5x.tasks.format import Format

    chosen = Format(bleu_tokenise="13a", rouge_stem=True)
    for name, field, value in (("wmt16_ende", "tokenise", "13a"), ("xsum", "stem", True)):
        built = registry.get_task(name).build(seqio.ByteVocabulary(), format=chosen)
        (metric,) = built.predict_metric_fns
        assert getattr(metric, field) == value


def test_one_definition_serves_two_vocabularies_and_no_global_registry_learns_of_it():
    import seqio

    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    definition = registry.get_task("tiny_rte")
    as_bytes = examples(definition.build(seqio.ByteVocabulary()), split="validation")[0]
    as_words = examples(definition.build(WordVocabulary()), split="validation")[0]
    assert as_bytes["inputs_pretokenized"] == as_words["inputs_pretokenized"]
    assert len(as_bytes["inputs"]) > len(as_words["inputs"]) == 10
    assert "tiny_rte" not in seqio.TaskRegistry.names()


def test_seqio_scores_as_the_definition_does():
    import seqio

    definition = rows_task()
    task = definition.build(seqio.ByteVocabulary())
    rows = examples(task)
    targets = [task.postprocess_fn("x", example=row, is_target=True) for row in rows]
    answers = [
        task.postprocess_fn(text, example=row) for text, row in zip(("b ", "x"), rows, strict=True)
    ]
    assert targets == [["a", "b"], ["c", "d"]]
    assert answers == ["b", "x"]
    by_seqio = {}
    for metric in task.predict_metric_fns:
        by_seqio.update(metric(targets, answers))
    assert by_seqio == definition.score(targets, answers)
    assert by_seqio == {"exact_match": 50.0, "accuracy": 50.0}


def test_a_missing_field_is_named():
    import seqio

    task = rows_task(references="aliases").build(seqio.ByteVocabulary())
    with pytest.raises(UserError, match="task 'two_rows' needs the field aliases of its rows"):
        task.get_dataset(None, "train", shuffle=False)
