"""How often intervals hold the truth, and tests refuse a true hypothesis, by simulation.

    python -m tools.simulate_intervals docs/reports.md

writes the tables between their marks in that page, `<!-- name -->` and `<!-- end -->`; it takes
about ten minutes on one core. Answers are right where a latent variable is positive: how good
the method is, how easy the question, how well the method takes to the question, what the seed
brings, and luck, all normal. Both methods' true scores are thus known exactly. Where questions are
*fixed*, all samples are answers to the same ones, which are equally hard for both methods, and the
truth is about them.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float64

from promot_t5x.report.statistics import estimates
from promot_t5x.report.statistics.estimates import ScoreEstimate
from promot_t5x.report.statistics.scores import MeanScore, ScoreDifference, difference
from promot_t5x.tasks import metrics
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.metrics import Metric
from promot_t5x.tasks.rouge import Rouge

SAMPLES = 1000
EXAMPLES, SEEDS = (56, 277, 2000), (1, 2, 3, 5, 10)
ACCURACIES = {0.5: 0.56, 0.9: 0.93, 0.99: 0.995}  # of the first method: of a better second one
# Grid, examples, accuracy, seeds.
AGAIN = (
    ("sampled", 2000, 0.9, 3),
    ("fixed", 56, 0.5, 10),
    ("fixed", 277, 0.9, 5),
    ("seeds dominate", 56, 0.5, 3),
    ("seeds dominate", 277, 0.99, 5),
    ("seeds dominate", 2000, 0.5, 3),
    ("seeds dominate", 2000, 0.99, 3),
    ("seeds dominate", 2000, 0.99, 5),
)
_QUESTION, _METHOD, _LUCK = 1.0, 0.5, 1.0  # standard deviations of the latent variable's parts
_SEED, _LARGE_SEED = 0.2, 0.6
_NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Population:
    """Questions and two methods that answer them.

    **Attributes:**

    - `examples`: questions of a test set.
    - `accuracies`: of the two methods, in [0, 1].
    - `runs`: seeds of each method.
    - `fixed`: whether every sample asks the same questions.
    - `seed_effect`: standard deviation of what a seed adds to the latent variable.
    """

    examples: int
    accuracies: tuple[float, float]
    runs: int = 1
    fixed: bool = False
    seed_effect: float = _SEED

    def samples(
        self, count: int, seed: int = 0
    ) -> Iterable[tuple[Bool[np.ndarray, "methods runs examples"], tuple[float, float]]]:
        """Yield right answers of both methods, with both true accuracies."""
        rng = np.random.default_rng(seed)
        method = 0.0 if self.fixed else _METHOD
        seeds = self.seed_effect if self.runs > 1 else 0.0
        spread = (_QUESTION**2 + method**2 + seeds**2 + _LUCK**2) ** 0.5
        level = np.array([spread * _NORMAL.inv_cdf(accuracy) for accuracy in self.accuracies])
        ease = _QUESTION * rng.normal(size=self.examples)
        truth = self.accuracies
        if self.fixed:
            from scipy.special import ndtr

            within = (seeds**2 + _LUCK**2) ** 0.5
            means = ndtr((level[:, None] + ease) / within).mean(axis=-1)
            truth = (float(means[0]), float(means[1]))
        for _ in range(count):
            if not self.fixed:
                ease = _QUESTION * rng.normal(size=self.examples)
            latent = (
                level[:, None, None]
                + ease
                + method * rng.normal(size=(2, 1, self.examples))
                + seeds * rng.normal(size=(2, self.runs, 1))
                + _LUCK * rng.normal(size=(2, self.runs, self.examples))
            )
            yield latent > 0, truth


def compared(right: Bool[np.ndarray, "methods runs examples"]) -> ScoreDifference:
    """Return the difference of two methods' accuracies, as a report compares two rows."""
    first, second = (
        MeanScore([{"task": share(answers)} for answers in method]) for method in right
    )
    runs = right.shape[1]
    seeds = [str(run) for run in range(runs)]
    alone = (right[0, 0], right[1, 0]) if runs == 1 else None
    return difference(first, second, seeds=(seeds, seeds), right=alone)


def share(right: Bool[np.ndarray, " examples"]) -> ScoreEstimate:
    """Return what `estimates.of_task` makes of right answers, without resamples, in closed form."""
    values = 100.0 * right
    examples = len(values)
    influence = (values - values.mean()) / (examples * (examples - 1)) ** 0.5
    return ScoreEstimate(value=float(values.mean()), samples=np.empty(0), influence=influence)


def refused(population: Population, count: int = SAMPLES, seed: int = 0) -> tuple[float, float]:
    """Return how often the interval leaves out zero, and how often it holds the truth, in percent.

    **Arguments:**

    - `count`: samples.
    - `seed`: of the samples.
    """
    outside = held = 0
    for right, truth in population.samples(count, seed):
        found = compared(right)
        outside += not found.interval.low <= 0 <= found.interval.high
        held += found.interval.low <= 100 * (truth[1] - truth[0]) <= found.interval.high
    return 100 * outside / count, 100 * held / count


