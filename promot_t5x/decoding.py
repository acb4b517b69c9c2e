"""Decoding with a Transformer: `decode` and `score` for a batch, `Decoder` for a data set.

What a batch costs: the encoder and the projection of its output to cross-attention keys
and values once per example, then one decoder step per output token until every row has
ended. The hypotheses of an example share its cross-attention keys and values in memory;
only self-attention keys and values exist per hypothesis. `Decoder` adds a compilation per
input length, of which it chooses a handful.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key

from promot_t5x.buckets import batches_by_length, choose_input_lengths
from promot_t5x.errors import UserError
from promot_t5x.logits import token_log_prob
from promot_t5x.search import (
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
    rng: Key[Array, ""] | None = None,
    example_ids: Int[Array, " batch"] | None = None,
    eos_id: int = 1,
) -> Decodes:
    """Decode a batch; traceable, so wrap it in `jax.jit` with all but the arrays bound.

    **Arguments:**

    - `module`: a `network.Transformer`.
    - `encoder_input_tokens`: ids, 0 where padded; prompt ids are welcome. A row of zeros is
      padding of the batch: it counts as ended from the start and comes out as zeros.
    - `max_decode_length`: most tokens decoded, EOS included.
    - `method`: `Greedy`, `Sampling` or `BeamSearch`.
    - `rng`: typed key for `Sampling`; without one, it is made from `method.seed`.
    - `example_ids`: what tells the examples' random streams apart; the row number by default.

    **Returns** `Decodes` of `method.num_decodes` hypotheses a row, the best last.
    """
    encoder_input_tokens = jnp.asarray(encoder_input_tokens)
    step, cache = _decoder_step(
        module, params, encoder_input_tokens, method.num_decodes, max_decode_length
    )
    is_padding = ~jnp.any(encoder_input_tokens > 0, axis=1)
    if isinstance(method, BeamSearch):
        return beam_search(
            step,
            _reorder,
            cache,
            method,
            is_padding=is_padding,
            length=max_decode_length,
            eos_id=eos_id,
        )
    keys = None
    if isinstance(method, Sampling):
        rng = seed_key(method.seed) if rng is None else rng
        if example_ids is None:
            example_ids = jnp.arange(encoder_input_tokens.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, example_ids)
    return sample(
        step,
        cache,
        method,
        is_padding=is_padding,
        length=max_decode_length,
        eos_id=eos_id,
        keys=keys,
    )


def seed_key(seed: int) -> Key[Array, ""]:
    """A key whose draws do not depend on the batch; the hardware generators' would."""
    return jax.random.key(seed, impl="threefry2x32")


def _decoder_step(
    module: Any,
    params: Params,
    encoder_input_tokens: Tokens,
    num_decodes: int,
    max_decode_length: int,
) -> tuple[Step, Cache]:
    """Run the encoder; return the decoder's step over its output, and an empty cache."""
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
            encoder_input_tokens,
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
    return step, _empty_cache(module, params, rows, max_decode_length)


def _empty_cache(module: Any, params: Params, rows: int, length: int) -> Cache:
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


def _reorder(cache: Cache, beams: Int[Array, "batch n"]) -> Cache:
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


def score(module: Any, params: Params, batch: Mapping[str, Tokens]) -> Float[Array, " batch"]:
    """Log-likelihood of the targets given the inputs, as T5X's `score_batch`.

    **Arguments:**

    - `batch`: `encoder_input_tokens`, `decoder_input_tokens`, `decoder_target_tokens` and
      `decoder_loss_weights`, each int32 [batch, length], not packed.

    **Returns** the weighted sum of the target tokens' log-probabilities.
    """
    targets = jnp.asarray(batch["decoder_target_tokens"])
    logits = module.apply(
        {"params": params},
        batch["encoder_input_tokens"],
        batch["decoder_input_tokens"],
        targets,
        enable_dropout=False,
    ).astype(jnp.float32)
    log_probs = token_log_prob(logits, targets)
    return jnp.sum(log_probs * batch["decoder_loss_weights"], axis=-1)


