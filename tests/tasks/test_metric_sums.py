"""Scores as functions of sums over the examples, and metrics that are made again from a file."""

import dataclasses
import json

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from promot_t5x.errors import UserError
from promot_t5x.tasks import exact_match, metrics
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.chrf import Chrf
from promot_t5x.tasks.rouge import Rouge

WORDS = "der Hund, die Katze und das (kleine) Haus; es-war 3,5 Meter hoch – doch „gut“.".split()
LABELS = ("True", "False", "Neither")
METRICS = [
    metrics.accuracy,
    metrics.exact_match,
    metrics.macro_f1(LABELS),
    exact_match.trivia_qa,
    exact_match.squad,
    Bleu(),
    Bleu("13a"),
    Bleu("zh"),
    Chrf(),
    Chrf(2),
    exact_match.ShortAnswers("squad", words="unicode"),
    Rouge(),
    Rouge(words="unicode"),
]


def answers(metric, examples, seed=0):
    """Targets, some with several references, and predictions from right to empty."""
    rng = np.random.default_rng(seed)
    if isinstance(metric, metrics.MacroF1 | metrics.Accuracy):
        said = rng.choice([*LABELS, "", "true"], size=(2, examples), p=[0.4, 0.3, 0.2, 0.05, 0.05])
        return [t if t in LABELS else "True" for t in said[0].tolist()], said[1].tolist()

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(0, 12)))

    targets = [text() if rng.random() < 0.5 else [text(), text()] for _ in range(examples)]
    predictions = [
        (target if isinstance(target, str) else target[-1]) if rng.random() < 0.3 else text()
        for target in targets
    ]
    return targets, predictions


@pytest.mark.parametrize("metric", METRICS)
def test_a_score_is_a_function_of_sums_of_any_samples(metric):
    targets, predictions = answers(metric, 40)
    statistics = metric.example_statistics(targets, predictions)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(40, np.full(40, 1 / 40), size=(2, 3))
    sampled = metric.value(counts @ statistics)
    assert tuple(sampled) == metric.scores
    for place in np.ndindex(2, 3):
        chosen = np.repeat(np.arange(40), counts[place])
        scored = metric([targets[i] for i in chosen], [predictions[i] for i in chosen])
        for name in metric.scores:
            assert sampled[name][place] == pytest.approx(scored[name], rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_the_score_of_an_example_alone(metric):
    targets, predictions = answers(metric, 40)
    alone = metric.example_score(metric.example_statistics(targets, predictions))
    assert alone.shape == (40,)
    assert alone.min() >= 0
    assert alone.max() <= 100
    for n in range(40):
        if isinstance(metric, Bleu):
            scorer = sacrebleu.BLEU(tokenize=metric.tokenise, effective_order=True)
            wanted = scorer.sentence_score(predictions[n], metrics.references(targets[n])).score
        else:
            wanted = metric(targets[n : n + 1], predictions[n : n + 1])[metric.scores[0]]
        assert alone[n] == pytest.approx(wanted, abs=1e-9)


def test_a_short_right_sentence_is_right():
    statistics = Bleu().example_statistics(["Guten Tag", "Ja"], ["Guten Tag", ""])
    assert Bleu().example_score(statistics).tolist() == [100.0, 0.0]
    assert Bleu()(["Guten Tag"], ["Guten Tag"])["bleu"] == 0.0  # of a corpus, as sacreBLEU has it


@pytest.mark.parametrize("examples", [1, 2, 5, 60])
@pytest.mark.parametrize("tokenise", ["intl", "13a"])
def test_bleu_of_small_corpora_with_missing_ngrams_is_sacrebleus(examples, tokenise):
    metric = Bleu(tokenise)
    for seed in range(8):
        targets, predictions = answers(metric, examples, seed)
        columns = [[metrics.references(t)[0] for t in targets]]
        columns += [[([*metrics.references(t), None])[1] for t in targets]]
        theirs = sacrebleu.corpus_bleu(predictions, columns, tokenize=tokenise).score
        assert metric(targets, predictions)["bleu"] == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def test_the_statistics_of_rouge_are_the_f_measures():
    targets, predictions = answers(Rouge(), 20)
    scorer = RougeScorer(["rouge2", "rouge1"])
    statistics = Rouge().example_statistics(targets, predictions)
    for row, target, prediction in zip(statistics, targets, predictions, strict=True):
        found = scorer.score_multi(metrics.references(target), prediction)
        assert row[:2].tolist() == [found["rouge2"].fmeasure, found["rouge1"].fmeasure]
        assert row[-1] == 1


def test_sums_do_not_depend_on_the_order():
    statistics = np.random.default_rng(0).random((1000, 3)) * [1, 1e-9, 1e9]
    shuffled = np.random.default_rng(1).permutation(statistics)
    assert (metrics.total(statistics) == metrics.total(shuffled)).all()


# ------------------------------------------------------------------------------------ specs


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_is_made_again_from_a_file(metric):
    written = json.dumps(metrics.spec(metric))
    assert metrics.from_spec(json.loads(written)) == metric


def share_of_es(targets, predictions):
    return {"es": 100 * sum("e" in p for p in predictions) / len(targets)}


@dataclasses.dataclass(frozen=True)
class LengthRatio(metrics.MeanOfExamples):
    most: float
    scores = ("length",)

    def shares(self, targets, predictions):
        for target, prediction in zip(targets, predictions, strict=True):
            yield (min(self.most, len(prediction) / len(target)) / self.most,)


def test_a_metric_of_ones_own_is_found_by_its_module():
    assert metrics.spec(share_of_es) == {"module": __name__, "function": "share_of_es"}
    assert metrics.from_spec(metrics.spec(share_of_es)) is share_of_es
    mine = LengthRatio(most=2.0)
    assert metrics.spec(mine) == {
        "module": __name__,
        "function": "LengthRatio",
        "settings": {"most": 2.0},
    }
    assert metrics.from_spec(json.loads(json.dumps(metrics.spec(mine)))) == mine
    assert mine(["ab", "ab"], ["ab", ""]) == {"length": 25.0}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"metric": "blue"}, "no metric 'blue'. Did you mean 'bleu'"),
        ({"metric": "bleu", "tokenise": "tlh"}, "Bleu does not take .*'tlh'"),
        ({"metric": "bleu", "case": "lower"}, "Bleu does not take {'case': 'lower'}"),
        ({"module": "no_such_module", "function": "f"}, "f of the module no_such_module"),
        (metrics.spec(lambda targets, predictions: {}), "a lambda"),
        ({}, "cannot be imported"),
    ],
)
def test_a_spec_that_is_no_metric_says_why(spec, said):
    with pytest.raises(UserError, match=said):
        metrics.from_spec(spec)
