"""What becomes of metric values of every kind that SeqIO takes, and of rows without references."""

import json
import math

import numpy as np
import pytest
from etils import epath

from promot_t5x.data.questions import read_questions
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.evaluation import evaluator as evaluate
from promot_t5x.evaluation import records, scoring, target_checks
from promot_t5x.evaluation.question_set import TaskQuestions
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network import transformer
from promot_t5x.tasks import jsonl, metrics, register, squad, text_task


def lengths(targets, predictions):
    import seqio

    sizes = [len(prediction) for prediction in predictions]
    return {
        "sample": seqio.metrics.Text(f"**{predictions[0]}**"),
        "mean_length": seqio.metrics.Scalar(sum(sizes) / len(sizes)),
        "lengths": seqio.metrics.Histogram(np.array(sizes), bins=2),
        "per_example": [float(size) for size in sizes],
        "longest": np.int64(max(sizes)),
        "as_array": np.array(sizes[0]),
        "many": np.zeros(20_000, np.uint8),
    }


@pytest.fixture(scope="module")
def vocabulary():
    import seqio

    return seqio.ByteVocabulary(extra_ids=125)


@pytest.fixture(scope="module")
def seqio_task(vocabulary):
    """Registered tasks, by name, that differ in their metrics."""
    import seqio
    import tensorflow as tf

    def rows(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        return tf.data.Dataset.from_tensor_slices({"inputs": ["a", "b"], "targets": ["xy", "z"]})

    made = {"values_of_all_kinds": [lengths], "values_none": []}
    for name, functions in made.items():
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(rows, splits=["validation"]),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={f: seqio.Feature(vocabulary) for f in ("inputs", "targets")},
            metric_fns=functions,
        )
    yield
    for name in made:
        seqio.TaskRegistry.remove(name)


def marked(name, vocabulary, said):
    (task,) = resolve_tasks(name, vocabulary)
    questions = read_questions(task, "validation", limit=None, token_budget=20, answer_length=8)
    answers = [{"ids": [vocabulary.encode(text)], "log_probs": [-1.0]} for text in said]
    asked = TaskQuestions(
        task=task, split="validation", questions=questions, encoded=[], truncation_counts={}
    )
    return scoring.score_answers(asked, answers, vocabulary, by_likelihood=False)


def test_what_is_no_number_is_kept_in_the_records_and_is_no_score(seqio_task, vocabulary, tmp_path):
    result = marked("values_of_all_kinds", vocabulary, ["long", "it"])
    assert result.metrics == {"mean_length": 3.0, "longest": 4.0, "as_array": 4.0}
    assert (result.primary, result.score) == ("mean_length", 3.0)
    assert result.other_values == {
        "sample": "**long**",
        "lengths": {"values": [4, 2], "bins": 2},
        "per_example": [4.0, 2.0],
        "many": "an array of uint8 of shape [20000]",
    }
    assert [record["score"] for record in result.records] == [4.0, 2.0]
    run = records.EvalRun(directory=epath.Path(tmp_path))
    records.write(run, [result])
    recorded = records.read(run, "values_of_all_kinds")
    assert recorded.result() == result
    assert records.recomputed(recorded.summary(), recorded.records()) == result.metrics


def test_a_task_without_a_number_has_no_score(seqio_task, vocabulary):
    unscored = marked("values_none", vocabulary, ["", ""])
    assert unscored.primary is None
    assert math.isnan(unscored.score)


def model_for(vocabulary):
    shape = transformer.T5Config(
        vocab_size=384,
        emb_dim=8,
        num_heads=1,
        num_encoder_layers=1,
        num_decoder_layers=1,
        head_dim=8,
        mlp_dim=8,
    )
    return EncoderDecoderModel(
        module=transformer.Transformer(config=shape),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
    )


def evaluator_of(name, vocabulary, **settings):
    from promot_t5x import decoding

    config = evaluate.EvalConfig(
        mixture_or_task_name=name,
        task_feature_lengths={"inputs": 40, "targets": 8},
        batch_size=8,
        method=decoding.Greedy(),
        **settings,
    )
    return evaluate.Evaluator(model_for(vocabulary), config, Partitioner(num_partitions=1))


def test_a_task_without_metrics_says_so_before_anything_runs(seqio_task, vocabulary, capsys):
    evaluator_of("values_none", vocabulary)
    assert "values_none: its answers are recorded but get no score" in capsys.readouterr().out


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_without_a_reference_are_refused_before_anything_is_decoded(tmp_path, vocabulary):
    rows = [{"q": "a", "a": ["x"]}, {"q": "b", "a": []}, {"q": "c", "a": []}]
    source = jsonl(write(tmp_path / "dev.jsonl", rows))
    shared = {"source": source, "inputs": "{q}", "references": "a", "metrics": [squad]}
    register(text_task(name="lacking_references", target="{q}", **shared))
    evaluator = evaluator_of("lacking_references", vocabulary, split="train")
    with pytest.raises(UserError) as caught:
        evaluator.questions.by_task  # noqa: B018
    assert str(caught.value).startswith(
        "Task 'lacking_references', split 'train': 2 of 3 rows have no right answer, an empty list "
        "of references: dev-2, dev-3. Leave such rows out"
    )
    # The target itself is missing: training needs it too.
    register(text_task(name="lacking_targets", target="{a.0}", **shared))
    evaluator = evaluator_of("lacking_targets", vocabulary, split="train")
    with pytest.raises(UserError) as caught:
        evaluator.questions.by_task  # noqa: B018
    assert str(caught.value) == (
        "The examples of task 'lacking_targets', split 'train', cannot be read: row dev-2: its list "  # noqa: E501
        "'a' has no item 0 (of 0; the first is 0)."
    )


def test_an_empty_list_is_what_a_metric_of_the_users_own_may_want(tmp_path, vocabulary):
    source = jsonl(write(tmp_path / "dev.jsonl", [{"q": "a", "a": []}]))

    def unanswerable(targets, predictions):
        return {"right": sum(bool(t) == bool(p) for t, p in zip(targets, predictions, strict=True))}

    register(
        text_task(
            name="own_metric_of_none",
            source=source,
            inputs="{q}",
            target="{q}",
            references="a",
            metrics=[unanswerable],
        )
    )
    (task,) = resolve_tasks("own_metric_of_none", vocabulary)
    questions = read_questions(task, "train", limit=None, token_budget=20, answer_length=8)
    target_checks.check_targets(task, "train", questions)


def test_plain_numbers_stay_the_numbers_they_are():
    assert metrics.numbers({"a": 1, "b": 0.1, "c": "3", "d": None}) == (
        {"a": 1.0, "b": 0.1},
        {"c": "3", "d": None},
    )
