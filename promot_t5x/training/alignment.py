r"""Gradient alignment: how much of what a step of fine-tuning learns is the format alone.

Labels that are shuffled among the same inputs leave a task's format and take its content away.
The cosine between the gradients on true and on shuffled labels is near 1 while both teach the same
(how to answer), and falls as what is left to learn is the task itself (arXiv 2211.00635, figures 3
and 7). It is measured in the blocks that the paper looks at: kernels of the last decoder layer.

    promot-t5x train --gin_file=models/… --gin_file=runs/finetune.gin \
        --gin_file=analyses/gradient_alignment.gin --gin.SHUFFLED_TASK='"rte_shuffled_labels"' …
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from promot_t5x.config import validation
from promot_t5x.data import batches, sources, store
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.files import append_json_line, keep_until
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """What the gradients are taken on.

    **Attributes:**

    - `shuffled`: the task that asks what the stage's own task asks, in the same order, with the
      labels shuffled; `rte_shuffled_labels` is RTE's.
    - `num_batches`: the first so many batches of the training split, the same at every step.
    - `batch_size`: examples in one of them.
    """

    shuffled: str
    num_batches: int = 8
    batch_size: int = 32

    def __post_init__(self) -> None:
        for field in ("num_batches", "batch_size"):
            validation.check_positive(f"AlignmentConfig.{field}", getattr(self, field))


class Alignment:
    """The cosines of one stage; `measure` may be called with the weights of many steps."""

    def __init__(
        self,
        model: EncoderDecoderModel,
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
        self._batches: list[tuple[Any, Any]] = []

    def measure(self, params: Any, token_cache: epath.Path | None) -> dict[str, float]:
        """Return the cosine of each of `BLOCKS`.

        **Arguments:**

        - `params`: nested dict of arrays that lie on the mesh.
        - `token_cache`: keeps tokenized examples from one launch to the next.
        """
        if not self._batches:
            self._batches = self._read(token_cache)
        with self._partitioner.activate():
            parts = [
                self._gradients(params, *map(self._partitioner.place_batch, pair))
                for pair in self._batches
            ]
            true, shuffled = jax.tree.map(lambda *each: sum(each), *parts)
            found = jax.device_get(_cosines(true, shuffled))
        return {block: float(found[block]) for block in BLOCKS}

    @functools.cached_property
    def _gradients(self) -> Any:
        model = self._model

        def gradients(params: Any, batch: Any) -> dict[str, Any]:
            layer, rest = state.split(params, [f"{_stack(model)}/.*kernel"])
            found, _ = step.summed_gradients(model, layer, rest, batch, None)
            return last_layer(found, model)

        return jax.jit(lambda params, *both: [gradients(params, batch) for batch in both])

    def _read(self, token_cache: epath.Path | None) -> list[tuple[Any, Any]]:
        """Read the same batches of both tasks; a `UserError` if they do not ask the same."""
        true, shuffled = (self._open(tasks, token_cache) for tasks in self._tasks)
        count = min(self._config.num_batches, len(true), len(shuffled))
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

    def _open(self, tasks: Any, token_cache: epath.Path | None) -> batches.EvalBatches:
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
            start_id=self._model.start_id,
        )


def last_layer(gradients: Any, model: EncoderDecoderModel) -> dict[str, Any]:
    """Gradients by path within the last decoder layer, scanned or not."""
    config = model.config
    flat = state.flatten(gradients)
    start = f"{_stack(model)}/"
    return {
        path.removeprefix(start): jnp.take(leaf, -1, LAYER_AXIS) if config.scan_layers else leaf
        for path, leaf in flat.items()
    }


def _stack(model: EncoderDecoderModel) -> str:
    """Where the parameters of the last decoder layer are; a scanned stack holds all layers."""
    if model.config.scan_layers:
        return "decoder/decoder"
    return f"decoder/layers_{model.config.num_decoder_layers - 1}"


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


def write(directory: epath.Path, number: int, cosines: Mapping[str, float]) -> None:
    """Append a step's cosines to the stage's `gradient_alignment.jsonl`."""
    directory.mkdir(parents=True, exist_ok=True)
    keep_until(directory / FILE, number - 1)
    append_json_line(directory / FILE, {"step": number, **cosines})