@dataclasses.dataclass
class Decoder:
    """Decodes examples of any lengths, in any order, with a few compiled programs.

    Examples are sorted by length and padded to one of a few input lengths; the last batch
    of each length is filled with padding rows. The decodes of an example depend on neither
    the other examples nor the batch size; sampling depends on its place in the data.

    **Attributes:**

    - `module`: a `network.Transformer`.
    - `max_decode_length`: most tokens decoded, EOS included.
    - `batch_size`: examples in a batch.
    - `method`, `eos_id`: see `decode`.
    - `max_buckets`: most input lengths chosen for one call.
    - `length_multiple`: every chosen input length is a multiple of it.
    - `input_lengths`: input lengths to use instead of choosing them from the data, so that
      several data sets share programs.
    - `batch_sharding`: of a batch of inputs on a mesh; the parameters lie on the same mesh. Every
      process passes all examples and gets all decodes.
    - `compilations`: (input length, output length) of each program compiled so far.

    **Raises** `UserError` where the sharding does not divide the batch.
    """

    module: Any
    _: dataclasses.KW_ONLY
    max_decode_length: int
    batch_size: int
    method: Method = Greedy()
    eos_id: int = 1
    max_buckets: int = 4
    length_multiple: int = 16
    input_lengths: tuple[int, ...] = ()
    batch_sharding: NamedSharding | None = None
    compilations: list[tuple[int, int]] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        outputs = None
        if self.batch_sharding is not None:
            rows = self.batch_sharding.shard_shape((self.batch_sharding.mesh.size, 1))[0]
            shards = self.batch_sharding.mesh.size // rows
            if self.batch_size % shards:
                raise UserError(
                    f"Decoder.batch_size = {self.batch_size} is not divisible by the {shards} "
                    f"devices that the mesh splits a batch over; use a multiple of {shards}."
                )
            outputs = NamedSharding(self.batch_sharding.mesh, PartitionSpec())
        self._program = jax.jit(self._decode, out_shardings=outputs)

    def __call__(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        *,
        rng: Key[Array, ""] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Decodes:
        """Decode every sequence.

        **Arguments:**

        - `sequences`: int32 ids [length] of each example, without padding.
        - `rng`: for `Sampling`; `method.seed` is used without one.
        - `progress`: called with (examples done, examples in all) after each batch.

        **Returns** `Decodes` of numpy arrays whose row i belongs to sequence i; `steps` is
        the sum over the batches.

        **Raises** `UserError` for an empty sequence, or one that is longer than the longest
        of `input_lengths`.
        """
        shape = (len(sequences), self.method.num_decodes)
        ids = np.zeros((*shape, self.max_decode_length), np.int32)
        scores = np.zeros(shape, np.float32)
        steps = done = 0
        if isinstance(self.method, Sampling) and rng is None:
            rng = seed_key(self.method.seed)
        for rows, decodes in self._run(params, sequences, rng):
            ids[rows] = np.asarray(decodes.ids)[: len(rows)]
            scores[rows] = np.asarray(decodes.scores)[: len(rows)]
            steps += int(decodes.steps)
            done += len(rows)
            if progress is not None:
                progress(done, len(sequences))
        return Decodes(ids, scores, steps)

    def lower(self, params: Params, input_length: int) -> jax.stages.Lowered:
        """The program for inputs of one length, from shapes: needs no arrays and no devices.

        **Arguments:**

        - `params`: a tree of `jax.ShapeDtypeStruct`s with shardings.
        """

        def ints(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.batch_sharding)

        tokens, example_ids = ints(self.batch_size, input_length), ints(self.batch_size)
        rng = None
        if isinstance(self.method, Sampling):
            rng = jax.eval_shape(seed_key, self.method.seed)
        return self._program.lower(params, tokens, example_ids, rng)

    def _run(
        self, params: Params, sequences: Sequence[np.ndarray], rng: Key[Array, ""] | None
    ) -> Iterator[tuple[np.ndarray, Decodes]]:
        """The examples of each batch and their decodes."""
        # One batch is always under way on the devices while the host reads the one before.
        running = None
        for rows, length in self._batches(sequences):
            started = rows, self._start(params, sequences, rows, length, rng)
            if running is not None:
                yield running
            running = started
        if running is not None:
            yield running

    def _batches(self, sequences: Sequence[np.ndarray]) -> list[tuple[np.ndarray, int]]:
        if not sequences:
            return []
        lengths = np.array([len(sequence) for sequence in sequences])
        input_lengths = self.input_lengths or choose_input_lengths(
            lengths,
            batch_size=self.batch_size,
            max_decode_length=self.max_decode_length,
            max_buckets=self.max_buckets,
            multiple=self.length_multiple,
        )
        return batches_by_length(lengths, input_lengths, self.batch_size)

    def _start(
        self,
        params: Params,
        sequences: Sequence[np.ndarray],
        rows: np.ndarray,
        length: int,
        rng: Key[Array, ""] | None,
    ) -> Decodes:
        tokens = np.zeros((self.batch_size, length), np.int32)
        example_ids = np.zeros(self.batch_size, np.int32)
        example_ids[: len(rows)] = rows
        for position, row in enumerate(rows):
            tokens[position, : len(sequences[row])] = sequences[row]
        return self._program(params, self._place(tokens), self._place(example_ids), rng)

    def _place(self, array: np.ndarray) -> Array:
        if self.batch_sharding is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, self.batch_sharding, lambda i: array[i])

    def _decode(
        self,
        params: Params,
        tokens: Tokens,
        example_ids: Int[Array, " batch"],
        rng: Key[Array, ""] | None,
    ) -> Decodes:
        # Python runs this body once per program, when it is traced.
        self.compilations.append((tokens.shape[1], self.max_decode_length))
        return decode(
            self.module,
            params,
            tokens,
            max_decode_length=self.max_decode_length,
            method=self.method,
            rng=rng,
            example_ids=example_ids,
            eos_id=self.eos_id,
        )
