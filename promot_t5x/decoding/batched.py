"""A few compiled programs over a data set of any lengths: what decoding and scoring share.

Examples are sorted by length and padded to one of a few input lengths, the last batch of each
kind is filled with padding rows, and while the host reads one batch's result the devices work on
the next one. Where an example's result is, and what it is, depends on none of this.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32

from promot_t5x.decoding.length_buckets import (
    Batch,
    Lengths,
    batches_by_length,
    choose_input_lengths,
)
from promot_t5x.errors import UserError
from promot_t5x.network.attention import NO_TOKEN


def fill_id(start_id: int | None) -> int:
    """Return what fills rows up behind their tokens, where the decoder begins with `start_id`."""
    return NO_TOKEN if start_id is None else 0


def begun(
    tokens: Int[Array, "batch length"], start_id: int | None
) -> tuple[Int[Array, "batch length"], Int[Array, "batch 1"] | int]:
    """Return the inputs as the decoder looks back at them, and what it begins with.

    **Arguments:**

    - `start_id`: as `BatchedProgram` has it. None takes the last token of each row.
    """
    if start_id is not None:
        return tokens, start_id
    last = jnp.sum(tokens != NO_TOKEN, axis=1, keepdims=True) - 1
    first = jnp.take_along_axis(tokens, jnp.maximum(last, 0), axis=1)
    return jnp.where(jnp.arange(tokens.shape[1]) == last, NO_TOKEN, tokens), first


@dataclasses.dataclass
class BatchedProgram:
    """What a data set is cut into, and where its batches lie.

    **Attributes:**

    - `module`: a `network.Transformer` or `network.DecoderOnly`.
    - `batch_size`: examples in a batch.
    - `max_buckets`: most input lengths chosen for one data set.
    - `length_multiple`: every chosen input length is a multiple of it.
    - `input_lengths`: input lengths to use instead of choosing them from the data.
    - `batch_sharding`: of a batch of inputs on a mesh; the parameters lie on the same mesh. Every
      process passes all examples and gets all results.
    - `start_id`: what the decoder begins with, T5's is 0; None for a decoder-only network's: the
      last token of the inputs.
    - `compilations`: (input length, output length) of each program compiled so far.

    **Raises** `UserError` where the sharding does not divide the batch.
    """

    module: Any
    _: dataclasses.KW_ONLY
    batch_size: int
    max_buckets: int = 4
    length_multiple: int = 16
    input_lengths: tuple[int, ...] = ()
    batch_sharding: NamedSharding | None = None
    start_id: int | None = 0
    compilations: list[tuple[int, int]] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if self.batch_sharding is None:
            return
        rows = self.batch_sharding.shard_shape((self.batch_sharding.mesh.size, 1))[0]
        shards = self.batch_sharding.mesh.size // rows
        if self.batch_size % shards:
            raise UserError(
                f"batch_size = {self.batch_size} is not divisible by the {shards} devices that the "
                f"mesh splits a batch over; use a multiple of {shards}."
            )

    def plan(self, lengths: Lengths, limits: Lengths | int) -> list[Batch]:
        """Plan the batches of a data set: a function of these lengths and the settings alone.

        **Arguments:**

        - `lengths`: of the inputs, in tokens.
        - `limits`: the most tokens of each example's answer.

        **Raises** `UserError` for an example without tokens, or longer than the longest of
        `input_lengths`.
        """
        if not len(lengths):
            return []
        chosen = self.input_lengths or choose_input_lengths(
            lengths,
            limits,
            batch_size=self.batch_size,
            max_buckets=self.max_buckets,
            multiple=self.length_multiple,
        )
        return batches_by_length(lengths, limits, chosen, self.batch_size)

    def _results(self, started: Iterator[tuple[Batch, Any]]) -> Iterator[tuple[Batch, Any]]:
        """Each batch and what came of it, as numpy arrays without the padding rows."""
        # One batch is always under way on the devices while the host reads the one before.
        running = None
        for following in started:
            if running is not None:
                yield _on_host(*running)
            running = following
        if running is not None:
            yield _on_host(*running)

    @property
    def _replicated(self) -> NamedSharding | None:
        """Where results lie: whole in every process."""
        if self.batch_sharding is None:
            return None
        return NamedSharding(self.batch_sharding.mesh, PartitionSpec())

    def _padded(self, sequences: Sequence[np.ndarray], batch: Batch) -> Array:
        """Place the inputs of a batch on the mesh, int32 [batch_size, input_length]."""
        tokens = self._filled(self.batch_size, batch.input_length)
        for position, row in enumerate(batch.rows):
            tokens[position, : len(sequences[row])] = sequences[row]
        return self._place(tokens)

    def _filled(self, *shape: int) -> Int32[np.ndarray, "..."]:
        """Return an array without any tokens."""
        return np.full(shape, fill_id(self.start_id), np.int32)

    def _place(self, array: np.ndarray) -> Array:
        if self.batch_sharding is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, self.batch_sharding, lambda i: array[i])


def _on_host(batch: Batch, result: Any) -> tuple[Batch, Any]:
    count = len(batch.rows)
    return batch, jax.tree.map(lambda a: np.asarray(a)[:count] if a.ndim else int(a), result)
