"""Intervals and tests against published implementations, definitions and normal theory."""

import itertools
import logging
import math

import numpy as np
import pytest
import sacrebleu
from sacrebleu.significance import PairedTest
from scipy import stats

from promot_t5x.report.statistics import bootstrap, estimates, seeds, significance
from promot_t5x.report.statistics.bootstrap import bca_interval, generator, resampled_sums
from promot_t5x.tasks import metrics
from promot_t5x.tasks.bleu import Bleu

WORDS = "the cat sat on a mat and looked at the small dog that ran away".split()


def with_count(values):
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=-1)


def scored(*models):
    return [(metrics.accuracy, np.stack(models))]


def estimate(values, task="task", resamples=2000):
    """The mean, in percent, of values in [0, 1]."""
    (made,) = estimates.of_task(task, scored(with_count(values)), resamples=resamples)
    return made["accuracy"]


def sentences(examples, seed, error):
    """A reference text of several words an example, and a translation with errors."""
    rng = np.random.default_rng(seed)
    targets = [list(rng.choice(WORDS, rng.integers(4, 15))) for _ in range(examples)]
    said = [[w if rng.random() > error else rng.choice(WORDS) for w in t] for t in targets]
    return [" ".join(t) for t in targets], [" ".join(s) for s in said]


# --------------------------------------------------------------------------------- resamples


def test_a_resample_is_as_many_examples_drawn_with_replacement():
    rng = np.random.default_rng(0)
    values = rng.random((50, 2))
    rows = np.concatenate([values, np.eye(50)], axis=-1)
    sums = resampled_sums(rows, generator(0, "x"), resamples=20_000)
    counts = sums[:, 2:]
    assert (counts == counts.round()).all() and (counts.sum(axis=-1) == 50).all()
    np.testing.assert_allclose(sums[:, :2], counts @ values, rtol=1e-12)
    # Multinomial: each example once on average, with variance 1 - 1/n and covariance -1/n.
    np.testing.assert_allclose(counts.mean(axis=0), 1.0, atol=0.04)
    np.testing.assert_allclose(np.cov(counts.T), np.eye(50) - 1 / 50, atol=0.08)


def test_chunks_are_one_stream(monkeypatch):
    rows = np.random.default_rng(0).random((30, 2))
    whole = resampled_sums(rows, generator(3, "x"), resamples=101)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 30 * 7)
    np.testing.assert_allclose(resampled_sums(rows, generator(3, "x"), resamples=101), whole)


def test_draws_depend_on_seed_and_task_alone():
    rng = np.random.default_rng(0)
    one, two = (with_count(rng.integers(0, 2, 40)) for _ in range(2))

    def samples(task, *rows, seed=0):
        made = estimates.of_task(task, scored(*rows), seed=seed, resamples=50)
        return [each["accuracy"].samples.tolist() for each in made]

    assert samples("cb", one) == samples("cb", one, two)[:1]
    assert samples("cb", one, one)[0] == samples("cb", one, one)[1]
    assert samples("cb", one) != samples("wic", one)
    assert samples("cb", one) != samples("cb", one, seed=1)


# --------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("power", [1, 4])
def test_bca_is_scipys(power):
    rng = np.random.default_rng(0)
    data = [rng.random(n) ** power for n in (23, 57)]

    def statistic(first, second, axis=-1):
        return first.mean(axis=axis) + second.mean(axis=axis) ** 2

    resampled = [x[rng.integers(len(x), size=(3000, len(x)))] for x in data]
    samples = statistic(*resampled)
    theirs = stats.bootstrap(
        data,
        statistic,
        n_resamples=0,
        bootstrap_result=stats._resampling.BootstrapResult(None, samples, None),
        method="BCa",
    ).confidence_interval
    left_out = [
        np.array([statistic(np.delete(data[0], i), data[1]) for i in range(23)]),
        np.array([statistic(data[0], np.delete(data[1], i)) for i in range(57)]),
    ]
    mine = bca_interval(float(statistic(*data)), samples, left_out)
    assert mine == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_the_interval_of_a_mean_is_normal_theorys_for_many_examples():
    values = np.clip(np.random.default_rng(0).normal(0.5, 0.1, 3000), 0, 1)
    made = estimate(values, resamples=10_000)
    error = 100 * values.std() / math.sqrt(3000)
    assert made.value == pytest.approx(100 * values.mean())
    assert made.standard_error == pytest.approx(error, rel=0.03)
    assert made.interval.low == pytest.approx(made.value - 1.96 * error, abs=0.1 * error)
    assert made.interval.high == pytest.approx(made.value + 1.96 * error, abs=0.1 * error)


