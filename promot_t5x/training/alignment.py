r"""Gradient alignment: how much of what a step of fine-tuning learns is the format alone.

Labels that are shuffled among the same inputs leave a task's format and take its content away.
The cosine between the gradients on true and on shuffled labels is near 1 while both teach the same
(how to answer), and falls as what is left to learn is the task itself (arXiv 2211.00635, figures 3
and 7). It is below 0 where what helps on shuffled labels does harm on the true ones, as in a model
that prefers the right answers already. It is measured in the blocks that the paper looks at:
kernels of the last decoder layer.

Rows are drawn by the run's seed. How far a cosine would move with other rows is told by the
delete-a-group jackknife: the batches are taken in a few groups, and each is left out in turn.

    promot-t5x train --gin_file=models/… --gin_file=runs/finetune.gin \
        --gin_file=analyses/gradient_alignment.gin --gin.SHUFFLED_TASK='"rte_shuffled_labels"' …
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from promot_t5x.config import validation
from promot_t5x.data import batches, sources, store
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.files import append_json_line, keep_until
from promot_t5x.models.model import Model
from promot_t5x.network.scan import LAYER_AXIS
from promot_t5x.training import state, step

FILE = "gradient_alignment.jsonl"
# Kernels by their path within the layer; those of self- and cross-attention are taken together.
BLOCKS = {
    "MLP": r"mlp/\w+/kernel",
    "query": r"\w+attention/query/kernel",
    "key": r"\w+attention/key/kernel",
    "value": r"\w+attention/value/kernel",
}


_GROUPS = 8  # at most; each is a pair of gradients that are held at the same time


class Cosine(NamedTuple):
    """A cosine with its standard error over rows, which is NaN where one batch is all there is."""

    value: float
    standard_error: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What the gradients are taken on.

    **Attributes:**

    - `shuffled`: the task that asks what the stage's own task asks, in the same order, with the
      labels shuffled; `rte_shuffled_labels` is RTE's.
    - `num_batches`: so many batches of the training split, drawn by the run's seed, the same at
      every step.
    - `batch_size`: examples in one of them.
    - `steps`: when it is measured besides step 0 and the steps with a validation score.
    """

    shuffled: str
    num_batches: int = 32
    batch_size: int = 32
    steps: Sequence[int] = ()

    def __post_init__(self) -> None:
        for field in ("num_batches", "batch_size"):
            validation.check_positive(f"AlignmentConfig.{field}", getattr(self, field))
        for number in self.steps:
            validation.check_positive("AlignmentConfig.steps: a step", number)


