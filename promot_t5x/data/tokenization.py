"""A SeqIO task's split as token ids: the one place where a task's pipeline runs.

Runs without SeqIO's trimming: how much text fits depends on the run (feature lengths, prompt), the
tokens do not. The exception is a task with a preprocessor that asks for `sequence_length` itself
(span corruption, few-shot pruning): it is given the run's lengths. `append_eos_after_trim` is no
such preprocessor, because text is trimmed later with its EOS kept, and counted.
"""

import contextlib
import dataclasses
import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.data import slices
from promot_t5x.data.lazy import PREPARE_TFDS, import_seqio, import_tensorflow
from promot_t5x.data.ragged import FEATURES, Ragged
from promot_t5x.data.rows import Rows, type_of_columns
from promot_t5x.errors import UserError
from promot_t5x.tasks import pipeline_errors
from promot_t5x.tasks.encoding import RENDERED, EncodeWhole
from promot_t5x.tasks.rows import map_rows

# Counts that the project's tasks give with each example of what its prompt lost, and how an
# example that lost something is spoken of. Where a task has no article, the longest field of its
# question counts as one.
TRUNCATIONS = {"dropped_shots": "demonstrations dropped", "cut_articles": "articles cut"}
EXAMPLES_AT_ONCE = 512
# Random preprocessors draw from this seed, so that every host and every run gets the same
# tokens; what differs between epochs is the order, never the text.
_SEED = 0
_ROWS_AT_ONCE = 4096

# Inputs and targets of some examples and, for tasks that give them, the counts in `TRUNCATIONS`.
Tokens = dict[str, Ragged]


