"""The parts of a T5 layer that are not attention: projections, norm, MLP, embedding, bias.

Each part declares its parameters with T5X's names, shapes and logical axes, float32 whatever the
activations are, and casts them where it uses them. Kernels and embeddings may also come in int8,
with scales (`quantization`) that multiply what a product gives.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from flax.linen.spmd import with_logical_constraint
from jax import lax
from jaxtyping import Array, Float, Int, Integer, Num

from promot_t5x.errors import UserError
from promot_t5x.network import quantization
from promot_t5x.network.config import NetworkConfig, T5Config
from promot_t5x.network.lora import LORA_A, LORA_B, RANK_AXIS, LoRA

Initializer = Callable[..., Array]

NUM_BUCKETS = 32
MAX_DISTANCE = 128
ACTIVATION_AXES = ("batch", "length", "embed")

attention_init = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
dense_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
bias_init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


class Dense(nn.Module):
    """A projection whose kernel is stored as a matrix, without bias unless it is asked for.

    The last `contracted` axes of the input are replaced by `features`; the kernel's shape is
    [product of the contracted sizes, product of `features`]. Where `lora` adapts that kernel, the
    adapter's part is added.
    """

    features: tuple[int, ...]
    kernel_axes: tuple[str, str]
    dtype: Any
    kernel_init: Initializer = dense_init
    contracted: int = 1
    lora: LoRA | None = None
    use_bias: bool = False

    @nn.compact
    def __call__(self, inputs: Float[Array, "*shape"]) -> Float[Array, "*projected"]:
        """Project the last `contracted` axes to `features`."""
        sizes = inputs.shape[-self.contracted :]
        shape = (int(np.prod(sizes)), int(np.prod(self.features)))
        kernel = param_with_axes(
            "kernel", self.kernel_init, shape, jnp.float32, axes=self.kernel_axes
        )
        projected = self._product(inputs, kernel.reshape(sizes + self.features), self.contracted)
        if kernel.dtype == jnp.int8:
            scales: Array = self.get_variable("params", quantization.scale_of("kernel"))
            projected = (projected * scales.reshape(self.features)).astype(self.dtype)
        if self.use_bias:
            bias = param_with_axes(
                "bias", nn.initializers.zeros, shape[1:], jnp.float32, axes=self.kernel_axes[1:]
            )
            projected = projected + bias.reshape(self.features).astype(self.dtype)
        if self.lora is None or not self.lora.adapts("/".join((*self.path, "kernel"))):
            return projected
        return projected + self._adapted(inputs, self.lora, shape)

    def _adapted(
        self, inputs: Float[Array, "*shape"], lora: LoRA, shape: tuple[int, int]
    ) -> Float[Array, "*projected"]:
        """Return the adapter's part; the product of its matrices is never made."""
        (rows, columns), (axis, other) = shape, self.kernel_axes
        a = param_with_axes(
            LORA_A, attention_init, (rows, lora.rank), jnp.float32, axes=(axis, RANK_AXIS)
        )
        b = param_with_axes(
            LORA_B,
            nn.initializers.zeros,
            (lora.rank, columns),
            jnp.float32,
            axes=(RANK_AXIS, other),
        )
        # Whoever wants dropout gives the call a key for it, and nobody else does.
        drop = nn.Dropout(lora.dropout_rate, deterministic=not self.has_rng("dropout"))
        sizes = inputs.shape[-self.contracted :]
        low = self._product(drop(inputs), a.reshape(*sizes, lora.rank), self.contracted)
        return self._product(low * lora.scale, b.reshape(lora.rank, *self.features), 1)

    def _product(
        self,
        inputs: Float[Array, "*shape"],
        kernel: Num[Array | np.ndarray, "..."],
        contracted: int,
    ) -> Float[Array, "*projected"]:
        last = tuple(range(inputs.ndim - contracted, inputs.ndim))
        first = tuple(range(contracted))
        return lax.dot_general(
            inputs.astype(self.dtype), kernel.astype(self.dtype), ((last, first), ((), ()))
        )


class LayerNorm(nn.Module):
    """T5's normalization: by the root mean square, in float32, with a scale and no bias."""

    dtype: Any
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length embed"]:
        """Divide each position by its root mean square and scale it."""
        x = inputs.astype(jnp.float32)
        mean_square = jnp.mean(lax.square(x), axis=-1, keepdims=True)
        normed = (x * lax.rsqrt(mean_square + self.epsilon)).astype(self.dtype)
        scale = param_with_axes(
            "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
        )
        scaled: Array = normed * scale.astype(self.dtype)
        return scaled


