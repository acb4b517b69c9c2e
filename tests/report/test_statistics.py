"""Intervals and tests against published implementations, definitions and normal theory."""

import dataclasses
import itertools
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from scipy import optimize, stats

from promot_t5x.report.statistics import bootstrap, estimates, significance, variance
from promot_t5x.report.statistics.bootstrap import bca_interval, generator, resampled_sums
from promot_t5x.report.statistics.scores import MCNEMAR, MeanScore, difference
from promot_t5x.tasks import metrics
from promot_t5x.tasks.bleu import Bleu
from tools import simulate_intervals

WORDS = [f"word{n}" for n in range(15)]


def with_count(values):
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=-1)


def one(made):
    """A cell of a single run on a single task."""
    return MeanScore([{"task": made}])


def interval(made):
    return one(made).interval


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
    assert (counts == counts.round()).all()
    assert (counts.sum(axis=-1) == 50).all()
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
    data = rng.random(57) ** power

    def statistic(values, axis=-1):
        return values.mean(axis=axis) ** 2

    samples = statistic(data[rng.integers(57, size=(3000, 57))])
    theirs = stats.bootstrap(
        (data,),
        statistic,
        n_resamples=0,
        bootstrap_result=stats._resampling.BootstrapResult(None, samples, None),
        method="BCa",
    ).confidence_interval
    left_out = np.array([statistic(np.delete(data, i)) for i in range(57)])
    mine = bca_interval(float(statistic(data)), samples, left_out.mean() - left_out)
    assert mine == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_the_interval_of_a_mean_is_normal_theorys_for_many_examples():
    values = np.clip(np.random.default_rng(0).normal(0.5, 0.1, 3000), 0, 1)
    made = estimate(values, resamples=10_000)
    error = 100 * values.std() / math.sqrt(3000)
    assert made.value == pytest.approx(100 * values.mean())
    assert made.samples.std() == pytest.approx(error, rel=0.03)
    assert math.sqrt(one(made).variance.questions) == pytest.approx(error, rel=1e-3)
    assert interval(made).low == pytest.approx(made.value - 1.96 * error, abs=0.1 * error)
    assert interval(made).high == pytest.approx(made.value + 1.96 * error, abs=0.1 * error)


