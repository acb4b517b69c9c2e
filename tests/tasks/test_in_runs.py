"""What runs make of tasks: records, losses, lengths of answers, rates, and stores."""

import json

import numpy as np
import pytest
from etils import epath

from promot_t5x import decoding
from promot_t5x.data.sources import resolve_tasks
from promot_t5x.data.store import open_store
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.evaluation import evaluator as evaluate
from promot_t5x.evaluation import records
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network import transformer
from promot_t5x.runs.batch_contents import describe
from promot_t5x.tasks import Bleu, Mixture, jsonl, register, text_task
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.format import Format

pytestmark = pytest.mark.slow

LENGTHS = {"inputs": 96, "targets": 2}
SPAN = Dialect(kind="span_corruption", sentinel="both")


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Two tasks of one's own, their mixture, and a task of SeqIO's registry."""
    import seqio

    directory = tmp_path_factory.mktemp("rows")
    for split, start in (("train", 0), ("validation", 50)):
        rows = [{"text": f"wind {n} " * (n % 7), "wet": n % 2} for n in range(start, start + 12)]
        lines = "\n".join(map(json.dumps, rows))
        (directory / f"{split}.jsonl").write_text(lines)
    source = jsonl(directory / "train.jsonl", validation=directory / "validation.jsonl")
    shared = {"source": source, "inputs": "Q: {text} A:", "article": "text"}
    register(
        text_task(name="run_wet", target="{wet}", labels=("no", "yes"), output_length=5, **shared)
    )
    register(
        text_task(name="run_copy", target="{text}", metrics=(Bleu(),), output_length=7, **shared)
    )
    register(Mixture(name="run_both", description="", rates={"run_wet": 1.0, "run_copy": 3.0}))
    feature = seqio.Feature(vocabulary=seqio.ByteVocabulary(extra_ids=125))
    seqio.TaskRegistry.add(
        "run_seqio",
        source=seqio.TextLineDataSource({"validation": str(directory / "validation.jsonl")}),
        preprocessors=[
            lambda data: data.map(lambda line: {"inputs": line, "targets": "no"}),
            seqio.preprocessors.tokenize,
            seqio.preprocessors.append_eos,
        ],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=lambda output, is_target=False, **_: f"<{output}>",
        metric_fns=[lambda targets, predictions: {"seen": float(len(set(targets)))}],
    )
    yield
    seqio.TaskRegistry.remove("run_seqio")


@pytest.fixture(scope="module")
def model():
    import seqio

    vocabulary = seqio.ByteVocabulary(extra_ids=125)
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
        dialect=SPAN,
        task_format=Format(shot_seed=3),
    )


@pytest.fixture(scope="module")
def params(model):
    import jax

    return model.initial_params(jax.random.key(0))


def ask(model, params, name, lengths, *, batch_size=8, **settings):
    config = evaluate.EvalConfig(
        mixture_or_task_name=name,
        task_feature_lengths=lengths,
        batch_size=batch_size,
        method=decoding.Greedy(),
        **settings,
    )
    evaluator = evaluate.Evaluator(model, config, Partitioner(num_partitions=1))
    return evaluator, evaluator.run(params, name)


def test_a_mixture_is_asked_with_each_tasks_split_shots_and_length_of_answers(
    registered, model, params, tmp_path, capsys
):
    evaluator, (wet, copy) = ask(
        model, params, "run_both_1shot", {"inputs": 96}, split=None, num_examples=6
    )
    # Both lengths of answers fit into one kind of program.
    assert {length for _, length in evaluator.compilations} == {7}
    assert (wet.task, list(wet.metrics)) == ("run_wet_1shot", ["accuracy"])
    strange = [r for r in wet.records if r["prediction"] not in ("no", "yes")]
    assert strange
    assert wet.counts["unmatched answers"] == len(strange)
    assert (copy.task, list(copy.metrics)) == ("run_copy_1shot", ["bleu", "bleu_13a"])
    dropped = {}
    for result in (wet, copy):
        assert [record["id"] for record in result.records] == [
            f"validation-{n}" for n in range(1, 7)
        ]
        for record in result.records:
            assert record["inputs"].endswith(" A: <extra_id_0>")
            assert len(record["shots"]) + record["dropped_shots"] == 1
            assert all(shot.startswith("train-") for shot in record["shots"])
        dropped[result.task] = sum(record["dropped_shots"] for record in result.records)
        assert result.counts["demonstrations dropped"] == dropped[result.task]
        assert result.counts["inputs cut"] == 0
    assert dropped["run_copy_1shot"] > 0
    said = capsys.readouterr().out
    count = dropped["run_copy_1shot"]
    assert f"run_copy_1shot: 6 questions (demonstrations dropped: {count}" in said
    records.write(records.EvalRun(directory=epath.Path(tmp_path)), [wet, copy])
    summary = json.loads((tmp_path / "inference_eval/run_copy_1shot-000000.json").read_text())
    assert "tok:intl" in summary["signatures"]["bleu"]
    assert summary["counts"]["demonstrations dropped"] == count
    assert wet.labels == ["no", "yes"]
    assert copy.labels == []


def test_another_batch_size_shows_the_same_demonstrations(registered, model, params):
    shown = [
        [record["shots"] for record in result.records]
        for size in (8, 16)
        for result in ask(model, params, "run_wet_1shot", LENGTHS, batch_size=size)[1]
    ]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 12


def test_a_task_of_seqios_registry_keeps_its_own_ways(registered, model, params):
    _, (result,) = ask(model, params, "run_seqio", {"inputs": 16, "targets": 4})
    assert result.metrics == {"seen": 1.0}
    assert all(record["target"] == "<no>" for record in result.records)
    assert all("shots" not in record for record in result.records)
    assert result.counts == {"inputs cut": 12}
    with pytest.raises(UserError, match="'run_seqio' does not say how long its answers are"):
        ask(model, params, "run_seqio", {"inputs": 16})


def test_rates_of_a_run_take_the_place_of_the_mixtures(registered, model):
    def shares(**rates):
        tasks = resolve_tasks("run_both", model.vocabulary, rates=rates)
        return [task.rate for task in tasks]

    assert shares() == [0.25, 0.75]
    assert shares(run_wet=3.0) == [0.5, 0.5]
    with pytest.raises(UserError, match="RATES has a rate of 'run_wett', .* Did you mean 'run_wet"):
        shares(run_wett=1.0)
    with pytest.raises(UserError, match="rate 0.0 in mixture"):
        shares(run_wet=0.0)


def test_a_store_says_how_many_examples_lost_what(registered, model, tmp_path):
    (task,) = resolve_tasks("run_wet_1shot", model.vocabulary, dialect=SPAN)
    lengths = {"inputs": 30, "targets": 8}
    built = open_store(task, "train", cache_dir=tmp_path, text_lengths=lengths)
    again = open_store(task, "train", cache_dir=tmp_path, text_lengths=lengths)
    assert built.truncation_counts == again.truncation_counts
    assert built.truncation_counts["demonstrations dropped"] > 0
    assert built.truncation_counts["articles cut"] > 0
    assert built.lengths(np.arange(len(built)))["inputs"].max() <= 30
    said = describe(task, "train", built, {"inputs": 0, "targets": 2})
    assert said.startswith("run_wet_1shot/train, 12 examples (")
    assert f"articles cut: {built.truncation_counts['articles cut']}" in said
    assert said.endswith("targets cut: 2)")
    other = open_store(task, "train", cache_dir=tmp_path, text_lengths=lengths | {"inputs": 400})
    assert not any(other.truncation_counts.values())
    plain = resolve_tasks("run_wet_1shot", model.vocabulary)[0]
    plain_store = open_store(plain, "train", cache_dir=tmp_path, text_lengths=lengths)
    assert plain_store.content_hash != built.content_hash


def test_a_dialect_that_the_vocabulary_cannot_speak_is_refused_by_name():
    import seqio

    with pytest.raises(UserError, match="SENTINEL = 'both'.*has no sentinels"):
        resolve_tasks("rte", seqio.ByteVocabulary(extra_ids=0), dialect=SPAN)
