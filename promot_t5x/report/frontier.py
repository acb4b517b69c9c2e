"""What each method of a sweep trades: target score against mean in-context score, over settings.

The frontier of a method are the settings that none of its others beats in both scores. Which these
are is decided by the points of a development sweep where there is one, whose seeds and splits must
be others, and else by the points themselves.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from promot_t5x.errors import UserError
from promot_t5x.report.frontier_points import FrontierPoint
from promot_t5x.report.statistics import significance
from promot_t5x.report.statistics.estimates import ScoreEstimate
from promot_t5x.report.statistics.scores import MeanScore, ScoreDifference, difference
from promot_t5x.report.statistics.variance import Variance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frontier:
    """The points of a method.

    **Attributes:**

    - `points`: of all its settings.
    - `chosen`: those of its frontier, by rising target score of the points that decided.
    - `decided`: the target scores of those points.
    - `start`: the model that no stage trained, which every method starts from.
    """

    method: str
    points: Sequence[FrontierPoint]
    chosen: Sequence[FrontierPoint]
    decided: Sequence[float]
    start: FrontierPoint | None

    @functools.cached_property
    def areas(self) -> dict[str, float]:
        """By seed, the area under the frontier in percent, of seeds that all its points have.

        It is the mean, over all target scores t from 0 to 100, of the best in-context score among
        the points whose target score is at least t, 0 where there is none.
        """
        shared = set.intersection(*(set(point.seeds) for point in self.chosen))
        return {
            seed: _area([(_of(p.target, p, seed), _of(p.suite, p, seed)) for p in self._steps])
            for seed in self.chosen[0].seeds
            if seed in shared
        }

    @property
    def area(self) -> tuple[float, float]:
        """The mean area over seeds, and how far its 95% interval reaches; NaN for one seed."""
        found = list(self.areas.values())
        if len(found) < 2:
            return (found[0] if found else math.nan), math.nan
        spread = Variance(
            questions=0.0, seeds=float(np.var(found, ddof=1)) / len(found), freedom=len(found) - 1.0
        )
        return float(np.mean(found)), spread.reach()

    @property
    def best_target(self) -> float:
        """The highest target score of its frontier, as the points that decided have it."""
        return self.decided[-1]

    def at(self, target: float) -> "list[tuple[float, FrontierPoint]]":
        """Return the points of the frontier around a target score, with weights that sum to 1.

        Questions put to either point at random, in these shares, get that target score, as the
        points that decided have it.
        """
        levels = list(zip(self.decided, self.chosen, strict=True))
        if self.start is not None and self.start.target.value < levels[0][0]:
            levels.insert(0, (self.start.target.value, self.start))
        for n, (level, point) in enumerate(levels):
            if target < level and n:
                before, below = levels[n - 1]
                share = (target - before) / (level - before)
                return [(1 - share, below), (share, point)]
            if target <= level:
                return [(1.0, point)]
        return [(1.0, levels[-1][1])]

    @property
    def _steps(self) -> list[FrontierPoint]:
        return [*([self.start] if self.start else []), *self.chosen]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontierTest:
    """Two methods at one target score, the highest that both reach where the settings were chosen.

    **Attributes:**

    - `first`, `second`: the methods.
    - `target`: the target score at which they are compared.
    - `targets`: how much the second's target score is higher on what is reported: about 0.
    - `suite`: how much its mean in-context score is.
    - `adjusted`: Holm's p-value of `suite` over all pairs.
    """

    first: str
    second: str
    target: float
    targets: ScoreDifference
    suite: ScoreDifference
    adjusted: float = math.nan


def frontiers(
    points: Sequence[FrontierPoint], development: Sequence[FrontierPoint] = ()
) -> list[Frontier]:
    """Return the frontier of each method that a stage trained, in the order of the points.

    **Arguments:**

    - `points`: what is reported.
    - `development`: what decides which settings are a frontier; by default the points.

    **Raises:** `UserError` where development points share a seed or a task's split with the
    reported ones, or lack a method's settings.
    """
    if development:
        _check_apart(points, development)
    decides = {(p.method, p.settings): p for p in development or points}
    start = next((p for p in points if not p.settings), None)
    made = []
    for method in dict.fromkeys(p.method for p in points if p.settings):
        own = [p for p in points if p.method == method and p.settings]
        if not set.intersection(*(set(p.seeds) for p in own)):
            raise UserError(
                f"the settings of {method!r} have no seed in common; give them the same SEEDS."
            )
        if missing := [p.settings for p in own if (method, p.settings) not in decides]:
            raise UserError(
                f"{method!r} at {missing[0]} is in no --development sweep: run it there too."
            )
        paired = [(decides[method, p.settings], p) for p in own]
        best = [(d, p) for d, p in paired if not any(_beats(other, d) for other, _ in paired)]
        best.sort(key=lambda pair: pair[0].target.value)
        made.append(
            Frontier(
                method=method,
                points=own,
                chosen=[p for _, p in best],
                decided=[d.target.value for d, _ in best],
                start=start,
            )
        )
    return made


def tests(found: Sequence[Frontier]) -> list[FrontierTest]:
    """Compare every two methods at the highest target score that both reach."""
    made = []
    for first, second in itertools.combinations(found, 2):
        target = min(first.best_target, second.best_target)
        sides = [_mixed(frontier.at(target)) for frontier in (first, second)]
        seeds = (sides[0][2], sides[1][2])
        made.append(
            FrontierTest(
                first=first.method,
                second=second.method,
                target=target,
                targets=difference(sides[0][0], sides[1][0], seeds=seeds),
                suite=difference(sides[0][1], sides[1][1], seeds=seeds),
            )
        )
    known = [test for test in made if not math.isnan(test.suite.p_value)]
    adjusted = iter(significance.holm([test.suite.p_value for test in known]))
    return [
        dataclasses.replace(test, adjusted=next(adjusted)) if test in known else test
        for test in made
    ]


def drift_and_loss(points: Sequence[FrontierPoint]) -> tuple[list[FrontierPoint], float]:
    """Return the points whose drift is known, and Spearman's correlation of drift and loss.

    **Returns:** the correlation is NaN for fewer than three points.
    """
    known = [point for point in points if not math.isnan(point.drift)]
    if len(known) < 3:
        return known, math.nan
    from scipy.stats import spearmanr

    found = spearmanr([p.drift for p in known], [-p.suite.value for p in known])
    return known, float(found.statistic)


def _beats(other: FrontierPoint, point: FrontierPoint) -> bool:
    """Whether a point is at least as good in both scores and better in one."""
    theirs = (other.target.value, other.suite.value)
    mine = (point.target.value, point.suite.value)
    return theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1]


def _check_apart(points: Sequence[FrontierPoint], development: Sequence[FrontierPoint]) -> None:
    seeds = [
        {seed for p in each if p.settings for seed in p.seeds} for each in (points, development)
    ]
    if shared := sorted(seeds[0] & seeds[1]):
        raise UserError(
            f"--development has the seeds {', '.join(shared)}, which are reported too: choose "
            "settings on other seeds, with SEEDS."
        )
    splits = [each[0].splits for each in (points, development)]
    for task in splits[0].keys() & splits[1].keys():
        if splits[0][task] == splits[1][task]:
            raise UserError(
                f"--development was asked {task} on {splits[0][task]!r}, which is reported too: "
                "choose settings on another split, with TARGET_SPLIT and the split of the SUITE."
            )


def _of(score: MeanScore, point: FrontierPoint, seed: str) -> float:
    """Return a point's score of one seed; of a single model the same for every seed."""
    return score.values[point.seeds.index(seed) if seed in point.seeds else 0]


