"""The teacher-forced loss on an evaluation's examples: T5X's `training_eval`.

It moves where a decoded score does not yet: a model that answers nothing right may still be on its
way. Of checkpoints with equal scores the one with the least loss is the best.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.data import batches, sources, store
from promot_t5x.distributed import startup
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.evaluation.question_set import QuestionSet
from promot_t5x.models import loss
from promot_t5x.models.model import Batch, Model
from promot_t5x.training.state import Tree


class ValidationLoss:
    """Loss and accuracy of the targets, given the tokens before them.

    **Arguments:**

    - `model`: as it trains; dropout is off.
    - `config`: names the examples: tasks, split, lengths, how many.
    - `questions`: the same evaluation's tasks.
    - `partitioner`: the mesh that the weights lie on.
    - `pack`: whether a row holds as many examples as fit, as it does in training.
    """

    def __init__(
        self,
        model: Model,
        config: EvalConfig,
        questions: QuestionSet,
        partitioner: Partitioner,
        *,
        pack: bool,
    ):
        self._model, self._config, self._partitioner = model, config, partitioner
        self._questions, self._pack = questions, pack
        self._batches: dict[str, batches.EvalBatches] = {}

    def open(self, token_cache: epath.Path | None) -> None:
        """Read the examples, if they have not been; `token_cache` as `measure` takes it.

        **Raises:** `UserError` for a row that cannot be read.
        """
        if not self._batches:
            self._batches = {
                task.name: self._open(task, token_cache) for task in self._questions.tasks
            }

    def measure(self, params: Tree, token_cache: epath.Path | None) -> dict[str, dict[str, float]]:
        """Return each task's metrics, under T5X's names.

        **Arguments:**

        - `params`: nested dict of arrays that lie on the mesh.
        - `token_cache`: keeps tokenized examples from one launch to the next.

        **Returns:** by task `loss`, `cross_ent_loss` and `z_loss` in nats per target token and
        `accuracy`, the share of target tokens that are the likeliest; no entry for a task without
        target tokens.
        """
        sums = self.sums(lambda batch: self._sums(params, batch), token_cache)
        return {name: _per_token(each) for name, each in sums.items()}

    def sums(
        self, of_batch: Callable[[Batch], loss.LossSums], token_cache: epath.Path | None
    ) -> dict[str, loss.LossSums]:
        """Return each task's sums over all batches; no entry for one without target tokens.

        **Arguments:**

        - `of_batch`: the sums of a batch that lies on the mesh.
        - `token_cache`: as `measure` takes it.
        """
        self.open(token_cache)
        found = {}
        with self._partitioner.activate():
            for name, data in self._batches.items():
                rows = self._partitioner.rows(self._config.batch_size)
                sums = loss.LossSums(*np.zeros(len(loss.LossSums._fields)))
                for index in range(len(data)):
                    batch = self._partitioner.place_batch(data.batch(index, rows))
                    # Added up in float64, so that many batches lose no digits.
                    sums = loss.LossSums(*np.add(sums, np.float64(jax.device_get(of_batch(batch)))))
                if sums.weight_sum:
                    found[name] = sums
        return found

    @functools.cached_property
    def _sums(self) -> Any:
        return jax.jit(lambda params, batch: self._model.loss_sums(params, batch))

    def _open(self, task: sources.BoundTask, token_cache: epath.Path | None) -> batches.EvalBatches:
        prompts, prompt_length, _ = self._model.prompt_shape
        inputs = self._config.task_feature_lengths["inputs"]
        targets = self._questions.answer_length(task)
        split = self._questions.split(task)
        budget = {"inputs": inputs - prompt_length, "targets": targets}
        with startup.first_on_host():  # which tokenizes
            examples = store.open_store(task, split, cache_dir=token_cache, text_lengths=budget)
        return batches.EvalBatches(
            [task],
            [examples],
            batch_size=self._config.batch_size,
            lengths={"inputs": inputs, "targets": targets},
            pack=self._pack,
            vocab_size=self._model.config.vocab_size,
            prompt_length=prompt_length,
            use_prompts=prompts > 0,
            start_id=self._model.start_id,
            limit=self._config.num_examples,
        )


def _per_token(sums: loss.LossSums) -> dict[str, float]:
    tokens = float(sums.weight_sum)
    return {
        "loss": float(sums.total) / tokens,
        "cross_ent_loss": float(sums.cross_entropy) / tokens,
        "z_loss": float(sums.z_loss) / tokens,
        "loss_per_nonpadding_target_token": float(sums.total) / tokens,
        "accuracy": float(sums.correct) / tokens,
    }