def test_intervals_cover():
    """95% intervals of a share of 0.85 among 56 answers, as of CB, hold it about that often."""
    rng = np.random.default_rng(0)
    made = [
        interval(estimate(rng.random(56) < 0.85, task=str(n), resamples=400)) for n in range(400)
    ]
    assert np.mean([low <= 85 <= high for low, high in made]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("right", [0, 1])
def test_where_all_examples_are_alike_the_interval_is_clopper_and_pearsons(right):
    made = estimate(np.full(56, right))
    theirs = stats.binomtest(56 * right, 56).proportion_ci(method="exact")
    assert interval(made) == pytest.approx((100 * theirs.low, 100 * theirs.high))


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
    left = [
        sacrebleu.corpus_bleu(said[:i] + said[i + 1 :], [targets[:i] + targets[i + 1 :]],
                              tokenize="intl").score
        for i in range(25)
    ]  # fmt: skip
    jackknife = 24 / 25 * ((left - np.mean(left)) ** 2).sum()
    assert (made["bleu"].influence ** 2).sum() == pytest.approx(jackknife)


def test_a_difference_in_bleu_has_the_standard_error_of_sacrebleus_bootstrap():
    targets, base = sentences(300, seed=1, error=0.30)
    _, better = sentences(300, seed=1, error=0.26)
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    metric = Bleu()
    rows = np.stack([metric.example_statistics(targets, said) for said in (base, better)])
    made = [e["bleu"] for e in estimates.of_task("de", [(metric, rows)], resamples=1)]
    found = difference(one(made[0]), one(made[1]))
    theirs = [
        sacrebleu.corpus_bleu(said, [targets], tokenize="intl").score for said in (base, better)
    ]
    assert found.value == pytest.approx(theirs[1] - theirs[0])
    # sacreBLEU's resamples: indices with replacement, both systems on the same ones.
    rng = np.random.default_rng(12345)
    samples = []
    for _ in range(600):
        chosen = rng.choice(300, 300, replace=True)
        sums = rows[:, chosen].sum(axis=1)
        samples.append(float(np.diff(metric.value(sums)["bleu"])[0]))
    assert math.sqrt(found.variance.questions) == pytest.approx(np.std(samples), rel=0.08)


def test_equal_questions_are_resampled_together():
    rng = np.random.default_rng(0)
    right = rng.random(50) < 0.7
    once = estimates.of_task("x", scored(with_count(right)), resamples=50)[0]["accuracy"]
    rows = with_count(np.repeat(right, 4))
    twice = estimates.of_task(
        "x", scored(rows), questions=np.repeat(np.arange(50), 4), resamples=50
    )[0]["accuracy"]
    np.testing.assert_allclose(twice.samples, once.samples)
    np.testing.assert_allclose(twice.influence, once.influence, atol=1e-12)
    everything = np.ones(200)
    (all_right,) = estimates.of_task(
        "x", scored(with_count(everything)), questions=np.repeat(np.arange(50), 4), resamples=5
    )
    theirs = stats.binomtest(50, 50).proportion_ci(method="exact")
    assert interval(all_right["accuracy"]).low == pytest.approx(100 * theirs.low)


# ------------------------------------------------------------------- differences and means


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    first = rng.random(500)
    second = np.clip(first + rng.normal(0.01, 0.05, 500), 0, 1)
    pair = estimates.of_task("x", scored(with_count(first), with_count(second)), resamples=1)
    found = difference(*(one(each["accuracy"]) for each in pair))
    theirs = stats.ttest_1samp(100 * (second - first), 0)
    assert found.value == pytest.approx(100 * (second - first).mean())
    assert found.p_value == pytest.approx(theirs.pvalue, abs=0.01)
    assert found.interval == pytest.approx(theirs.confidence_interval(), abs=0.02)


def test_the_mean_over_tasks_is_independent_across_them():
    rng = np.random.default_rng(0)
    data = [rng.random(n) < p for n, p in ((56, 0.7), (300, 0.2), (1000, 0.5))]
    made = {str(n): estimate(d, task=str(n), resamples=8000) for n, d in enumerate(data)}
    mean = MeanScore([made])
    assert mean.value == pytest.approx(np.mean([e.value for e in made.values()]))
    error = 100 / 3 * math.sqrt(sum(d.var() / (len(d) - 1) for d in data))
    assert math.sqrt(mean.variance.questions) == pytest.approx(error)
    assert mean.interval.low == pytest.approx(mean.value - 1.96 * error, abs=0.15 * error)
    assert mean.interval.high == pytest.approx(mean.value + 1.96 * error, abs=0.25 * error)


@pytest.mark.parametrize("right", [0, 1])
def test_a_mean_of_tasks_at_an_end_is_not_known_exactly(right):
    """Eight tasks at 0 of 200: each lies in [0, 1.8], their mean in [0, 1.8 / sqrt(8)]."""
    made = {str(n): estimate(np.full(200, right), task=str(n), resamples=20) for n in range(8)}
    theirs = stats.binomtest(200 * right, 200).proportion_ci(method="exact")
    width = 100 * (theirs.high - theirs.low)
    assert width == pytest.approx(1.83, abs=0.005)
    low, high = MeanScore([made]).interval
    assert (low, high) == pytest.approx(
        (100 - width / 8**0.5, 100) if right else (0, width / 8**0.5)
    )
    # Several seeds that agree leave as much open.
    assert MeanScore([made] * 3).interval == pytest.approx((low, high))


def test_no_difference_is_no_finding():
    made = one(estimate(np.random.default_rng(0).random(30)))
    nothing = difference(made, made)
    assert nothing.value == 0
    assert nothing.p_value == pytest.approx(1)
    # Two questions more, one that changes each way.
    reach = 1.959964 * math.sqrt(2) * 100 / 30
    assert nothing.interval == pytest.approx((-reach, reach))


def shares(*rights):
    return [simulate_intervals.share(np.asarray(right)) for right in rights]


def test_the_simulations_shares_are_the_estimates():
    right = np.random.default_rng(0).random(40) < 0.8
    made, (mine,) = estimate(right), shares(right)
    assert mine.value == pytest.approx(made.value)
    np.testing.assert_allclose(mine.influence, made.influence)


def test_two_won_of_277_is_no_finding():
    first, second = np.zeros(277, bool), np.arange(277) < 2
    pair = [one(made) for made in shares(first, second)]
    found = difference(*pair, right=(first, second))
    assert (found.test, found.p_value, found.changes) == (MCNEMAR, 0.5, (2, 0, 277))
    assert found.interval.low < 0 < found.interval.high < 3
    # As much without McNemar's test, of scores that are no shares.
    other = difference(*pair)
    assert other.p_value > 0.05
    assert other.interval.low < 0 < other.interval.high


@pytest.mark.parametrize("examples", [20, 56, 277])
def test_an_interval_agrees_with_its_test(examples):
    for gained, lost in itertools.product(range(10), repeat=2):
        first = np.arange(examples) < lost
        second = (np.arange(examples) >= lost) & (np.arange(examples) < lost + gained)
        pair = [one(made) for made in shares(first, second)]
        for found in (difference(*pair, right=(first, second)), difference(*pair)):
            outside = not found.interval.low <= 0 <= found.interval.high
            assert outside == (found.p_value < 0.05)


def cells(first, second):
    """Cells of several runs on one task, from right answers [runs, examples]."""
    return [MeanScore([{"task": made} for made in shares(*side)]) for side in (first, second)]


def test_equal_differences_of_seeds_are_no_certainty():
    """One question of 56 won by each of three seeds: the other 55 might have gone otherwise."""
    first = np.tile(np.arange(56) < 30, (3, 1))
    second = np.tile(np.arange(56) < 31, (3, 1))
    names = ["0", "1", "2"]
    found = difference(*cells(first, second), seeds=(names, names))
    assert found.values == pytest.approx([100 / 56] * 3)
    assert found.variance.seeds < 1e-20
    assert found.p_value > 0.2
    assert found.interval.low < 0 < found.interval.high
    # 99.5 against 100.0 in ten seeds, one question of 200.
    first, second = np.ones((10, 200), bool), np.ones((10, 200), bool)
    first[:, 7] = False
    names = [str(n) for n in range(10)]
    assert difference(*cells(first, second), seeds=(names, names)).p_value > 0.2


def test_seeds_that_differ_are_students():
    """Where questions tell nothing, the interval is that of the t test over seeds."""
    rng = np.random.default_rng(0)
    skill = np.array([[0.3, 0.5, 0.4], [0.8, 0.6, 0.75]])
    first, second = (rng.random((3, 200_000)) < row[:, None] for row in skill)
    names = ["0", "1", "2"]
    paired = difference(*cells(first, second), seeds=(names, names))
    means = [100 * side.mean(axis=1) for side in (first, second)]
    theirs = stats.ttest_rel(means[1], means[0])
    assert paired.p_value == pytest.approx(theirs.pvalue, rel=0.02)
    assert paired.interval == pytest.approx(theirs.confidence_interval(), abs=0.2)
    unpaired = difference(*cells(first, second), seeds=(names, ["3", "4", "5"]))
    welch = stats.ttest_ind(means[1], means[0], equal_var=False)
    assert unpaired.p_value == pytest.approx(welch.pvalue, rel=0.02)
    # Their order is that of the names.
    turned = difference(*cells(first, second[::-1]), seeds=(names, names[::-1]))
    assert turned.p_value == pytest.approx(paired.p_value)
    alone = difference(*cells(first[:1], second), seeds=(["0"], names))
    against = stats.ttest_1samp(means[1], means[0][0])
    assert alone.p_value == pytest.approx(against.pvalue, rel=0.02)


def test_variance_over_seeds_and_questions_is_the_two_way_anovas():
    rng = np.random.default_rng(0)
    runs, questions = 4, 50
    scores = (
        rng.normal(size=(runs, 1)) + rng.normal(size=questions) + rng.normal(size=(runs, questions))
    )
    influences = (scores - scores.mean(axis=1, keepdims=True)) / math.sqrt(questions * 49)
    found = variance.of_mean(list(scores.mean(axis=1)), influences)
    mean_squares = {
        "runs": questions * scores.mean(axis=1).var(ddof=1),
        "questions": runs * scores.mean(axis=0).var(ddof=1),
    }
    left = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    mean_squares["error"] = (left**2).sum() / ((runs - 1) * (questions - 1))
    cells_ = runs * questions
    assert found.seeds == pytest.approx(mean_squares["runs"] / cells_)
    assert found.questions == pytest.approx(mean_squares["questions"] / cells_)
    assert found.luck == pytest.approx(mean_squares["error"] / cells_)


def test_intervals_stay_where_scores_are():
    right = np.array([[True] * 49 + [False], [True] * 20 + [False] * 30])
    (cell,) = [MeanScore([{"task": estimate(r, resamples=500)} for r in right])]
    assert 0 <= cell.interval.low < cell.interval.high <= 100
    other = difference(*cells(~right, right), seeds=(["0", "1"], ["0", "1"]))
    assert -100 <= other.interval.low < other.interval.high <= 100


# ------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize(("gained", "lost"), list(itertools.product((0, 1, 3, 12), (0, 1, 7, 30))))
def test_mcnemar_is_the_binomial_test(gained, lost):
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert significance.mcnemar(gained, lost) == pytest.approx(wanted)
    assert significance.mcnemar(lost, gained) == pytest.approx(wanted)


@pytest.mark.parametrize(("gained", "lost", "examples"), [(12, 2, 50), (3, 9, 56), (0, 0, 200)])
def test_tangos_interval_holds_what_the_score_test_does_not_refuse(gained, lost, examples):
    """The ends by a likelihood that is maximised numerically, as the method is defined."""

    def statistic(d):
        def loss(q):
            return (
                -(gained * math.log(q + d) if gained else 0)
                - (lost * math.log(q) if lost else 0)
                - (examples - gained - lost) * math.log(1 - 2 * q - d)
            )

        bounds = (max(0.0, -d) + 1e-12, (1 - d) / 2 - 1e-12)
        share = optimize.minimize_scalar(
            loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}
        ).x
        return (gained - lost - examples * d) / math.sqrt(examples * (2 * share + d * (1 - d)))

    low, high = significance.tango_interval(gained, lost, examples)
    assert statistic(low) == pytest.approx(1.959964, abs=2e-3)
    assert statistic(high) == pytest.approx(-1.959964, abs=2e-3)
    turned = significance.tango_interval(lost, gained, examples)
    assert turned == pytest.approx((-high, -low))


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


