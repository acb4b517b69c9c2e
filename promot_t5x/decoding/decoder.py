"""Decoding with a Transformer: `decode` for a batch, `Decoder` for a data set.

What a batch costs: the encoder and the projection of its output to cross-attention keys
and values once per example, then one decoder step per output token until every row has
ended. The hypotheses of an example share its cross-attention keys and values in memory;
only self-attention keys and values exist per hypothesis. `Decoder` adds a compilation per
input length, of which it chooses a handful. `scoring` takes the likelihood of given answers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from promot_t5x.decoding.batched import BatchedProgram, begun, fill_id
from promot_t5x.decoding.length_buckets import Batch, Lengths
from promot_t5x.decoding.search import (
    BeamSearch,
    Cache,
    Decodes,
    Greedy,
    Method,
    Sampling,
    Step,
    beam_search,
    sample,
)

Params = Mapping[str, Any]
Tokens = Int[Array | np.ndarray, "batch length"]
CACHED_PER_HYPOTHESIS = ("cached_key", "cached_value")


def decode(
    module: Any,
    params: Params,
    encoder_input_tokens: Tokens,
    *,
    max_decode_length: int,
    method: Method,
    limit: Int[Array, ""] | int | None = None,
    rng: Key[Array, ""] | None = None,
    example_ids: Int[Array, " batch"] | None = None,
    eos_id: int = 1,
    start_id: int | None = 0,
) -> Decodes:
    """Decode a batch; traceable, so wrap it in `jax.jit` with all but the arrays bound.

    **Arguments:**

    - `module`: a `network.Transformer` or `network.DecoderOnly`.
    - `encoder_input_tokens`: ids, 0 where padded (-1 where `start_id` is None); prompt ids are
      welcome. A row without tokens is padding of the batch: it counts as ended from the start and
      comes out as it is.
    - `max_decode_length`: room for decoded tokens, EOS included.
    - `limit`: most tokens decoded, at most and by default `max_decode_length`; it is no part of
      the program, so batches with answers of different lengths share one.
    - `method`: `Greedy`, `Sampling` or `BeamSearch`.
    - `rng`: typed key for `Sampling`; without one, it is made from `method.seed`.
    - `example_ids`: what tells the examples' random streams apart; the row number by default.
    - `eos_id`, `start_id`: what ends an answer and what the decoder begins with; T5's by default.
      None begins with the last token of the inputs, as decoder-only networks do.

    **Returns** `Decodes` of `method.num_decodes` hypotheses a row, the best last.
    """
    encoder_input_tokens = jnp.asarray(encoder_input_tokens)
    before, first = begun(encoder_input_tokens, start_id)
    step, cache = _decoder_step(
        module, params, encoder_input_tokens, before, method.num_decodes, max_decode_length
    )
    filled = fill_id(start_id)
    search: dict[str, Any] = {
        "is_padding": ~jnp.any(encoder_input_tokens > filled, axis=1),
        "length": max_decode_length,
        "limit": limit,
        "eos_id": eos_id,
        "start_id": first,
        "fill_id": filled,
    }
    if isinstance(method, BeamSearch):
        return beam_search(step, reorder, cache, method, **search)
    keys = None
    if isinstance(method, Sampling):
        rng = seed_key(method.seed) if rng is None else rng
        if example_ids is None:
            example_ids = jnp.arange(encoder_input_tokens.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, example_ids)
    return sample(step, cache, method, keys=keys, **search)


def seed_key(seed: int) -> Key[Array, ""]:
    """Return a key whose draws do not depend on the batch; the hardware generators' would."""
    return jax.random.key(seed, impl="threefry2x32")


def _decoder_step(
    module: Any,
    params: Params,
    encoder_input_tokens: Tokens,
    before: Tokens,
    num_decodes: int,
    max_decode_length: int,
) -> tuple[Step, Cache]:
    """Run the encoder; return the decoder's step over its output, and an empty cache.

    **Arguments:**

    - `before`: the inputs that the decoder's first token follows.
    """
    variables = {"params": params}
    encoded = module.apply(variables, encoder_input_tokens, enable_dropout=False, method="encode")
    cross = module.apply(variables, encoded, method="cross_key_values")

    def step(
        ids: Int[Array, "batch n"], cache: Cache
    ) -> tuple[Float[Array, "batch n vocab"], Cache]:
        # The hypotheses of an example are adjacent rows, which share its keys and values.
        rows = ids.reshape(-1, 1)
        logits, updated = module.apply(
            {**variables, "cache": cache},
            None,
            before,
            rows,
            rows,
            enable_dropout=False,
            decode=True,
            max_decode_length=max_decode_length,
            cross_key_values=cross,
            mutable=["cache"],
            method="decode",
        )
        return logits.reshape(*ids.shape, -1), updated["cache"]

    rows = encoder_input_tokens.shape[0] * num_decodes
    return step, empty_cache(module, params, rows, max_decode_length)


