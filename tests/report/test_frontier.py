"""Frontiers by hand: areas, mixtures at a target score, tests, and what chose the settings."""

import json
import math

import numpy as np
import pytest
import report_helpers as lab
import run_helpers

from promot_t5x.errors import UserError
from promot_t5x.report import frontier
from promot_t5x.report.frontier_points import FrontierPoint
from promot_t5x.report.statistics.estimates import ScoreEstimate
from promot_t5x.report.statistics.scores import MeanScore

SEEDS = ("1", "2", "3")


def score(*values, task="t"):
    """A score of so many seeds, on four questions of which two are harder."""
    influence = np.array([1.0, -1.0, 0.5, -0.5])
    return MeanScore(
        [{task: ScoreEstimate(value=v, samples=np.full(5, v), influence=influence)} for v in values]
    )


def point(method, settings, target, suite, *, seeds=SEEDS, drift=math.nan):
    """A point whose scores are those of each seed."""
    return FrontierPoint(
        method=method, settings=settings, target=score(*target), suite=score(*suite, task="s"),
        seeds=seeds, splits={"t": "test", "s": "test"}, drift=drift,
    )  # fmt: skip


BASE = point("pretrained", "", [20.0], [90.0], seeds=("/run",))
POINTS = [
    BASE,
    point("slow", "rate=1", [60.0, 62.0, 58.0], [80.0, 82.0, 78.0], drift=0.1),
    point("slow", "rate=2", [80.0, 80.0, 80.0], [70.0, 72.0, 68.0], drift=0.2),
    point("slow", "rate=3", [70.0, 70.0, 70.0], [60.0, 60.0, 60.0], drift=0.3),
    point("fast", "rate=1", [90.0, 90.0, 90.0], [60.0, 60.0, 60.0]),
]


def test_the_frontier_are_the_settings_that_no_other_beats():
    slow, fast = frontier.frontiers(POINTS)
    assert [p.settings for p in slow.chosen] == ["rate=1", "rate=2"]
    assert len(slow.points) == 3
    assert [p.settings for p in fast.chosen] == ["rate=1"]
    assert slow.start == BASE


def test_the_area_is_that_of_the_stairs_under_the_points():
    slow, fast = frontier.frontiers(POINTS)
    # Of seed 1: 90 up to a target score of 20, 80 to 60, 70 to 80, then nothing.
    assert slow.areas["1"] == pytest.approx((90 * 20 + 80 * 40 + 70 * 20) / 100)
    assert slow.areas["2"] == pytest.approx((90 * 20 + 82 * 42 + 72 * 18) / 100)
    assert fast.areas["3"] == pytest.approx((90 * 20 + 60 * 70) / 100)
    values = list(slow.areas.values())
    area, reach = slow.area
    assert area == pytest.approx(np.mean(values))
    # Student's t of two degrees of freedom.
    assert reach == pytest.approx(4.302653 * np.std(values, ddof=1) / math.sqrt(3), rel=1e-6)
    assert fast.area[1] == pytest.approx(0.0)


def test_two_methods_are_compared_at_the_highest_target_score_that_both_reach():
    (test,) = frontier.tests(frontier.frontiers(POINTS))
    assert (test.first, test.second, test.target) == ("slow", "fast", 80.0)
    # From the base's 20 to fast's 90, a target score of 80 has six sevenths of the latter.
    assert test.targets.value == pytest.approx(0.0)
    assert test.suite.value == pytest.approx((90 + 6 * 60) / 7 - 70)
    assert test.suite.values == pytest.approx([(90 + 6 * 60) / 7 - s for s in (70, 72, 68)])
    assert test.adjusted == test.suite.p_value  # of one pair


