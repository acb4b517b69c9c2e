"""Questions with candidates of their own: what an evaluation scores is what lm-eval's rules say."""

import json

import jax
import numpy as np
import pytest
from engine_helpers import QUICKLY, random_params, tiny_config
from etils import epath

from promot_t5x import decoding
from promot_t5x.decoding import likelihood
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.evaluation import records
from promot_t5x.evaluation.evaluator import EvalConfig, Evaluator
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.transformer import Transformer
from promot_t5x.tasks import (
    Candidates,
    Continuation,
    MultipleChoice,
    jsonl,
    register,
    registry,
    text_task,
)
from promot_t5x.tasks.dialects import Dialect

pytestmark = pytest.mark.slow

TOLERANCE = 3e-4
EOS, SENTINEL = 1, 383
ROWS = [
    {"q": "grass", "all": ["green", "a very long shade of blue"], "right": 0},
    {"q": "snow", "all": ["black", "white", "red"], "right": 1},
    {"q": "coal", "all": ["é", "no colour"], "right": 1},
]
SENTENCES = [
    {"id": 4, "both": ["the cup", "the old shelf"], "right": 1, "end": "was tall."},
    {"id": 9, "both": ["a dog", "a cat"], "right": 0, "end": "ran."},
]
BOTH = Dialect(kind="span_corruption", sentinel="both")


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    directory = tmp_path_factory.mktemp("rows")
    for name, rows in (("colors", ROWS), ("sentences", SENTENCES)):
        path = directory / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    measures = MultipleChoice(("acc", "acc_norm", "acc_bytes"))
    common = {"output_length": 4, "scored_split": "train"}
    tasks = {
        "ranked_colors": text_task(
            name="ranked_colors",
            source=jsonl(directory / "colors.jsonl"),
            inputs="{q} is",
            target=Candidates(texts="all", label="right"),
            metrics=[measures],
            **common,
        ),
        "ranked_sentences": text_task(
            name="ranked_sentences",
            source=jsonl(directory / "sentences.jsonl"),
            inputs="{begin}",
            example_id="{id}",
            target=Candidates(texts=("{end}", "{end}"), label="right", questions="both"),
            preprocessors=[right_beginning],
            **common,
        ),
        "ranked_last": text_task(
            name="ranked_last",
            source=jsonl(directory / "colors.jsonl"),
            inputs="{q} is",
            target=Candidates(texts=("{all.0}",)),
            metrics=[Continuation()],
            **common,
        ),
    }
    for task in tasks.values():
        register(task)
    yield list(tasks)
    for name in tasks:
        del registry._DEFINITIONS[name]


def right_beginning(data):
    return data.map(lambda row: {**row, "begin": row["both"][row["right"]]})


@pytest.fixture(scope="module")
def vocabulary():
    import seqio

    return seqio.ByteVocabulary(extra_ids=125)


def model_for(vocabulary, dialect):
    config = tiny_config(vocab_size=384, num_encoder_layers=1, num_decoder_layers=1, num_heads=2)
    return EncoderDecoderModel(
        module=Transformer(config=config),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
        dialect=dialect,
    )


def evaluator_for(model, names, **changes):
    settings = {
        "split": None,
        "task_feature_lengths": {"inputs": 64},
        "batch_size": 8,
        "method": decoding.Greedy(),
    }
    config = EvalConfig(mixture_or_task_name=names, **(settings | changes))
    return Evaluator(model, config, Partitioner(num_partitions=1))


@pytest.fixture(scope="module")
def params(vocabulary):
    model = model_for(vocabulary, Dialect())
    return jax.tree.map(lambda a: 2 * a, random_params(model))


@pytest.fixture(scope="module")
def of(vocabulary, params):
    """The log-probability of bytes given bytes and an answer's first ids, one row at a time."""
    score = jax.jit(
        lambda batch: likelihood.score(model_for(vocabulary, BOTH).module, params, batch),
        compiler_options=QUICKLY,
    )

    def log_prob(question, candidate, sentinel):
        inputs, targets = np.zeros((1, 64), np.int32), np.zeros((1, 64), np.int32)
        asked = [3 + b for b in question.encode()] + [SENTINEL] * sentinel + [EOS]
        answer = [SENTINEL] * sentinel + [3 + b for b in candidate.encode()]
        inputs[0, : len(asked)], targets[0, : len(answer)] = asked, answer
        weights = (targets > 0).astype(np.int32)
        weights[0, :sentinel] = 0
        batch = {
            "encoder_input_tokens": inputs,
            "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
            "decoder_target_tokens": targets,
            "decoder_loss_weights": weights,
        }
        return float(score(batch)[0])

    return log_prob


