"""Scores whose own questions chose the checkpoint, and by how much that flatters them.

A stage keeps the checkpoint that scores best on its validation questions. The score of just that
checkpoint on just those questions is too high on average: it is the largest of several that chance
has moved. By how much is found by making the choice again on resampled questions (Efron 1983): on
each resample the best checkpoint's score there, minus the same checkpoint's score on all questions.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float64

from promot_t5x.report import answers
from promot_t5x.report.answers import TaskAnswers
from promot_t5x.report.statistics import estimates

_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Selection:
    """The choice of a checkpoint by scores that are also reported.

    **Attributes:**

    - `optimism`: by task, by how many percentage points its score is too high on average; NaN where
      that cannot be computed.
    - `checkpoints`: how many there were to choose from; 0 where that is not known.
    """

    optimism: Mapping[str, float]
    checkpoints: int


def found(stage: epath.Path, reported: Mapping[str, TaskAnswers]) -> Selection | None:
    """Return how the checkpoint was chosen by questions that are `reported` on too.

    The records say on which split of a task that was. Where the stage's own answers lie beside
    them, the optimism is computed, and slices of one split count only if they share questions.

    **Arguments:**

    - `stage`: the directory of the stage that the weights come from, which need not be there.
    - `reported`: answers of the chosen checkpoint, by task.

    **Returns:** None where no choice was made, or other questions made it.
    """
    same = [
        task
        for task, made in reported.items()
        if made.split and _name(made.split) in _chosen_on(made)
    ]
    if not same:
        return None
    asked = {task: steps for task, steps in answers.found(stage).items() if task in reported}
    common = set.intersection(*(set(steps) for steps in asked.values())) if asked else set()
    common -= {0}
    if len(common) < 2 or not set(same) <= asked.keys():
        return Selection(dict.fromkeys(same, float("nan")), len(common))
    read = {task: [answers.read(steps[s]) for s in sorted(common)] for task, steps in asked.items()}
    same = [task for task in same if set(read[task][0].asked) & set(reported[task].asked)]
    return Selection(_optimism(read, same), len(common)) if same else None


def _chosen_on(made: TaskAnswers) -> list[str]:
    """Return the splits on which checkpoints were chosen, of which stages may have several."""
    return [_name(split) for split in str(made.summary.get("selection_split") or "").split("+")]


def _name(split: str) -> str:
    """Return a split without its slice: `train` for `train[:100]`."""
    return split.partition("[")[0]


def _optimism(asked: Mapping[str, Sequence[TaskAnswers]], tasks: Sequence[str]) -> dict[str, float]:
    """Return the optimism of `tasks`, of those whose mean score made the choice."""
    made = {task: _scores(steps) for task, steps in asked.items()}
    if any(scores is None for scores in made.values()):
        return dict.fromkeys(tasks, float("nan"))
    known = {task: scores for task, scores in made.items() if scores is not None}
    best = np.mean([samples for _, samples in known.values()], axis=0).argmax(axis=1)
    rows = np.arange(len(best))
    return {
        task: float((known[task][1][rows, best] - known[task][0][best]).mean()) for task in tasks
    }


def _scores(
    steps: Sequence[TaskAnswers],
) -> tuple[Float64[np.ndarray, " steps"], Float64[np.ndarray, "resamples steps"]] | None:
    """Return each step's score and the same of each resample; None where there are no sums."""
    first = steps[0]
    primary = first.primary
    if any(step.ids != first.ids for step in steps):
        return None
    for n, metric in enumerate(first.metrics):
        if primary is not None and primary in metric.scores:
            rows = np.stack([step.statistics[n] for step in steps])
            of_step = estimates.of_task(
                first.task, [(metric, rows)], questions=first.questions, resamples=_RESAMPLES
            )
            made = [each[primary] for each in of_step]
            return (
                np.array([estimate.value for estimate in made]),
                np.stack([estimate.samples for estimate in made], axis=1),
            )
    return None
