"""Evaluation: what is asked, what comes back, and what is written down of it."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_tasks import VOCABULARY as BYTES
from engine_helpers import QUICKLY, random_params, tiny_config

from promot_t5x import decoding
from promot_t5x.data.questions import trim
from promot_t5x.decoding import decoder
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.evaluation import evaluator as evaluator_module
from promot_t5x.evaluation import scoring
from promot_t5x.evaluation.evaluator import EvalConfig, Evaluator
from promot_t5x.evaluation.validation_loss import ValidationLoss
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.network.prompt import prompt_ids
from promot_t5x.network.transformer import Transformer
from promot_t5x.tasks import jsonl, register, text_task
from promot_t5x.tasks.tiny.episodes import target_rows
from promot_t5x.tasks.tiny.vocabulary import WordVocabulary
from promot_t5x.training import state

pytestmark = pytest.mark.slow

LENGTHS = {"inputs": 24, "targets": 5}
PROMPT_LENGTH = 4
TOLERANCE = 3e-4  # of a log-probability; batches of other sizes add up in another order
SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "head_dim": 8}


def model_for(vocabulary, num_prompts):
    config = tiny_config(
        vocab_size=vocabulary.vocab_size,
        num_prompts=num_prompts,
        prompt_length=PROMPT_LENGTH if num_prompts else 0,
        **SMALL,
    )
    return EncoderDecoderModel(
        module=Transformer(config=config),
        input_vocabulary=vocabulary,
        output_vocabulary=vocabulary,
    )


def config_for(task, **changes):
    settings = {
        "mixture_or_task_name": task,
        "task_feature_lengths": LENGTHS,
        "batch_size": 8,
        "method": decoding.Greedy(),
        "num_examples": 20,
    }
    return EvalConfig(**{**settings, **changes})


def lively_params(model, seed=0):
    """Random weights whose answers differ from one question to the next."""
    return jax.tree.map(lambda a: 2 * a, random_params(model, seed))


def on_mesh(partitioner, model, params):
    return partitioner.place(params, partitioner.shard_tree(model.param_axes(), params))


def ask(evaluator, partitioner, params):
    with partitioner.activate():
        return evaluator.run(on_mesh(partitioner, evaluator.model, params), "test")


def certain(params, vocabulary, word):
    """Weights with which the model answers `word`, whatever it is asked."""
    flat = {path: np.zeros_like(leaf) for path, leaf in state.flatten(params).items()}
    embedding = np.random.default_rng(0).normal(size=params["token_embedder"]["embedding"].shape)
    flat["token_embedder/embedding"] = embedding.astype(np.float32)
    flat["decoder/decoder_norm/scale"] = np.ones_like(flat["decoder/decoder_norm/scale"])
    # With all layers silent, the decoder's output is the embedding of the token before.
    answer = vocabulary.encode(word)[0]
    flat["decoder/logits_dense/kernel"][:, answer] = embedding[0]
    flat["decoder/logits_dense/kernel"][:, vocabulary.eos_id] = embedding[answer]
    return state.unflatten(flat)


@pytest.fixture(scope="module")
def words():
    return WordVocabulary()


@pytest.fixture(scope="module")
def prompted(words):
    """(evaluator with a prompt, its parameters, its results) of twenty rows of tiny_rte."""
    partitioner, model = Partitioner(num_partitions=2), model_for(words, 1)
    evaluator = Evaluator(model, config_for("tiny_rte"), partitioner)
    params = lively_params(model)
    return evaluator, partitioner, params, ask(evaluator, partitioner, params)


@functools.lru_cache
def one_at_a_time(module, max_decode_length):
    return jax.jit(
        functools.partial(
            decoder.decode,
            module,
            max_decode_length=max_decode_length,
            method=decoding.Greedy(),
        ),
        compiler_options=QUICKLY,
    )


def answer_alone(model, params, ids):
    """(text, log-probability) of one question, by itself in its batch."""
    row = np.zeros((1, 32), np.int32)
    row[0, : len(ids)] = ids
    decodes = one_at_a_time(model.module, LENGTHS["targets"])(params, jnp.asarray(row))
    text = model.vocabulary.decode([int(i) for i in decodes.ids[0, -1]])
    return text, float(decodes.scores[0, -1])


def test_records_hold_the_rows_of_the_source_in_its_order(prompted):
    *_, (result,) = prompted
    rows = target_rows("entailment", 200, split="validation")
    assert result.task == "tiny_rte"
    assert [record["id"] for record in result.records] == [str(i) for i in rows["id"][:20]]
    assert [record["inputs"] for record in result.records] == list(rows["inputs"][:20])
    assert [record["target"] for record in result.records] == list(rows["targets"][:20])
    assert {record["task"] for record in result.records} == {"tiny_rte"}
    assert result.counts["inputs cut"] == 0
    json.dumps(result.records)


def test_answers_are_those_of_asking_one_by_one(prompted, words):
    evaluator, _, params, (result,) = prompted
    assert len({record["output"] for record in result.records}) > 3
    for record in result.records:
        text = [*words.encode(record["inputs"]), words.eos_id]
        ids = [*prompt_ids(evaluator.model.config, 0), *text]
        output, log_prob = answer_alone(evaluator.model, params, ids)
        assert record["output"] == output
        assert record["log_prob"] == pytest.approx(log_prob, abs=TOLERANCE)
        assert record["log_prob"] < 0


def test_the_prompt_is_asked_with_or_left_off(prompted, words):
    evaluator, partitioner, params, (with_prompt,) = prompted
    model = evaluator.model.without_prompt()
    bare = {k: v for k, v in state.flatten(params).items() if "prompt/" not in k}
    plain = Evaluator(model, config_for("tiny_rte", num_examples=4), partitioner)
    (without,) = ask(plain, partitioner, state.unflatten(bare))
    assert len(without.records) == 4
    for record, other in zip(without.records, with_prompt.records, strict=False):
        assert (record["id"], record["inputs"]) == (other["id"], other["inputs"])
        assert abs(record["log_prob"] - other["log_prob"]) > 10 * TOLERANCE
        text = [*words.encode(record["inputs"]), words.eos_id]
        assert record["log_prob"] == pytest.approx(
            answer_alone(model, state.unflatten(bare), text)[1], abs=TOLERANCE
        )


def test_metrics_follow_from_the_records_and_a_run_with_new_weights_compiles_nothing(
    prompted, words
):
    evaluator, partitioner, params, _ = prompted
    compiled = list(evaluator.compilations)
    assert compiled
    scores = {}
    for word in ("True", "False"):
        (result,) = ask(evaluator, partitioner, certain(params, words, word))
        assert {record["output"] for record in result.records} == {word}
        right = [record["prediction"] == record["target"] for record in result.records]
        assert result.metrics == {"exact_match": pytest.approx(100 * np.mean(right))}
        scores[word] = result.score
    assert evaluator.compilations == compiled
    assert 0 < scores["True"] < 100
    assert sum(scores.values()) == pytest.approx(100)


def test_every_task_of_a_mixture_is_asked_behind_its_own_prompt():
    partitioner, model = Partitioner(num_partitions=2), model_for(BYTES, 2)
    params = lively_params(model)
    config = config_for("zz_pair", module="data_tasks", num_examples=None)
    evaluator = Evaluator(model, config, partitioner)
    results = ask(evaluator, partitioner, params)
    assert [result.task for result in results] == ["cubes", "cubes_again"]
    for index, result in enumerate(results):
        assert [record["target"] for record in result.records] == [str(i) for i in range(7)]
        for record in result.records[::3]:
            text = [*BYTES.encode(record["inputs"]), BYTES.eos_id]
            ids = [*prompt_ids(model.config, index), *text]
            output, log_prob = answer_alone(model, params, ids)
            assert record["output"] == output
            assert record["log_prob"] == pytest.approx(log_prob, abs=TOLERANCE)
    # Both tasks hold the same questions; only the prompt differs.
    pairs = list(zip(*(result.records for result in results), strict=True))
    assert all(a["inputs"] == b["inputs"] for a, b in pairs)
    assert all(abs(a["log_prob"] - b["log_prob"]) > 10 * TOLERANCE for a, b in pairs)
    assert all(np.isnan(result.score) for result in results)


def test_the_validation_loss_is_that_of_each_target_token():
    """Five examples in batches of eight, packed and not; by themselves in a plain network."""
    partitioner, model = Partitioner(num_partitions=2), model_for(BYTES, 1)
    params = lively_params(model)
    config = config_for("cubes", module="data_tasks", num_examples=5)
    questions = Evaluator(model, config, partitioner).questions
    measured = [
        ValidationLoss(model, config, questions, partitioner, pack=pack).measure(
            on_mesh(partitioner, model, params), None
        )
        for pack in (False, True)
    ]
    loss, right, tokens = 0.0, 0, 0
    for number in range(5):
        text = [*BYTES.encode(f"say {number**3}"), BYTES.eos_id]
        inputs = np.asarray([[*prompt_ids(model.config, 0), *text]], np.int32)
        target = np.asarray([[*BYTES.encode(str(number)), BYTES.eos_id]], np.int32)
        shifted = np.concatenate([[[0]], target[:, :-1]], axis=1).astype(np.int32)
        logits = model.module.apply({"params": params}, inputs, shifted, target)
        log_probs = np.asarray(jax.nn.log_softmax(np.asarray(logits, np.float64)))[0]
        loss -= sum(log_probs[place, token] for place, token in enumerate(target[0]))
        right += int((log_probs.argmax(-1) == target[0]).sum())
        tokens += target.size
    for found in (each["cubes"] for each in measured):
        assert found["loss"] == pytest.approx(loss / tokens, rel=1e-5)
        assert found["loss"] == found["loss_per_nonpadding_target_token"]
        assert found["loss"] == pytest.approx(found["cross_ent_loss"] + found["z_loss"])
        assert found["accuracy"] == pytest.approx(right / tokens)


def test_an_input_that_is_too_long_is_cut_and_counted():
    partitioner, model = Partitioner(num_partitions=2), model_for(BYTES, 1)
    params = lively_params(model)
    # "say 0" to "say 216" and an EOS: six tokens to eight.
    lengths = {"inputs": PROMPT_LENGTH + 6, "targets": LENGTHS["targets"]}
    config = config_for("cubes", module="data_tasks", task_feature_lengths=lengths)
    (result,) = ask(Evaluator(model, config, partitioner), partitioner, params)
    asked = [[*BYTES.encode(record["inputs"]), BYTES.eos_id] for record in result.records]
    assert [len(text) for text in asked] == [6, 6, 6, 7, 7, 8, 8]
    assert result.counts["inputs cut"] == 4
    for record, text in zip(result.records, asked, strict=True):
        cut = trim(np.asarray(text, np.int32), 6, BYTES.eos_id)
        assert len(cut) == 6
        assert cut[-1] == BYTES.eos_id
        assert cut[:5].tolist() == text[:5]
        ids = [*prompt_ids(model.config, 0), *cut]
        output, log_prob = answer_alone(model, params, ids)
        assert record["output"] == output
        assert record["log_prob"] == pytest.approx(log_prob, abs=TOLERANCE)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """A task whose answers are labels, eight rows of it."""
    path = tmp_path_factory.mktemp("labeled") / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": n, "label": n % 2}) + "\n" for n in range(8)))
    source = jsonl(train=str(path), validation=str(path))
    template = {"inputs": "{q}?", "target": "{label}", "labels": ["no", "yes"]}
    register(text_task(name="evaluator_labeled", source=source, **template))
    return "evaluator_labeled"


@pytest.mark.parametrize(
    ("method", "best"),
    [
        (decoding.Greedy(), {"accuracy": 100.0}),
        (decoding.RankClassification(), {"accuracy": 100.0}),
        (decoding.Likelihood(), {"perplexity": 1.0}),
    ],
)
def test_right_answers_score_at_best_by_whatever_method(labeled, method, best):
    config = config_for(labeled, method=method, num_examples=None)
    evaluator = Evaluator(model_for(BYTES, 0), config, Partitioner())
    (asked,) = evaluator.questions.by_task
    by_likelihood = isinstance(method, decoding.Likelihood)
    result = scoring.check_scoring(asked, BYTES, by_likelihood=by_likelihood)
    assert best.items() <= result.metrics.items()
    assert len(result.records) == 8


def test_of_many_questions_the_first_are_checked_and_all_are_asked(words, monkeypatch, capsys):
    monkeypatch.setattr(evaluator_module, "_CHECKED", 6)
    evaluator = Evaluator(
        model_for(words, 0), config_for("tiny_rte", num_examples=None), Partitioner()
    )
    evaluator.check("[stage]")
    said = "[stage]: checked the first 6 questions of tiny_rte"
    assert said in capsys.readouterr().out
    evaluator.check("[stage]")
    assert said not in capsys.readouterr().out
    (asked,) = evaluator.questions.by_task
    assert len(asked.questions) == 200
    few = Evaluator(model_for(words, 0), config_for("tiny_rte", num_examples=6), Partitioner())
    few.check("[stage]")
    assert "checked the first" not in capsys.readouterr().out


def test_bad_input_is_refused_before_anything_is_read(words):
    partitioner = Partitioner()
    lengths = {"inputs": PROMPT_LENGTH, "targets": 4}
    with pytest.raises(UserError, match="prompt of 4 vectors leaves no room") as error:
        Evaluator(
            model_for(words, 1), config_for("tiny_rte", task_feature_lengths=lengths), partitioner
        )
    assert "TASK_FEATURE_LENGTHS['inputs'] = 4" in str(error.value)
    with pytest.raises(UserError, match="'tiny_rte' has 1 tasks but NUM_PROMPTS = 2"):
        Evaluator(model_for(words, 2), config_for("tiny_rte"), partitioner)
    with pytest.raises(UserError, match="batch_size = 6 is not divisible by the 8 devices"):
        Evaluator(model_for(words, 1), config_for("tiny_rte", batch_size=6), partitioner)
    with pytest.raises(UserError, match="no split 'tset'.*'test'"):
        Evaluator(model_for(words, 1), config_for("tiny_rte", split="tset"), partitioner)
    with pytest.raises(UserError, match="Did you mean 'tiny_rte'"):
        Evaluator(model_for(words, 1), config_for("tiny_rtee"), partitioner)