@pytest.fixture(scope="module", params=[Dialect(), BOTH], ids=["plain", "sentinels"])
def answered(request, vocabulary, names, params, tmp_path_factory):
    """Dialect, results by task, and where they are on file."""
    model = model_for(vocabulary, request.param)
    evaluator = evaluator_for(model, names)
    partitioner = Partitioner(num_partitions=1)
    run = records.EvalRun(directory=epath.Path(tmp_path_factory.mktemp("run")))
    evaluator.check("test")
    placed = partitioner.place(params, partitioner.shard_tree(model.param_axes(), params))
    with partitioner.activate():
        results = evaluator.run(placed, "test", run)
    return request.param, {result.task: result for result in results}, run


def test_a_candidate_is_worth_its_own_tokens_after_a_space(answered, of):
    dialect, results, _ = answered
    for row, record in zip(ROWS, results["ranked_colors"].records, strict=True):
        wanted = [of(f"{row['q']} is", f" {text}", dialect.marks_targets) for text in row["all"]]
        found = record["prediction"]
        np.testing.assert_allclose(found["log_probs"], wanted, atol=TOLERANCE)
        assert found["answer"] == record["output"] == row["all"][int(np.argmax(wanted))]
        assert record["target"] == {
            "answer": row["all"][row["right"]],
            "right": row["right"],
            "candidates": row["all"],
        }


def test_accuracy_by_likelihood_by_character_and_by_byte(answered):
    _, results, run = answered
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    result = results["ranked_colors"]
    for row, record in zip(ROWS, result.records, strict=True):
        log_probs = record["prediction"]["log_probs"]
        sizes = {
            "acc": [1, 1, 1],
            "acc_norm": [len(text) for text in row["all"]],
            "acc_bytes": [len(text.encode()) for text in row["all"]],
        }
        for name, lengths in sizes.items():
            shares = [p / n for p, n in zip(log_probs, lengths, strict=False)]
            right[name].append(shares.index(max(shares)) == row["right"])
    assert result.metrics == {name: 100 * sum(each) / 3 for name, each in right.items()}
    recorded = records.read(run, "ranked_colors")
    assert records.recomputed(recorded.summary(), recorded.records()) == result.metrics


def test_candidates_with_questions_of_their_own(answered, of):
    dialect, results, _ = answered
    for row, record in zip(SENTENCES, results["ranked_sentences"].records, strict=True):
        wanted = [of(begin, f" {row['end']}", dialect.marks_targets) for begin in row["both"]]
        np.testing.assert_allclose(record["prediction"]["log_probs"], wanted, atol=TOLERANCE)
        chosen = row["both"][int(np.argmax(wanted))]
        assert record["output"] == f"{chosen} {row['end']}"
        assert record["score"] == 100.0 * (wanted[row["right"]] == max(wanted))


def test_the_last_word_has_a_perplexity_over_the_examples(answered, of):
    dialect, results, _ = answered
    wanted = [of(f"{r['q']} is", f" {r['all'][0]}", dialect.marks_targets) for r in ROWS]
    found = results["ranked_last"].metrics
    assert found["perplexity"] == pytest.approx(np.exp(-np.mean(wanted)), rel=1e-3)
    assert found["acc"] == 0.0


def test_a_question_that_was_cut_cannot_tell_its_candidates_apart(vocabulary, names):
    evaluator = evaluator_for(
        model_for(vocabulary, Dialect()), ["ranked_sentences"], task_feature_lengths={"inputs": 8}
    )
    with pytest.raises(UserError, match="Question '4' was cut, so that its candidates cannot be"):
        _ = evaluator.questions.by_task


def test_ranking_labels_needs_labels_or_candidates(vocabulary, names):
    method = decoding.RankClassification()
    evaluator_for(model_for(vocabulary, Dialect()), names, method=method)


def test_a_text_is_no_prediction_of_a_task_with_candidates(vocabulary, names):
    task = registry.get_task("ranked_colors")
    data = task.build(vocabulary).get_dataset(None, "train", shuffle=False)
    example = next(iter(data.as_numpy_iterator()))
    with pytest.raises(ValueError, match="scored by their likelihoods, and got the text 'green'"):
        task.score([task.reference(example)], ["green"])


def test_candidates_take_no_labels(names):
    task = registry.get_task("ranked_colors")
    with pytest.raises(UserError, match="has candidates, which are its answers: leave out labels"):
        text_task(
            name="x",
            source=task.source,
            inputs="{q}",
            target=task.candidates,
            labels=("green",),
        )