def empty_cache(module: Any, params: Params, rows: int, length: int) -> Cache:
    """Zeros of the module's own shapes: the first decoding call of T5X's protocol, not run."""
    inputs = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    targets = jax.ShapeDtypeStruct((rows, length), jnp.int32)

    def start(params: Params, inputs: Array, targets: Array) -> Cache:
        _, variables = module.apply(
            {"params": params},
            inputs,
            targets,
            targets,
            enable_dropout=False,
            decode=True,
            mutable=["cache"],
        )
        return variables["cache"]

    shapes = jax.eval_shape(start, params, inputs, targets)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def reorder(cache: Cache, beams: Int[Array, "batch n"]) -> Cache:
    """Gather self-attention keys and values; the index is the same for every hypothesis."""

    def gather(path: Any, leaf: Array) -> Array:
        if path[-1].key not in CACHED_PER_HYPOTHESIS:
            return leaf
        # [(layers,) batch * n, heads, head_dim, length]: layers lead where they are scanned.
        axis = leaf.ndim - 4
        split = leaf.reshape(*leaf.shape[:axis], *beams.shape, *leaf.shape[axis + 1 :])
        index = beams.reshape((1,) * axis + beams.shape + (1, 1, 1))
        return jnp.take_along_axis(split, index, axis=axis + 1).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(gather, cache)


@dataclasses.dataclass
class Decoder(BatchedProgram):
    """Decodes examples of any lengths, in any order, with a few compiled programs.

    The decodes of an example depend on neither the other examples nor the batch size; sampling
    depends on the example's number.

    **Attributes** besides those of `BatchedProgram`:

    - `method`, `eos_id`: see `decode`.
    """

    _: dataclasses.KW_ONLY
    method: Method = dataclasses.field(default_factory=Greedy)
    eos_id: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._program = jax.jit(
            self._decode, static_argnames="length", out_shardings=self._replicated
        )

    def __call__(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        max_decode_length: Lengths | int,
        *,
        rng: Key[Array, ""] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Decodes:
        """Decode every sequence.

        **Arguments:**

        - `sequences`: int32 ids [length] of each example, without padding.
        - `max_decode_length`: most tokens decoded of each, or of all, EOS included.
        - `rng`: for `Sampling`; `method.seed` is used without one.
        - `progress`: called with (examples done, examples in all) after each batch.

        **Returns** `Decodes` of numpy arrays whose row i belongs to sequence i; `steps` is
        the sum over the batches.

        **Raises** `UserError` as `plan` does.
        """
        batches = self.plan([len(sequence) for sequence in sequences], max_decode_length)
        shape = (len(sequences), self.method.num_decodes)
        ids = self._filled(*shape, int(np.max(max_decode_length, initial=0)))
        scores = np.zeros(shape, np.float32)
        steps = done = 0
        for batch, decodes in self.run(params, sequences, batches, rng=rng):
            ids[batch.rows, :, : batch.output_length] = decodes.ids
            scores[batch.rows] = decodes.scores
            steps += decodes.steps
            done += len(batch.rows)
            if progress is not None:
                progress(done, len(sequences))
        return Decodes(ids, scores, steps)

    def tokens(self, ids: Int[np.ndarray, " length"]) -> Int[np.ndarray, " tokens"]:
        """Return a hypothesis without what fills it up."""
        filled = fill_id(self.start_id)
        return np.trim_zeros(ids - filled, "b") + filled

    def lower(self, params: Params, input_length: int, output_length: int) -> jax.stages.Lowered:
        """Lower the program for inputs of one length from shapes, without arrays or devices.

        **Arguments:**

        - `params`: a tree of `jax.ShapeDtypeStruct`s with shardings.
        """

        def ints(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.batch_sharding)

        tokens, example_ids = ints(self.batch_size, input_length), ints(self.batch_size)
        limit = jax.ShapeDtypeStruct((), jnp.int32)
        rng = None
        if isinstance(self.method, Sampling):
            rng = jax.eval_shape(seed_key, self.method.seed)
        return self._program.lower(params, tokens, limit, example_ids, rng, length=output_length)

    def run(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        batches: Sequence[Batch],
        *,
        numbers: Int[np.ndarray, " examples"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> Iterator[tuple[Batch, Decodes]]:
        """Decode some of the batches of a plan; yields each with its rows' decodes.

        **Arguments:**

        - `sequences`: all of those that were planned for.
        - `numbers`: what tells the examples' random streams apart; their places by default.
        """
        if isinstance(self.method, Sampling) and rng is None:
            rng = seed_key(self.method.seed)
        return self._results(self._started(params, sequences, batches, numbers, rng))

    def _started(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        batches: Sequence[Batch],
        numbers: Int[np.ndarray, " examples"] | None,
        rng: Key[Array, ""] | None,
    ) -> Iterator[tuple[Batch, Decodes]]:
        for batch in batches:
            example_ids = np.zeros(self.batch_size, np.int32)
            example_ids[: len(batch.rows)] = batch.rows if numbers is None else numbers[batch.rows]
            decodes = self._program(
                params,
                self._padded(sequences, batch),
                np.int32(batch.limit),
                self._place(example_ids),
                rng,
                length=batch.output_length,
            )
            yield batch, decodes

    def _decode(
        self,
        params: Params,
        tokens: Tokens,
        limit: Int[Array, ""],
        example_ids: Int[Array, " batch"],
        rng: Key[Array, ""] | None,
        length: int,
    ) -> Decodes:
        # Python runs this body once per program, when it is traced.
        self.compilations.append((tokens.shape[1], length))
        return decode(
            self.module,
            params,
            tokens,
            max_decode_length=length,
            method=self.method,
            limit=limit,
            rng=rng,
            example_ids=example_ids,
            eos_id=self.eos_id,
            start_id=self.start_id,
        )
