"""How far a model has gone from its base: KL(base over tuned) on the target, without any prompt.

The divergence of a token is the sum over the vocabulary of p_base ln(p_base / p), both given the
input and the target tokens before it; the drift is its mean over target tokens. It predicts how
much is forgotten before any other task is asked (2509.04259), and is 0 where nothing has moved.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.evaluation.question_set import QuestionSet
from promot_t5x.evaluation.validation_loss import ValidationLoss
from promot_t5x.files import append_json_line, keep_until
from promot_t5x.models.model import Model
from promot_t5x.models.objectives import Divergence
from promot_t5x.training.state import Tree

FILE = "drift.jsonl"
NAME = "drift"  # of the metric


class Drift:
    """The drift on an evaluation's examples.

    **Arguments:**

    - `model`: without any prompt.
    - `prompt_length`: of the prompt that it trains with; the text has the room that is left.
    - `config`, `questions`, `partitioner`, `pack`: as `ValidationLoss` has them.
    """

    def __init__(
        self,
        model: Model,
        prompt_length: int,
        config: EvalConfig,
        questions: QuestionSet,
        partitioner: Partitioner,
        *,
        pack: bool,
    ):
        self._model = model
        lengths = dict(config.task_feature_lengths)
        lengths["inputs"] -= prompt_length
        plain = dataclasses.replace(config, task_feature_lengths=lengths)
        self._examples = ValidationLoss(self._model, plain, questions, partitioner, pack=pack)

    def measure(self, params: Tree, base: Tree, token_cache: epath.Path | None) -> dict[str, float]:
        """Return each task's drift in nats per target token.

        **Arguments:**

        - `params`, `base`: the model and its base without any prompt, nested dicts of arrays that
          lie on the mesh.
        - `token_cache`: keeps tokenized examples from one launch to the next.
        """
        sums = self._examples.sums(lambda batch: self._sums(params, base, batch), token_cache)
        return {name: float(each.total / each.weight_sum) for name, each in sums.items()}

    @functools.cached_property
    def _sums(self) -> Any:
        def sums(params: Tree, base: Tree, batch: Any) -> Any:
            return self._model.loss_sums(params, batch, objective=Divergence(), base=base)

        return jax.jit(sums)


def write(directory: epath.Path, number: int, drifts: Mapping[str, float]) -> None:
    """Append a step's drift, by task, to the stage's `drift.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    keep_until(directory / FILE, number - 1)
    append_json_line(directory / FILE, {"step": number, **drifts})