def test_intervals_cover():
    """95% intervals of a share of 0.85 among 56 answers, as of CB, hold it about that often."""
    rng = np.random.default_rng(0)
    made = [
        estimate(rng.random(56) < 0.85, task=str(n), resamples=400).interval for n in range(400)
    ]
    assert np.mean([low <= 85 <= high for low, high in made]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("right", [0, 1])
def test_where_all_examples_are_alike_the_interval_is_clopper_and_pearsons(right):
    made = estimate(np.full(56, right))
    theirs = stats.binomtest(56 * right, 56).proportion_ci(method="exact")
    assert made.interval == pytest.approx((100 * theirs.low, 100 * theirs.high))


def test_bleu_and_its_samples_are_those_of_the_resampled_texts():
    targets, said = sentences(25, seed=0, error=0.4)
    metric = Bleu()
    rows = metric.example_statistics(targets, said)
    (made,) = estimates.of_task("de", [(metric, rows[None])], resamples=30)
    drawn = generator(0, "de").integers(25, size=(30, 25), dtype=np.int32)
    for sample, indices in zip(made["bleu"].samples, drawn, strict=True):
        wanted = [targets[i] for i in indices]
        theirs = sacrebleu.corpus_bleu([said[i] for i in indices], [wanted], tokenize="intl")
        assert sample == pytest.approx(theirs.score)
    left = [sacrebleu.corpus_bleu(said[1:], [targets[1:]], tokenize="intl").score]
    assert made["bleu"].left_out["de"][:1] == pytest.approx(left)


def test_sacrebleus_paired_bootstrap():
    """The same draws give sacreBLEU's interval, and its one-sided p-value."""
    targets, base = sentences(60, seed=1, error=0.30)
    _, better = sentences(60, seed=1, error=0.26)
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    _, theirs = PairedTest(
        [("base", base), ("better", better)],
        {"BLEU": sacrebleu.BLEU(tokenize="intl", references=[targets])},
        references=None,
        test_type="bs",
        n_samples=400,
    )()
    metric = Bleu()
    indices = np.random.default_rng(12345).choice(60, size=(400, 60), replace=True)
    counts = np.stack([np.bincount(row, minlength=60) for row in indices])
    samples = [
        metric.value(counts @ metric.example_statistics(targets, said))["bleu"]
        for said in (base, better)
    ]
    for mine, result in zip(samples, theirs["BLEU"], strict=True):
        assert mine.mean() == pytest.approx(result.mean, rel=1e-5)
        low, high = np.sort(mine)[[10, 389]]
        assert (high - low) / 2 == pytest.approx(result.ci, rel=1e-4)
    difference = metric(targets, better)["bleu"] - metric(targets, base)["bleu"]
    resampled = samples[1] - samples[0]
    assert difference > 0 and (resampled > 0).mean() > 0.9
    upper = (np.abs(resampled) - np.abs(resampled).mean() > difference).sum()
    assert theirs["BLEU"][1].p_value == pytest.approx((upper + 1) / 401)
    # Both sides are counted here, each about the mean of the differences with their sign.
    moved = resampled - resampled.mean()
    far = (moved > difference).sum() + (moved < -difference).sum()
    assert bootstrap.p_value(difference, resampled) == pytest.approx((far + 1) / 401)


# ------------------------------------------------------------------- differences and means


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    first = rng.random(500)
    second = np.clip(first + rng.normal(0.01, 0.05, 500), 0, 1)
    pair = estimates.of_task("x", scored(with_count(first), with_count(second)), resamples=8000)
    difference = pair[1]["accuracy"] - pair[0]["accuracy"]
    alone = estimate(0.5 + (second - first) / 2, task="x", resamples=8000)
    assert difference.value == pytest.approx(2 * (alone.value - 50))
    np.testing.assert_allclose(difference.samples, 2 * (alone.samples - 50), atol=1e-9)
    assert difference.interval == pytest.approx([2 * (end - 50) for end in alone.interval])
    z = difference.value / (100 * (second - first).std() / math.sqrt(500))
    assert difference.p_value == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


def test_the_mean_over_tasks_is_independent_across_them():
    rng = np.random.default_rng(0)
    data = [rng.random(n) < p for n, p in ((56, 0.7), (300, 0.2), (1000, 0.5))]
    made = [estimate(d, task=str(n), resamples=8000) for n, d in enumerate(data)]
    mean = estimates.mean(made)
    assert mean.value == pytest.approx(np.mean([e.value for e in made]))
    error = 100 / 3 * math.sqrt(sum(d.var() / len(d) for d in data))
    assert mean.standard_error == pytest.approx(error, rel=0.03)
    assert mean.interval.low == pytest.approx(mean.value - 1.96 * error, abs=0.15 * error)
    # As many values with one example left out as there are examples, and each moves the mean.
    assert {task: len(values) for task, values in mean.left_out.items()} == {
        "0": 56,
        "1": 300,
        "2": 1000,
    }
    assert mean.left_out["1"][0] == pytest.approx(
        (made[0].value + 100 * np.delete(data[1], 0).mean() + made[2].value) / 3
    )


def test_no_difference_is_no_finding():
    made = estimate(np.random.default_rng(0).random(30))
    nothing = made - made
    assert nothing.value == 0 and nothing.interval == (0, 0) and nothing.p_value == 1
    assert estimates.mean([made]) is made


# ------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize(("gained", "lost"), list(itertools.product((0, 1, 3, 12), (0, 1, 7, 30))))
def test_mcnemar_is_the_binomial_test(gained, lost):
    first = np.array([True] * 20 + [False] * 10 + [False] * gained + [True] * lost)
    second = np.array([True] * 20 + [False] * 10 + [True] * gained + [False] * lost)
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert significance.mcnemar(first, second) == pytest.approx(wanted)
    assert significance.mcnemar(second, first) == pytest.approx(wanted)


def test_holm():
    # https://en.wikipedia.org/wiki/Holm-Bonferroni_method
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([]) == []
    # By definition the closure of Bonferroni's test: the largest p-value of any set with it.
    for seed in range(10):
        p = np.random.default_rng(seed).random(5) ** 3
        closed = [
            max(
                min(1.0, size * min(p[list(chosen)]))
                for size in range(1, 6)
                for chosen in itertools.combinations(range(5), size)
                if i in chosen
            )
            for i in range(5)
        ]
        assert significance.holm(list(p)) == pytest.approx(closed)


def test_the_smallest_difference_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(0)
    gained, lost, examples = 0.12, 0.06, 1000
    sample = np.repeat([1, -1, 0], [120, 60, 820])
    error = 100 * sample.std() / math.sqrt(examples)
    made = estimate((sample + 1) / 2, resamples=4000)
    doubled = estimates.combine([2.0], [made])
    smallest = significance.smallest_difference(doubled.standard_error)
    assert smallest == pytest.approx((1.959964 + 0.841621) * error, rel=0.05)
    # A true difference of that size: shift the gains.
    shift = smallest / 100 - (gained - lost)
    p = [gained + shift / 2, lost - shift / 2]
    drawn = rng.choice([1, -1, 0], p=[*p, 1 - sum(p)], size=(2000, examples))
    found = drawn.mean(axis=-1) / (drawn.std(axis=-1) / math.sqrt(examples)) > 1.96
    assert found.mean() == pytest.approx(0.80, abs=0.05)


def test_the_smallest_difference_of_mcnemar_is_six_examples():
    assert significance.smallest_difference(0.0) == 0
    assert significance.smallest_difference(0.0, examples=50) == pytest.approx(12)
    alike = np.array([True] * 44 + [False] * 6)
    assert significance.mcnemar(alike, np.ones(50, bool)) < 0.05
    assert significance.mcnemar(alike | (np.arange(50) == 44), np.ones(50, bool)) > 0.05


def test_seeds_are_students():
    values = [0.3, 1.2, 0.9, 2.0]
    made, theirs = seeds.over_seeds(values), stats.ttest_1samp(values, 0)
    assert made.interval == pytest.approx(theirs.confidence_interval())
    assert (made.mean, made.p_value) == pytest.approx((np.mean(values), theirs.pvalue))
    assert made.standard_error == pytest.approx(stats.sem(values)) and made.runs == 4
    # With as many seeds as one likes, the normal distribution's.
    few, many = (significance.smallest_difference(1.0, freedom=freedom) for freedom in (2.0, 1e9))
    assert few == pytest.approx(stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2))
    assert many == pytest.approx(significance.smallest_difference(1.0))

    other = [0.1, 0.3, 0.2]
    welch, theirs = (
        seeds.unpaired_difference(values, other),
        stats.ttest_ind(values, other, equal_var=False),
    )
    assert welch.interval == pytest.approx(theirs.confidence_interval())
    assert welch.p_value == pytest.approx(theirs.pvalue)

    fixed, theirs = seeds.unpaired_difference(values, [0.5]), stats.ttest_1samp(values, 0.5)
    assert fixed.p_value == pytest.approx(theirs.pvalue)
    assert math.isnan(seeds.over_seeds([1.0]).p_value)
    assert math.isnan(seeds.unpaired_difference([1.0], [2.0]).interval.low)
    assert seeds.over_seeds([2.0, 2.0]).interval == (2, 2)