def grid(count: int = SAMPLES, *, fixed: bool = False, seed_effect: float = _SEED) -> str:
    """Return the table of type-I error and coverage of differences between two methods."""
    rows = []
    for examples in EXAMPLES:
        for accuracy, better in ACCURACIES.items():
            cells = []
            for runs in SEEDS:
                equal = Population(
                    examples=examples,
                    accuracies=(accuracy, accuracy),
                    runs=runs,
                    fixed=fixed,
                    seed_effect=seed_effect,
                )
                other = dataclasses.replace(equal, accuracies=(accuracy, better))
                cells.append(f"{refused(equal, count)[0]:.1f} / {refused(other, count)[1]:.1f}")
            rows.append([f"{examples:,}", f"{100 * accuracy:g}", *cells])
    return _table(["n", "accuracy", *(_runs(runs) for runs in SEEDS)], rows)


def again(count: int = 4000) -> str:
    """Return the table of cells of the three grids, from more samples and another seed.

    They are those whose errors were above 6%, or whose intervals held less than 93.5%.
    """
    rows = []
    for grid_name, examples, accuracy, runs in AGAIN:
        equal = Population(
            examples=examples,
            accuracies=(accuracy, accuracy),
            runs=runs,
            fixed=grid_name == "fixed",
            seed_effect=_LARGE_SEED if grid_name == "seeds dominate" else _SEED,
        )
        other = dataclasses.replace(equal, accuracies=(accuracy, ACCURACIES[accuracy]))
        error, _ = refused(equal, count, seed=1)
        _, held = refused(other, count, seed=1)
        cells = [f"{examples:,}", f"{100 * accuracy:g}", _runs(runs), f"{error:.1f} / {held:.1f}"]
        rows.append([grid_name, *cells])
    return _table(["grid", "n", "accuracy", "seeds", "again"], rows)


def levels(count: int = 200, resamples: int = 200) -> str:
    """Return the table of coverage of single scores and of the mean of eight tasks."""
    rows = []
    for examples in EXAMPLES[:2]:
        for accuracy in (0.5, 0.9, 0.99, 0.998):
            cells = []
            for tasks in (1, 8):
                for runs in (1, 3):
                    one = Population(examples=examples, accuracies=(accuracy, accuracy), runs=runs)
                    cells.append(f"{level_held(one, tasks, count, resamples):.1f}")
            rows.append([f"{examples:,}", f"{100 * accuracy:g}", *cells])
    head = ["n", "accuracy", "one task", "3 seeds", "mean of eight", "3 seeds"]
    return _table(head, rows)


def level_held(population: Population, tasks: int, count: int, resamples: int = 200) -> float:
    """Return how often the interval of a mean over tasks holds its truth, in percent.

    Seeds are drawn for each task by itself.
    """
    draws = [population.samples(count, seed=task) for task in range(tasks)]
    held = 0
    for n, drawn in enumerate(zip(*draws, strict=True)):
        found = [
            _estimates(right[:1], name=f"{n} {task}", resamples=resamples)[0]
            for task, (right, _) in enumerate(drawn)
        ]
        runs = [dict(enumerate(each)) for each in zip(*found, strict=True)]
        mean = MeanScore([{str(task): e for task, e in run.items()} for run in runs])
        held += mean.interval.low <= 100 * drawn[0][1][0] <= mean.interval.high
    return 100 * held / count


