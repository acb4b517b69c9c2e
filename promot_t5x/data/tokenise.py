"""A SeqIO task's split as token ids: the one place where a tf.data pipeline runs.

Runs once a split, in file order and without SeqIO's trimming: how much text fits depends on
the run (feature lengths, prompt), the tokens do not. The exception is a task with a
preprocessor that asks for `sequence_length` itself (span corruption, few-shot pruning): it is
given the run's lengths. `append_eos_after_trim` is no such preprocessor, because text is
trimmed later with its EOS kept, and counted.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from promot_t5x.data.lazy import PREPARE_TFDS, import_seqio, import_tensorflow
from promot_t5x.errors import UserError
from promot_t5x.tasks import pipeline_errors

FEATURES = ("inputs", "targets")
# Counts that the project's tasks give with each example of what its prompt lost, and how an
# example that lost something is spoken of. Where a task has no article, the longest field of its
# question counts as one.
LOSSES = {"dropped_shots": "demonstrations dropped", "cut_articles": "articles cut"}
# Random preprocessors draw from this seed, so that every host and every run gets the same
# tokens; what differs between epochs is the order, never the text.
_SEED = 0
_EXAMPLES_AT_ONCE = 512


class Ragged(NamedTuple):
    """Sequences of different lengths: their tokens in a row, and the length of each."""

    tokens: Int32[np.ndarray, " tokens"]
    lengths: Int64[np.ndarray, " sequences"]


def depends_on_lengths(task: Any) -> bool:
    """Whether the task's tokens depend on the feature lengths of the run."""
    seqio = import_seqio()
    own = (seqio.preprocessors.append_eos_after_trim,)
    return any(
        "sequence_length" in inspect.signature(step).parameters
        for step in task.preprocessors
        if step not in own
    )


def tokenised(
    task: Any, split: str, lengths: Mapping[str, int] | None
) -> Iterator[dict[str, Ragged]]:
    """Yield the inputs and targets of a split, some hundred examples at a time.

    A chunk also has, for tasks that give them, the counts named in `LOSSES`, one an example.

    Args:
        task: a `seqio.Task`.
        split: one of its splits.
        lengths: room for text by feature; only for a task that `depends_on_lengths`.
    """
    tf = import_tensorflow()
    data = _check(task, examples(task, split, lengths))
    wanted = (*FEATURES, *(name for name in LOSSES if name in data.element_spec))
    data = data.map(
        lambda example: {name: tf.cast(example[name], tf.int32) for name in wanted},
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    try:
        for batch in data.ragged_batch(_EXAMPLES_AT_ONCE).prefetch(2):
            yield {name: _ragged(batch[name]) for name in wanted}
    except tf.errors.OpError as error:
        raise unreadable(task, split, error) from error


def examples(task: Any, split: str, lengths: Mapping[str, int] | None) -> Any:
    """A split as a tf.data.Dataset of all the fields that the task's pipeline yields.

    Args:
        task: a `seqio.Task`.
        split: one of its splits.
        lengths: as for `tokenised`.
    """
    if task.requires_caching:
        raise UserError(
            f"Task {task.name!r} can only be read from SeqIO's offline cache "
            "(CacheDatasetPlaceholder(required=True)), which is not supported: tokens are cached "
            "here anyway. Take `required=True` away."
        )
    if lengths is not None:
        task = task.replace(preprocessors=[_untrimmed(step) for step in task.preprocessors])
    data = _opened(task, split)
    data = task.preprocess_precache(data, seed=_SEED)
    return task.preprocess_postcache(data, sequence_length=lengths, seed=_SEED)


def _opened(task: Any, split: str) -> Any:
    try:
        return task.source.get_dataset(split=split, shuffle=False)
    except UserError:
        raise
    # Sources fail here in their own ways: a data set not prepared, no network, a missing file.
    except Exception as error:
        raise unreadable(task, split, error) from error


def unreadable(task: Any, split: str, error: Exception) -> UserError:
    """The error for a split that its source, or the task's preprocessors, cannot read."""
    if (message := pipeline_errors.stated(error)) is not None:
        return UserError(f"Task {task.name!r}, split {split!r}: {message}.")
    return UserError(
        f"The examples of task {task.name!r}, split {split!r}, cannot be read: "
        f"{pipeline_errors.described(error)}. {PREPARE_TFDS}"
    )


def _untrimmed(step: Any) -> Any:
    preprocessors = import_seqio().preprocessors
    return preprocessors.append_eos if step is preprocessors.append_eos_after_trim else step


def _check(task: Any, data: Any) -> Any:
    spec = data.element_spec
    for name in FEATURES:
        if name not in spec:
            raise UserError(
                f"Task {task.name!r} yields no {name!r} after its preprocessors, only "
                f"{sorted(spec)}: an encoder-decoder model needs both 'inputs' and 'targets'."
            )
    for name in FEATURES:
        if spec[name].shape.rank != 1 or not spec[name].dtype.is_integer:
            raise UserError(
                f"Task {task.name!r} yields {name!r} as {spec[name]}, not as a list of token ids: "
                "does its list of preprocessors end with seqio.preprocessors.tokenize?"
            )
    return data


def _ragged(batch: Any) -> Ragged:
    if hasattr(batch, "row_lengths"):
        return Ragged(batch.values.numpy(), batch.row_lengths().numpy().astype(np.int64))
    dense = batch.numpy().reshape(batch.shape[0], -1)
    return Ragged(dense.reshape(-1), np.full(len(dense), dense.shape[1], np.int64))