class Mlp(nn.Module):
    """One hidden layer, gated if the config names several activations (GLU variants, 2002.05202).

    The gate is the elementwise product of the branches `wi_0`, `wi_1`, ...
    """

    config: NetworkConfig

    @nn.compact
    def __call__(
        self, inputs: Float[Array, "batch length embed"], *, deterministic: bool
    ) -> Float[Array, "batch length embed"]:
        """Apply the branches, their product, dropout unless `deterministic`, and the output."""
        cfg = self.config
        hidden = None
        for i, activation in enumerate(cfg.mlp_activations):
            name = "wi" if len(cfg.mlp_activations) == 1 else f"wi_{i}"
            branch = Dense((cfg.mlp_dim,), ("embed", "mlp"), cfg.dtype, lora=cfg.lora, name=name)(
                inputs
            )
            if activation != "linear":
                branch = getattr(nn, activation)(branch)
            hidden = branch if hidden is None else hidden * branch
        hidden = nn.Dropout(cfg.dropout_rate, broadcast_dims=(-2,))(
            hidden, deterministic=deterministic
        )
        hidden = with_logical_constraint(hidden, ("batch", "length", "mlp"))
        wo = Dense((cfg.emb_dim,), ("mlp", "embed"), cfg.dtype, lora=cfg.lora, name="wo")
        return wo(hidden)


class Embed(nn.Module):
    """The vocabulary's table, [vocab_size, emb_dim]."""

    config: NetworkConfig
    embedding_init: Initializer = nn.initializers.normal(1.0)

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = param_with_axes(
            "embedding", self.embedding_init, shape, jnp.float32, axes=("vocab", "embed")
        )
        self.scales: Array | None = None  # of the rows
        if self.embedding.dtype == jnp.int8:
            self.scales = self.get_variable("params", quantization.scale_of("embedding"))

    def __call__(self, ids: Int[Array, "batch length"]) -> Float[Array, "batch length embed"]:
        """Look ids up; an id outside the table reads its nearest row."""
        # A gather: T5X's one-hot product costs vocab_size multiplications an element. The cast
        # comes after it, so that the table is not copied and its gradient adds up in float32.
        rows = jnp.take(self.embedding, ids, axis=0, mode="clip")
        if self.scales is not None:
            rows = rows * jnp.take(self.scales, ids, axis=0, mode="clip")[..., None]
        embedded: Array = with_logical_constraint(rows.astype(self.config.dtype), ACTIVATION_AXES)
        return embedded

    def attend(
        self, hidden: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length vocab"]:
        """Logits by the table itself, in float32, divided by sqrt(emb_dim) (T5 1.0)."""
        logits: Array = self.products(hidden) / np.sqrt(self.config.emb_dim)
        return logits

    def products(
        self, hidden: Float[Array, "batch length embed"]
    ) -> Float[Array, "batch length vocab"]:
        """Products of hidden states with every row of the table, in float32."""
        products: Array = hidden.astype(jnp.float32) @ self.embedding.astype(jnp.float32).T
        return products if self.scales is None else products * self.scales


def relative_position_bucket(
    offsets: Integer[np.ndarray, "*shape"],
    *,
    bidirectional: bool,
    num_buckets: int = NUM_BUCKETS,
    max_distance: int = MAX_DISTANCE,
) -> Integer[np.ndarray, "*shape"]:
    """T5's bucket of an offset (key position - query position), in [0, num_buckets).

    Half of the distances have a bucket each, the others share log-spaced ones up to
    `max_distance`. A bidirectional stack spends half of its buckets on keys after the query; a
    causal one puts all of those, which it never attends to, in bucket 0.
    """
    first = np.zeros_like(offsets)
    distance = np.maximum(-offsets, 0)
    if bidirectional:
        num_buckets //= 2
        first = np.where(offsets > 0, num_buckets, 0)
        distance = np.abs(offsets)
    exact = num_buckets // 2
    # Single precision, as T5X has it: the edges of the log-spaced buckets depend on the rounding.
    logs = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps)
    spaced = exact + (logs / np.log(max_distance / exact) * (num_buckets - exact)).astype(np.int32)
    spaced = np.minimum(spaced, num_buckets - 1)
    bucket: np.ndarray[Any, Any] = first + np.where(distance < exact, distance, spaced)
    return bucket.astype(np.int32)