def texts(count: int = 400) -> str:
    """Return the table of type-I error and coverage of differences in BLEU and ROUGE."""
    rows = []
    for metric in (Bleu(), Rouge()):
        corpus = Corpus.made(metric)
        for examples in EXAMPLES[:2]:
            cells = []
            for runs in (1, 3):
                equal, other = (
                    corpus.refused(examples, runs, count, null) for null in (True, False)
                )
                cells.append(f"{equal[0]:.1f} / {other[1]:.1f}")
            rows.append([metric.scores[0], f"{examples:,}", *cells])
    return _table(["score", "n", "1 seed", "3 seeds"], rows)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A population of made-up texts, each answered by several runs of two methods.

    **Attributes:**

    - `statistics`: of the metric [methods, runs, texts, k].
    """

    metric: Metric
    statistics: Float64[np.ndarray, "methods runs texts k"]

    @classmethod
    def made(cls, metric: Metric, texts: int = 3000, runs: int = 6) -> "Corpus":
        """Make texts of ten words on average, of which the methods get 70% and 72% right."""
        rng = np.random.default_rng(0)
        words = np.array([f"w{n}" for n in range(60)])
        targets = [rng.choice(words, rng.integers(4, 17)) for _ in range(texts)]
        ease = rng.normal(scale=0.1, size=texts)
        made = []
        for skill in (0.70, 0.72):
            for run in rng.normal(scale=0.01, size=runs):
                said = [
                    " ".join(
                        np.where(rng.random(len(t)) < skill + run + e, t, rng.choice(words, len(t)))
                    )
                    for t, e in zip(targets, ease, strict=True)
                ]
                made.append(metric.example_statistics([" ".join(t) for t in targets], said))
        return cls(metric, np.stack(made).reshape(2, runs, texts, -1))

    def refused(self, examples: int, runs: int, count: int, null: bool) -> tuple[float, float]:
        """Return what `simulate_intervals.refused` does, of this metric.

        Single runs are compared as the models that they are, several as samples of their method.

        **Arguments:**

        - `null`: whether both sides are as good: answers of the first method, dealt to the two.
        """
        rng = np.random.default_rng(0)
        name = self.metric.scores[0]
        of_run = self.metric.value(self.statistics.sum(axis=2))[name]
        of_each, texts = self.statistics.shape[1:3]
        seeds = [str(run) for run in range(runs)]
        outside = held = 0
        for _ in range(count):
            chosen = rng.integers(texts, size=examples)
            if null:
                sides = self.statistics[0, rng.permutation(of_each)[: 2 * runs]][:, chosen]
                truth = 0.0
                if runs == 1:
                    sides = np.where(rng.random((examples, 1)) < 0.5, sides, sides[::-1])
            else:
                picked = [rng.permutation(of_each)[:runs] for _ in range(2)]
                sides = np.concatenate(
                    [self.statistics[m, p][:, chosen] for m, p in enumerate(picked)]
                )
                known = (
                    of_run.mean(axis=1) if runs > 1 else [of_run[m, picked[m][0]] for m in (0, 1)]
                )
                truth = float(known[1] - known[0])
            made = estimates.of_task("task", [(self.metric, sides)], resamples=1)
            first, second = (
                MeanScore([{"task": e[name]} for e in part]) for part in (made[:runs], made[runs:])
            )
            low, high = difference(first, second, seeds=(seeds, seeds)).interval
            outside += not low <= 0 <= high
            held += low <= truth <= high
        return 100 * outside / count, 100 * held / count


def power(count: int = 1000) -> str:
    """Return the table of how often a true difference of the stated minimum is found."""
    rows = []
    for examples in EXAMPLES:
        for runs in (1, 3, 10):
            start = Population(examples=examples, accuracies=(0.7, 0.7), runs=runs)
            stated = np.mean([compared(right).detectable for right, _ in start.samples(200)])
            better = dataclasses.replace(
                start, accuracies=(0.7, min(0.999, 0.7 + float(stated) / 100))
            )
            found = refused(better, count)[0]
            rows.append([f"{examples:,}", f"{runs}", f"{stated:.1f}", f"{found:.0f}"])
    return _table(["n", "seeds", "stated minimum (points)", "found (%)"], rows)


def few_changes(count: int = 4000) -> str:
    """Return the table of type-I error where few examples change, of an expected number."""
    rows = []
    for examples in EXAMPLES[:2]:
        cells = []
        for changed in (2, 4, 8, 32):
            rng = np.random.default_rng(changed)
            outside = 0
            for _ in range(count):
                way = rng.random(examples) * examples / changed
                first, second = way < 0.5, (way >= 0.5) & (way < 1)
                low, high = compared(np.stack([first, second])[:, None]).interval
                outside += not low <= 0 <= high
            cells.append(f"{100 * outside / count:.1f}")
        rows.append([f"{examples:,}", *cells])
    return _table(["n", "2 change", "4", "8", "32"], rows)


PARTS: dict[str, Callable[[], str]] = {
    "sampled": grid,
    "fixed": lambda: grid(fixed=True),
    "seeds": lambda: grid(seed_effect=_LARGE_SEED),
    "again": again,
    "few": few_changes,
    "texts": texts,
    "levels": levels,
    "power": power,
}


def main(argv: Sequence[str]) -> int:
    """Fill the page in place."""
    (path,) = map(Path, argv)
    text = path.read_text()
    for name, make in PARTS.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(f"the page has no mark {start.strip()}")
        text = f"{before}{start}{make()}\n{end}{rest.partition(end)[2]}"
        path.write_text(text)
    return 0


def _estimates(
    right: Bool[np.ndarray, "methods runs examples"], name: str = "task", resamples: int = 1
) -> list[list[ScoreEstimate]]:
    methods, runs, examples = right.shape
    statistics = np.stack([right.reshape(-1, examples), np.ones((methods * runs, examples))], -1)
    made = estimates.of_task(name, [(metrics.accuracy, statistics)], resamples=resamples)
    found = [each["accuracy"] for each in made]
    return [found[n * runs : (n + 1) * runs] for n in range(methods)]


def _runs(runs: int) -> str:
    return "1 seed" if runs == 1 else f"{runs} seeds"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