def _area(points: Sequence[tuple[float, float]]) -> float:
    """Return the mean, over target scores from 0 to 100, of the best suite score at least there."""
    total = best = 0.0
    reached = sorted(points, reverse=True)
    for n, (target, suite) in enumerate(reached):
        best = max(best, suite)
        below = reached[n + 1][0] if n + 1 < len(reached) else 0.0
        total += best * (target - below)
    return total / 100


Mixed = tuple[MeanScore, MeanScore, Sequence[str]]


def _mixed(parts: Sequence[tuple[float, FrontierPoint]]) -> Mixed:
    """Return target and suite of a mixture of points, and the seeds of its runs."""
    own_seeds = [point.seeds for _, point in parts if point.settings] or [parts[0][1].seeds]
    seeds = [seed for seed in own_seeds[0] if all(seed in each for each in own_seeds)]

    def mixed(score: str) -> MeanScore:
        made = []
        for seed in seeds:
            of_seed = []
            for weight, point in parts:
                own: MeanScore = getattr(point, score)
                n = point.seeds.index(seed) if seed in point.seeds else 0
                of_seed.append((weight, own.runs[n]))
            made.append({task: _sum([(w, r[task]) for w, r in of_seed]) for task in of_seed[0][1]})
        return MeanScore(made)

    return mixed("target"), mixed("suite"), seeds


def _sum(parts: Sequence[tuple[float, ScoreEstimate]]) -> ScoreEstimate:
    return ScoreEstimate(
        value=math.fsum(weight * each.value for weight, each in parts),
        samples=np.sum([weight * each.samples for weight, each in parts], axis=0),
        influence=np.sum([weight * each.influence for weight, each in parts], axis=0),
    )