def test_the_minimum_detectable_effect():
    rng = np.random.default_rng(0)
    first, second = rng.random(1000) < 0.5, rng.random(1000) < 0.56
    pair = [one(made) for made in shares(first, second)]
    error = 100 * (second.astype(float) - first).std(ddof=1) / math.sqrt(1000)
    assert difference(*pair).detectable == pytest.approx((1.959964 + 0.841621) * error, rel=0.01)
    # McNemar's test cannot find fewer than six examples.
    alike = np.array([True] * 44 + [False] * 6)
    same = [one(made) for made in shares(alike, alike)]
    assert difference(*same, right=(alike, alike)).detectable == pytest.approx(12)
    assert significance.mcnemar(6, 0) < 0.05 < significance.mcnemar(5, 0)


# ------------------------------------------------------------------------------- simulation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "outside", "held"),
    [
        # The allowance is three standard errors of 300 samples.
        ({"examples": 277, "runs": 1}, (1, 9), (91, 99)),
        ({"examples": 277, "runs": 2}, (0, 9), (91, 100)),
        ({"examples": 277, "runs": 5}, (1, 9), (91, 100)),
        ({"examples": 277, "runs": 5, "fixed": True}, (1, 10), (91, 100)),
        ({"examples": 56, "runs": 10, "seed_effect": 0.6}, (1, 9), (91, 100)),
    ],
)
def test_errors_are_as_rare_as_they_should_be(settings, outside, held):
    equal = simulate_intervals.Population(accuracies=(0.5, 0.5), **settings)
    assert outside[0] <= simulate_intervals.refused(equal, 300)[0] <= outside[1]
    better = simulate_intervals.Population(accuracies=(0.5, 0.6), **settings)
    assert held[0] <= simulate_intervals.refused(better, 300)[1] <= held[1]