class RelativePositionBias(nn.Module):
    """The bias of a stack's layers or of one layer: 32 buckets a head, added to the logits."""

    config: T5Config
    bidirectional: bool

    def setup(self) -> None:
        """Declare the parts and their parameters."""
        make = self.config.relpos_bias_init
        self.rel_embedding = param_with_axes(
            "rel_embedding",
            make(self.bidirectional) if make else bias_init,
            (self.config.num_heads, NUM_BUCKETS),
            jnp.float32,
            axes=("heads", "relpos_buckets"),
        )

    def __call__(self, length: int) -> Float[Array, "1 heads length length"]:
        """Bias of every query (third axis) and key (fourth axis) of a row of `length` tokens."""
        row = self.by_offset(length)
        if length == 1:
            return row
        # Every query's row is the one of offsets, a place further left. Laid end to end and cut
        # one short of their length, equal rows step left by themselves: no gather, whose gradient
        # would be a scatter, and no one-hot constant of [buckets, length, length].
        heads, offsets = row.shape[1], row.shape[3]
        flat = jnp.broadcast_to(row, (1, heads, length, offsets)).reshape(1, heads, -1)
        stepped = flat[..., length - 1 : length - 1 + length * (offsets - 1)]
        return stepped.reshape(1, heads, length, offsets - 1)[..., :length]

    def by_offset(self, length: int) -> Float[Array, "1 heads 1 offsets"]:
        """Bias of the offsets -(length - 1) ... length - 1.

        Decoding slices one query's row out of it, at a 1/length of the matrix's cost.
        """
        return self._look_up(np.arange(-(length - 1), length)[None, :])

    def of(
        self, length: int, decode: bool, max_decode_length: int | None
    ) -> Float[Array, "1 heads _ _"]:
        """Bias of a decoder's row: by offset in a decoding step, of a whole row otherwise."""
        if decode and length == 1:
            return self.by_offset(max_decode_length or 1)
        return self(length)

    def _look_up(
        self, offsets: Integer[np.ndarray, "query key"]
    ) -> Float[Array, "1 heads query key"]:
        buckets = relative_position_bucket(offsets, bidirectional=self.bidirectional)
        # A product with constant one-hot columns: exact, and its gradient is no scatter.
        one_hot = np.asarray(buckets[None] == np.arange(NUM_BUCKETS)[:, None, None])
        table = self.rel_embedding.astype(self.config.dtype)
        return jnp.einsum("hn,nqk->hqk", table, one_hot.astype(self.config.dtype))[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffsetBiasInit:
    """Initialize the first heads to look at chosen offsets, for `T5Config.relpos_bias_init`.

    A tiny network does not find copying heads in a short pretraining; with these it starts with
    them. Head i has `strength` in the bucket of the i-th offset (key position - query position)
    and 0 elsewhere; heads beyond the offsets get T5's initializer.
    """

    strength: float
    encoder_offsets: Sequence[int] = (-1, 1, -2, 2, -3, 3)
    decoder_offsets: Sequence[int] = (0, -1, -2, -3)

    def __post_init__(self) -> None:
        # Lists, as gin reads them, would make the config unhashable.
        object.__setattr__(self, "encoder_offsets", tuple(self.encoder_offsets))
        object.__setattr__(self, "decoder_offsets", tuple(self.decoder_offsets))

    def __call__(self, bidirectional: bool) -> Initializer:
        """Return the initializer of an encoder's (bidirectional) or a decoder's table."""
        offsets = self.encoder_offsets if bidirectional else self.decoder_offsets

        def init(rng: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
            if len(offsets) > shape[0]:
                raise UserError(
                    f"OffsetBiasInit has {len(offsets)} offsets {tuple(offsets)} for "
                    f"{shape[0]} heads: give at most one offset a head."
                )
            buckets = relative_position_bucket(np.array(offsets), bidirectional=bidirectional)
            chosen = jax.nn.one_hot(buckets, shape[1], dtype=dtype) * self.strength
            return jnp.concatenate([chosen, bias_init(rng, shape, dtype)[len(offsets) :]])

        return init