class Pipeline:
    """The steps of a task as functions of a `tf.data.Dataset` of rows and of a batch of it."""

    def __init__(
        self,
        task: Any,
        split: str,
        lengths: Mapping[str, int] | None,
        shot_seed: int | None = None,
    ):
        """Take the project's own last step, if the task has it, for whole batches.

        **Arguments:**

        - `task`: a `seqio.Task`.
        - `split`: one of its splits.
        - `lengths`: room for text by feature; only for a task that `depends_on_lengths`.
        - `shot_seed`: draw demonstrations for each epoch anew, with this seed; only for a task that
          `shows_demonstrations`. None draws those of evaluation.
        """
        self._shot_seed = shot_seed
        self.task, self.split, self._lengths = task, split, lengths
        steps = list(task.preprocessors)
        self._encode = _encoding_step(task)
        if self._encode is not None:
            steps = steps[: steps.index(self._encode)]
            self._budget = self._encode.budget(lengths)
        self._ends = {
            name: [feature.vocabulary.eos_id] if feature.add_eos else []
            for name, feature in task.output_features.items()
        }
        self._steps = _untrimmed(task, steps)

    def dataset(self, rows: Any) -> Any:
        """Return the data set whose batches `tokens` takes, of one of raw rows."""
        data = _preprocessed(self._steps, rows, self._lengths)
        if self._encode is not None:
            return data
        tf = import_tensorflow()
        data = _check(self.task, data)
        wanted = (*FEATURES, *(name for name in TRUNCATIONS if name in data.element_spec))
        return map_rows(data, lambda row: {name: tf.cast(row[name], tf.int32) for name in wanted})

    def tokens(
        self, batch: Mapping[str, Any], epochs: Int64[np.ndarray, " rows"] | None = None
    ) -> Tokens:
        """Return the tokens of a ragged batch.

        **Arguments:**

        - `epochs`: of each row, where epochs have demonstrations of their own; None is the first.
        """
        if self._encode is None:
            return {name: _ragged(values) for name, values in batch.items()}
        return self.encoded(self.rendered(batch), epochs)

    @staticmethod
    def rendered(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Return what `encoded` takes, of a batch of a task that the project has rendered."""
        return {name: batch[name].numpy() for name in RENDERED}

    def encoded(
        self,
        rows: Mapping[str, np.ndarray],
        epochs: Int64[np.ndarray, " rows"] | None = None,
    ) -> Tokens:
        """Return the tokens of rendered rows; arguments as of `tokens`."""
        assert self._encode is not None  # rows have been rendered
        seed, drawn = self._shot_seed, {}
        if seed is not None:
            numbers = np.zeros(len(rows["id"]), np.int64) if epochs is None else epochs
            drawn = {"epochs": [(seed, int(epoch)) for epoch in numbers]}
        made = self._encode.examples(rows, self._budget, **drawn)
        return {
            "inputs": _joined([each.inputs + self._ends["inputs"] for each in made]),
            "targets": _joined([each.targets + self._ends["targets"] for each in made]),
            **{loss: _joined([[getattr(each, loss)] for each in made]) for loss in TRUNCATIONS},
        }

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn TensorFlow's errors into a `UserError` that names task and split."""
        try:
            yield
        except import_tensorflow().errors.OpError as error:
            raise unreadable(self.task, self.split, error) from error


def tokenized(pipeline: Pipeline, rows: Rows | None) -> Iterator[Tokens]:
    """Yield the tokens of a split from its first row to its last, some hundred at a time.

    **Arguments:**

    - `rows`: the rows of the split, where they can be had without its source, which is slower.
    """
    yield from map(pipeline.tokens, _batches(pipeline, rows))


def rendered(pipeline: Pipeline, rows: Rows | None) -> Iterator[dict[str, np.ndarray]]:
    """Yield the rendered rows of a split that `shows_demonstrations`; arguments as `tokenized`."""
    yield from map(pipeline.rendered, _batches(pipeline, rows))


def _batches(pipeline: Pipeline, rows: Rows | None) -> Iterator[Any]:
    source = _opened(pipeline.task, pipeline.split) if rows is None else _streamed(rows)
    with pipeline.explained():
        yield from pipeline.dataset(source).ragged_batch(EXAMPLES_AT_ONCE).prefetch(2)


def depends_on_lengths(task: Any) -> bool:
    """Whether the task's tokens depend on the feature lengths of the run."""
    seqio = import_seqio()
    own = (seqio.preprocessors.append_eos_after_trim,)
    return any("sequence_length" in _takes(step) for step in task.preprocessors if step not in own)


def shows_demonstrations(task: Any) -> bool:
    """Whether the task's prompts show demonstrations that the project draws."""
    step = _encoding_step(task)
    return step is not None and step.assembler.pool is not None


def _encoding_step(task: Any) -> EncodeWhole | None:
    return next((step for step in task.preprocessors if isinstance(step, EncodeWhole)), None)


def _takes(step: Any) -> Iterable[str]:
    """Return what SeqIO may hand to a preprocessor: fields of a dataclass, or arguments."""
    if dataclasses.is_dataclass(step):
        return [field.name for field in dataclasses.fields(step)]
    return inspect.signature(step).parameters


def examples(task: Any, split: str, lengths: Mapping[str, int] | None) -> Any:
    """Return a split as a tf.data.Dataset of all the fields that the task's pipeline yields.

    **Arguments:** those of `Pipeline`.
    """
    steps = _untrimmed(task, task.preprocessors)
    return _preprocessed(steps, _opened(task, split), lengths)


def unreadable(task: Any, split: str, error: Exception) -> UserError:
    """Return the error for a split that its source, or the task's preprocessors, cannot read."""
    if (message := pipeline_errors.stated(error)) is not None:
        return UserError(
            f"The examples of task {task.name!r}, split {split!r}, cannot be read: {message}."
        )
    return UserError(
        f"The examples of task {task.name!r}, split {split!r}, cannot be read: "
        f"{pipeline_errors.described(error)}. {PREPARE_TFDS}"
    )


def _opened(task: Any, split: str) -> Any:
    try:
        return slices.open_rows(task.source, split)
    except UserError:
        raise
    # Sources fail here in their own ways: a data set not prepared, no network, a missing file.
    except Exception as error:
        raise unreadable(task, split, error) from error


def _streamed(rows: Rows) -> Any:
    """All rows in their order, some thousand read at a time."""
    tf = import_tensorflow()
    size = len(rows)

    def columns() -> Iterator[Any]:
        for start in range(0, size, _ROWS_AT_ONCE):
            yield rows.columns(np.arange(start, min(start + _ROWS_AT_ONCE, size)))

    read = tf.data.Dataset.from_generator(columns, output_signature=type_of_columns(rows))
    return read.prefetch(1).flat_map(rows.dataset)


def _preprocessed(task: Any, rows: Any, lengths: Mapping[str, int] | None) -> Any:
    data = task.preprocess_precache(rows, seed=_SEED)
    return task.preprocess_postcache(data, sequence_length=lengths, seed=_SEED)


def _untrimmed(task: Any, steps: Sequence[Any]) -> Any:
    """Return the task with these steps, none of which trims."""
    if task.requires_caching:
        raise UserError(
            f"Task {task.name!r} can only be read from SeqIO's offline cache "
            "(CacheDatasetPlaceholder(required=True)), which is not supported: tokens are cached "
            "here anyway. Take `required=True` away."
        )
    known = import_seqio().preprocessors
    kept = [known.append_eos if step is known.append_eos_after_trim else step for step in steps]
    return task.replace(preprocessors=kept)


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


def _joined(sequences: Sequence[Sequence[int]]) -> Ragged:
    tokens = np.fromiter(itertools.chain.from_iterable(sequences), np.int32)
    return Ragged(tokens, np.array([len(each) for each in sequences], np.int64))
