"""Tasks of this project, and the user's, under their names in SeqIO's registry for T5X to find."""

import copy
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from promot_t5x.data import sources, vocabularies
from promot_t5x.data.lazy import import_seqio, import_tensorflow
from promot_t5x.errors import UserError
from promot_t5x.tasks import dialects
from promot_t5x.tasks.dialects import PLAIN, Dialect
from promot_t5x.tasks.format import DEFAULT, Format
from promot_t5x.upstream.feature_converter import PROMPT_STRIDE

# Names that stand in SeqIO's registry because `register` put them there.
_registered: set[str] = set()


def register(
    name: str,
    *,
    vocabulary: Any,
    num_prompts: int = 0,
    dialect: Dialect = PLAIN,
    task_format: Format = DEFAULT,
    module: str | None = None,
    rates: Mapping[str, float] | None = None,
) -> str:
    """Register a task or mixture for a model; return its name, for `utils.DatasetConfig`.

    **Arguments:**

    - `name`: MIXTURE_OR_TASK_NAME: one of this project's, with any number of demonstrations
      (`cb_4shot`), or one that SeqIO knows.
    - `vocabulary`, `dialect`, `task_format`: the model's, as in this project's own
      `models.EncoderDecoderModel`. A task that SeqIO knows keeps its vocabulary, which must be an
      equal one.
    - `num_prompts`: 0 without prompts, else one for each task, in the mixture's order.
    - `module`: MIXTURE_OR_TASK_MODULE, imported first.
    - `rates`: of some of a mixture's tasks, in place of its own.

    **Raises:** `UserError` for what `sources.resolve_tasks` refuses, for another number of prompts
    than of tasks, and where the user has registered a task under the name of one of this project.
    """
    seqio = import_seqio()
    if name in _registered:
        seqio.TaskRegistry.remove(name)
        seqio.MixtureRegistry.remove(name)
    vocabularies.check_padding(vocabulary)
    tasks = sources.resolve_tasks(
        name, vocabulary, module=module, rates=rates, dialect=dialect, task_format=task_format
    )
    if num_prompts and num_prompts != len(tasks):
        raise UserError(
            f"{name!r} has {len(tasks)} tasks but NUM_PROMPTS = {num_prompts}; every task has a "
            f"prompt of its own, so set NUM_PROMPTS = {len(tasks)}."
        )
    for bound in tasks:
        taken = bound.name in seqio.TaskRegistry.names() and bound.name not in _registered
        if taken and bound.definition is not None:
            raise UserError(
                f"{bound.name!r}, a task of {name!r}, is also a task of the imported module: give "
                "yours another name."
            )
        task = _numbered(bound.task, bound.prompt_index if num_prompts else 0)
        if bound.definition is not None:
            task = _spoken(task)
        seqio.TaskRegistry.remove(bound.name)
        seqio.TaskRegistry.add_provider(bound.name, task)
        if not taken:
            _registered.add(bound.name)
    if len(tasks) > 1:
        if name not in seqio.MixtureRegistry.names():
            _registered.add(name)
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, [(bound.name, bound.rate) for bound in tasks])
    return name


def _spoken(task: Any) -> Any:
    """Return the task with a vocabulary that writes sentinels out when it decodes an answer.

    T5X decodes with the task's vocabulary, and `Dialect.read` looks for the sentinels.
    """
    targets = task.output_features["targets"]
    vocabulary = copy.copy(targets.vocabulary)

    def decode(self: Any, ids: Any) -> str:
        return dialects.decode(targets.vocabulary, [int(token) for token in ids])

    def decode_tf(self: Any, ids: Any) -> Any:
        """Decode one answer, [length], or several, [answers, length]; not inside a graph."""
        rows = ids.numpy()
        texts = [decode(self, row) for row in rows] if rows.ndim > 1 else decode(self, rows)
        return import_tensorflow().constant(texts)

    own = type(vocabulary)
    vocabulary.__class__ = type(own.__name__, (own,), {"decode": decode, "decode_tf": decode_tf})
    features = {
        **task.output_features,
        "targets": dataclasses.replace(targets, vocabulary=vocabulary),
    }
    return task.replace(output_features=features)


def _numbered(task: Any, prompt: int) -> Any:
    """Put a task's prompt's number on each example's first id; see `feature_converter`."""
    steps = [step for step in task.preprocessors if getattr(step, "func", None) is not _number]
    if prompt:
        steps.append(functools.partial(_number, prompt=prompt))
    return task if steps == list(task.preprocessors) else task.replace(preprocessors=steps)


def _number(dataset: Any, *, prompt: int) -> Any:
    def numbered(example: Mapping[str, Any]) -> dict[str, Any]:
        inputs, tf = example["inputs"], import_tensorflow()
        first = inputs[:1] + prompt * PROMPT_STRIDE
        return {**example, "inputs": tf.concat([first, inputs[1:]], 0)}

    return import_seqio().map_over_dataset(numbered)(dataset)