class Alignment:
    """The cosines of one stage; `measure` may be called with the weights of many steps."""

    def __init__(
        self,
        model: Model,
        config: AlignmentConfig,
        data: Any,
        partitioner: Partitioner,
    ):
        """Check the input; examples are read when they are first needed.

        **Arguments:**

        - `model`: with a prompt table if the stage has a prompt.
        - `data`: the stage's `DatasetConfig`.
        """
        partitioner.check_batch(config.batch_size, "AlignmentConfig.batch_size")
        self._model, self._config, self._data, self._partitioner = model, config, data, partitioner
        self._tasks = [
            sources.resolve_tasks(
                name,
                model.vocabulary,
                module=data.module,
                split=data.split,
                dialect=model.dialect,
                task_format=model.task_format,
            )
            for name in (data.mixture_or_task_name, config.shuffled)
        ]
        if any(len(tasks) > 1 for tasks in self._tasks):
            raise UserError(
                "Gradient alignment compares one task with its shuffled counterpart, but "
                f"{data.mixture_or_task_name!r} and {config.shuffled!r} have "
                f"{' and '.join(str(len(tasks)) for tasks in self._tasks)} tasks."
            )
        self._batches: dict[int, list[tuple[Any, Any]]] = {}

    def is_due(self, step: int) -> bool:
        """Whether it is measured at a step that has no validation score."""
        return step in self._config.steps

    def measure(self, params: Any, token_cache: epath.Path | None, seed: int) -> dict[str, Cosine]:
        """Return the cosine of each of `BLOCKS`.

        **Arguments:**

        - `params`: nested dict of arrays that lie on the mesh.
        - `token_cache`: keeps tokenized examples from one launch to the next.
        - `seed`: draws the rows.
        """
        if seed not in self._batches:
            self._batches = {seed: self._read(token_cache, seed)}
        groups: list[Any] = []
        with self._partitioner.activate():
            for n, pair in enumerate(self._batches[seed]):
                made = self._gradients(params, *map(self._partitioner.place_batch, pair))
                if n < _GROUPS:
                    groups.append(made)
                else:
                    groups[n % _GROUPS] = _sum(groups[n % _GROUPS], made)
            whole = groups[0]
            for group in groups[1:]:
                whole = _sum(whole, group)
            found = jax.device_get(_cosines(*whole))
            without = [jax.device_get(_cosines(*_difference(whole, group))) for group in groups]
        return {block: Cosine(float(found[block]), _error(block, without)) for block in BLOCKS}

    @functools.cached_property
    def _gradients(self) -> Any:
        model = self._model

        def gradients(params: Any, batch: Any) -> dict[str, Any]:
            layer, rest = state.split(params, [f"{_stack(model)}/.*kernel"])
            found, _ = step.summed_gradients(model, layer, rest, batch, None)
            return last_layer(found, model)

        return jax.jit(lambda params, *both: [gradients(params, batch) for batch in both])

    def _read(self, token_cache: epath.Path | None, seed: int) -> list[tuple[Any, Any]]:
        """Read the same batches of both tasks; a `UserError` if they do not ask the same."""
        true, shuffled = (self._open(tasks, token_cache, seed) for tasks in self._tasks)
        count = min(len(true), len(shuffled))
        rows = self._partitioner.rows(self._config.batch_size)
        pairs = [(true.batch(i, rows), shuffled.batch(i, rows)) for i in range(count)]
        for one, other in pairs:
            if not np.array_equal(one["encoder_input_tokens"], other["encoder_input_tokens"]):
                raise UserError(
                    f"AlignmentConfig.shuffled = {self._config.shuffled!r} does not ask what "
                    f"{self._data.mixture_or_task_name!r} asks in the same order; name the task "
                    "with the same inputs and shuffled labels."
                )
        return pairs

    def _open(self, tasks: Any, token_cache: epath.Path | None, seed: int) -> batches.EvalBatches:
        prompts, prompt_length, _ = self._model.prompt_shape
        lengths = dict(self._data.task_feature_lengths)
        room = {**lengths, "inputs": lengths["inputs"] - prompt_length}
        split = self._data.split
        return batches.EvalBatches(
            tasks,
            [store.open_store(t, split, cache_dir=token_cache, text_lengths=room) for t in tasks],
            batch_size=self._config.batch_size,
            lengths=lengths,
            vocab_size=self._model.config.vocab_size,
            prompt_length=prompt_length,
            use_prompts=prompts > 0,
            limit=self._config.num_batches * self._config.batch_size,
            seed=seed,
            start_id=self._model.start_id,
        )


def last_layer(gradients: Any, model: Model) -> dict[str, Any]:
    """Gradients by path within the last decoder layer, scanned or not."""
    config = model.config
    flat = state.flatten(gradients)
    start = f"{_stack(model)}/"
    return {
        path.removeprefix(start): jnp.take(leaf, -1, LAYER_AXIS) if config.scan_layers else leaf
        for path, leaf in flat.items()
    }


def _stack(model: Model) -> str:
    """Where the parameters of the last decoder layer are; a scanned stack holds all layers."""
    if model.config.scan_layers:
        return "decoder/decoder"
    return f"decoder/layers_{model.config.num_decoder_layers - 1}"


@jax.jit
def _sum(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


@jax.jit
def _difference(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.subtract, one, other)


def _error(block: str, without: Sequence[Mapping[str, Any]]) -> float:
    """Return the jackknife's standard error, of the cosines without each of the groups."""
    groups = len(without)
    if groups < 2:
        return math.nan
    cosines = np.array([float(each[block]) for each in without])
    return float(np.sqrt((groups - 1) * cosines.var()))


@jax.jit
def _cosines(true: Mapping[str, Any], shuffled: Mapping[str, Any]) -> dict[str, Any]:
    """Each block's cosine; a block's arrays are taken as one vector."""

    def dot(paths: list[str], one: Mapping[str, Any], other: Mapping[str, Any]) -> Any:
        return sum(jnp.vdot(one[path], other[path]) for path in paths)

    cosines = {}
    for block, pattern in BLOCKS.items():
        paths = [path for path in true if re.fullmatch(pattern, path)]
        norms = dot(paths, true, true) * dot(paths, shuffled, shuffled)
        cosines[block] = dot(paths, true, shuffled) / jnp.sqrt(norms)
    return cosines


def write(directory: epath.Path, number: int, cosines: Mapping[str, Cosine]) -> None:
    """Append a step's cosines to the stage's `gradient_alignment.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    keep_until(directory / FILE, number - 1)
    values = {block: cosine.value for block, cosine in cosines.items()}
    errors = {b: c.standard_error for b, c in cosines.items() if not math.isnan(c.standard_error)}
    row = {"step": number, **values, "standard_error": errors}
    append_json_line(directory / FILE, row)
