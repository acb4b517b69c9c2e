"""Names to tasks: both registries, nested mixtures, and what a user can get wrong."""

import pytest

from promot_t5x.data.sources import import_task_module, resolve_tasks
from promot_t5x.errors import UserError

MODULE = "data_tasks"


@pytest.fixture(scope="module")
def vocabulary():
    import seqio

    return seqio.ByteVocabulary(extra_ids=5)


def test_a_task_of_the_users_module(vocabulary):
    (task,) = resolve_tasks("cubes", vocabulary, module=MODULE, split="train")
    assert (task.name, task.rate, task.prompt_index) == ("cubes", 1.0, 0)
    assert task.splits == ("train", "validation")


def test_nested_mixtures_flatten_in_order_with_multiplied_rates(vocabulary):
    tasks = resolve_tasks("cubes_nested", vocabulary, module=MODULE)
    assert [(task.name, task.prompt_index) for task in tasks] == [
        ("cubes", 0),
        ("cubes_again", 1),
        ("cubes_noisy", 2),
    ]
    assert [task.rate for task in tasks] == pytest.approx([0.0625, 0.1875, 0.75])


def test_tasks_and_mixtures_of_the_project_are_built_for_the_models_vocabulary(
    vocabulary, monkeypatch
):
    from promot_t5x.tasks import registry

    names = ["cb", "rte"]
    mixture = registry.Mixture(name="a_mix", description="", rates={names[0]: 1.0, names[1]: 3.0})
    monkeypatch.setitem(registry._DEFINITIONS, "a_mix", mixture)
    (single,) = resolve_tasks(names[0], vocabulary)
    assert single.task.output_features["inputs"].vocabulary == vocabulary
    assert single.splits == registry.get_task(names[0]).splits
    both = resolve_tasks("a_mix", vocabulary)
    assert [task.name for task in both] == names
    assert [task.rate for task in both] == pytest.approx([0.25, 0.75])


def test_a_module_given_as_a_file_is_imported_once(tmp_path):
    file = tmp_path / "my_own_tasks.py"
    file.write_text("COUNT = []\n")
    assert import_task_module(str(file)) is import_task_module(str(file))
    other = tmp_path / "deeper" / "my_own_tasks.py"
    other.parent.mkdir()
    other.write_text("")
    with pytest.raises(UserError, match="rename the file"):
        import_task_module(str(other))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("broken_syntax.py", "def f(:\n", "broken_syntax.py' failed with SyntaxError"),
        ("broken_import.py", "import not_to_be_found\n", "No module named 'not_to_be_found'"),
        ("missing.py", None, "no file"),
    ],
)
def test_a_module_that_fails_is_the_users_to_mend(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        import_task_module(str(tmp_path / name))


def test_a_module_that_is_not_found_is_named():
    with pytest.raises(UserError, match="MIXTURE_OR_TASK_MODULE 'no.such.module' failed"):
        import_task_module("no.such.module")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cubez", "named 'cubez'.*Did you mean 'cubes'.*Known names: "),
        ("cubes_other_vocabulary", r"ByteVocabulary \(size 259\), but the model's.*\(size 264\)"),
        ("cubes_idle", "'cubes_again' has rate 0.0 in mixture 'cubes_idle'"),
    ],
)
def test_names_and_vocabularies_that_do_not_fit(vocabulary, name, message):
    with pytest.raises(UserError, match=message):
        resolve_tasks(name, vocabulary, module=MODULE)


def test_a_missing_split_is_refused_with_those_there_are(vocabulary):
    with pytest.raises(UserError, match="'cubes' has no split 'valid'; it has 'train', 'valid"):
        resolve_tasks("cubes_nested", vocabulary, module=MODULE, split="valid")


def test_a_name_of_both_registries_is_refused(vocabulary, monkeypatch):
    from promot_t5x.tasks import registry

    import_task_module(MODULE)
    twin = registry.Mixture(name="cubes", description="", rates={"other": 1.0})
    monkeypatch.setitem(registry._DEFINITIONS, "cubes", twin)
    with pytest.raises(UserError, match="give yours another name"):
        resolve_tasks("cubes", vocabulary)


def test_data_that_were_never_prepared_are_explained(vocabulary, tmp_path):
    import seqio

    feature = seqio.Feature(vocabulary=vocabulary)
    source = seqio.TfdsDataSource("super_glue/rte:1.0.2", tfds_data_dir=str(tmp_path))
    seqio.TaskRegistry.add(
        "never_prepared",
        source=source,
        preprocessors=[],
        output_features={"inputs": feature, "targets": feature},
    )
    with pytest.raises(UserError, match="'never_prepared' cannot be listed.*--tfds_data_dir"):
        resolve_tasks("never_prepared", vocabulary)