def page_table(name):
    """A generated table of docs/reports.md, as rows of cells."""
    page = (Path(__file__).parents[2] / "docs" / "reports.md").read_text()
    text = page.partition(f"<!-- {name} -->\n")[2].partition("<!-- end -->")[0]
    return [[c.strip() for c in row.strip("|").split("|")] for row in text.splitlines()[2:]]


@pytest.mark.parametrize("name", ["sampled", "fixed", "seeds", "texts"])
def test_the_pages_rates_are_near_their_nominal_values(name):
    """Nominal rates with three standard errors of the table's samples; cautious cells are fine.

    Texts have fewer samples. Where seeds dominate, three are a little bold, as the page says.
    """
    allowance = {"texts": 3.8, "seeds": 2.5}.get(name, 2.1)
    rows = page_table(name)
    assert len(rows) == (4 if name == "texts" else 9)
    for cell in (cell for row in rows for cell in row[2:]):
        outside, held = map(float, cell.split(" / "))
        assert outside <= 5 + allowance
        assert held >= 95 - allowance


def test_the_pages_scores_and_power_are_near_their_nominal_values():
    for cell in (cell for row in page_table("levels") for cell in row[2:]):
        assert float(cell) >= 95 - 4.7
    for cell in (cell for row in page_table("few") for cell in row[1:]):
        assert float(cell) <= 5
    for *_, found in page_table("power"):
        assert float(found) >= 80 - 3.8


@pytest.mark.slow
def test_the_page_is_what_the_command_makes():
    """A cell of its first table, made again."""
    for row in page_table("sampled")[:1]:
        examples, accuracy = int(row[0]), float(row[1]) / 100
        equal = simulate_intervals.Population(
            examples=examples, accuracies=(accuracy, accuracy), runs=1
        )
        better = simulate_intervals.ACCURACIES[accuracy]
        other = dataclasses.replace(equal, accuracies=(accuracy, better))
        outside, held = simulate_intervals.refused(equal)[0], simulate_intervals.refused(other)[1]
        assert row[2] == f"{outside:.1f} / {held:.1f}"