def test_development_points_choose_the_settings_and_the_mixtures():
    fresh = ("7", "8")
    chosen = [
        point("slow", "rate=1", [10.0, 10.0], [80.0, 80.0], seeds=fresh),
        point("slow", "rate=2", [75.0, 75.0], [65.0, 65.0], seeds=fresh),
        point("slow", "rate=3", [85.0, 85.0], [64.0, 64.0], seeds=fresh),
        point("fast", "rate=1", [85.0, 85.0], [50.0, 50.0], seeds=fresh),
    ]
    for each in chosen:
        each.splits.update({"t": "validation", "s": "validation"})
    slow, _ = frontier.frontiers(POINTS, chosen)
    assert [p.settings for p in slow.chosen] == ["rate=1", "rate=2", "rate=3"]
    assert slow.decided == [10.0, 75.0, 85.0]
    # Halfway between 75 and 85 where it was decided, whatever the points are now.
    assert [(w, p.settings) for w, p in slow.at(80.0)] == [(0.5, "rate=2"), (0.5, "rate=3")]
    assert slow.at(99.0) == [(1.0, slow.chosen[-1])]
    assert slow.at(5.0) == [(1.0, slow.chosen[0])]
    with pytest.raises(UserError, match="'fast' at rate=1 is in no --development sweep"):
        frontier.frontiers(POINTS, chosen[:-1])
    with pytest.raises(UserError, match="seeds 1, 2, 3, which are reported too"):
        frontier.frontiers(POINTS, POINTS)
    chosen[0].splits["s"] = "test"
    with pytest.raises(UserError, match="asked s on 'test', which is reported too"):
        frontier.frontiers(POINTS, chosen)


def test_methods_whose_settings_share_no_seed_are_refused():
    other = point("slow", "rate=4", [50.0], [50.0], seeds=("9",))
    with pytest.raises(UserError, match="'slow' have no seed in common"):
        frontier.frontiers([*POINTS, other])


def test_drift_and_loss_are_correlated_by_rank():
    known, correlation = frontier.drift_and_loss(POINTS)
    assert [p.settings for p in known] == ["rate=1", "rate=2", "rate=3"]
    assert correlation == pytest.approx(1.0)  # more drift, less in context
    assert math.isnan(frontier.drift_and_loss(POINTS[:3])[1])


def sweep(home, *, seeds, split):
    """Finished runs at two rates, written by hand; the higher rate answers the suite less well."""
    target, suite = lab.made_up_tasks(20)
    for rate, skill in ((1, 0.8), (2, 0.3)):
        run = home / f"rate_{rate}"
        places = [(run, "pretrained", 0.9, None)]
        places += [(run / f"seed_{seed}", "ProMoT", skill, seed) for seed in seeds]
        for place, label, on_suite, seed in places:
            models = [(task, lab.Model(on_suite, seed=seed or 0)) for task in suite]
            row = lab.write_row(
                place / "comparison", label, (target, lab.Model(0.5 * rate)), models,
                stage=None if seed is None else "stage_two", seed=seed,
            )  # fmt: skip
            for task, model in [(target, lab.Model(0.5 * rate)), *models]:
                lab.write_answers(row, task, lab.answer(task, model), split=split)
        told = {"settings": {"RATE": str(rate), "SEEDS": str(list(seeds))}, "config": "0"}
        (run / "sweep.json").write_text(json.dumps(told))
    return str(home)


def test_the_report_says_on_what_settings_were_chosen(tmp_path):
    final = sweep(tmp_path / "final", seeds=(3, 4), split="test")
    other = sweep(tmp_path / "development", seeds=(1, 2), split="validation")
    out = run_helpers.succeed(["sweep", "report", final, f"--development={other}"])
    assert "chosen on other rows than those reported: seeds 1, 2, validation of toy, " in out
    assert "What is reported: seeds 3, 4, test of toy, toy_fruit_1shot, toy_talk_1shot." in out
    assert "RATE=1" in out
    assert "SEEDS" not in out
    assert "## Drift" not in out
    again = run_helpers.here(["sweep", "report", final, f"--development={final}"])
    assert again.status == 2
    assert "the seeds 3, 4, which are reported too" in again.err
    empty = run_helpers.here(["sweep", "report", str(tmp_path)])
    assert empty.status == 2
    assert "no finished run of a sweep is there" in empty.err
