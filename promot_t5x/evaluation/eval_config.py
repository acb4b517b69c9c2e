"""What an evaluation asks, and how its answers are decoded: data that users bind in gin."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x import decoding
from promot_t5x.config import validation
from promot_t5x.decoding.search import Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """The tasks of an evaluation, the split of each, and how answers are decoded.

    **Attributes:**

    - `mixture_or_task_name`, `split`: the examples of one task or mixture, or of several; every
      task is scored on its own. A split may be a slice, as in `validation[:50%]`. Without a split,
      each task on the one that its definition scores.
    - `task_feature_lengths`: the longest `inputs` (soft prompt included) and the longest answer,
      `targets`, in tokens; without `targets`, each task's own. Where a question does not fit,
      the project's tasks drop demonstrations and cut articles; other tasks' questions are cut
      from the right. Both are counted.
    - `batch_size`: examples decoded together.
    - `method`: `decoding.Greedy`, `decoding.Sampling` or `decoding.BeamSearch`; or
      `decoding.RankClassification` or `decoding.Likelihood`, which decode nothing. A task with
      candidates of its own is answered by their likelihoods, whatever the method.
    - `num_examples`: the first so many of each task only; none takes all.
    - `module`: a Python module that registers the user's own tasks.
    """

    mixture_or_task_name: str | Sequence[str]
    split: str | None = "validation"
    task_feature_lengths: Mapping[str, int]
    batch_size: int
    method: Any
    num_examples: int | None = None
    module: str | None = None

    def __post_init__(self) -> None:
        validation.check_feature_lengths(self.task_feature_lengths, required=("inputs",))
        validation.check_positive("EvalConfig.batch_size", self.batch_size)
        validation.check_made("DECODING", self.method)
        if self.num_examples is not None:
            validation.check_positive("EvalConfig.num_examples", self.num_examples)

    @property
    def decoding_method(self) -> Method:
        """The decoding method of the answers that are decoded."""
        if isinstance(self.method, decoding.RankClassification):
            return self.method.others or decoding.Greedy()
        return decoding.Greedy() if self.scores_targets else self.method

    @property
    def scores_targets(self) -> bool:
        """Whether the likelihood of the targets is scored, and no answer is decoded or chosen."""
        return isinstance(self.method, decoding.Likelihood)

    @property
    def names(self) -> Sequence[str]:
        """The names of the tasks and mixtures."""
        name = self.mixture_or_task_name
        return [name] if isinstance(name, str) else name

    @property
    def name(self) -> str:
        """The names of the tasks and mixtures, as a message lists them."""
        return ", ".join(self.names)
