"""The shape and numerics of a network, as one frozen value; a family has a class of its own.

Everything a network needs to be built is here, so that two runs with equal configs build the
same parameters and a config can be recorded beside a checkpoint.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.network.lora import LoRA

REMAT_POLICIES = ("none", "minimal", "full")
ACTIVATION_DTYPES = ("float32", "bfloat16")

# A config is no array: as static data it can be closed over by, or passed to, a jitted function.
static = functools.partial(struct.field, pytree_node=False)


@struct.dataclass
class NetworkConfig:
    """What the networks of all families have (names and defaults are T5X's where it has them).

    - `vocab_size`: rows of the embedding table, ids at and above it are prompt vectors.
    - `dtype`: of activations, float32 or bfloat16. Parameters are float32 and so are the logits.
    - `emb_dim`, `num_heads`, `head_dim`, `mlp_dim`: widths; heads x head_dim need not be emb_dim.
    - `num_encoder_layers`, `num_decoder_layers`: depths.
    - `mlp_activations`: `("relu",)` for T5 1.0, `("gelu", "linear")` (gated) for T5 1.1 and mT5.
    - `dropout_rate`: used wherever the family drops, when dropout is enabled in the call.
    - `scan_layers`: one compiled layer body for a whole stack, its parameters stacked.
    - `remat_policy`: what the backward pass recomputes: `none`, `minimal` (all but the products
      of activations with weights) or `full` (everything but each layer's input).
    - `num_prompts`, `prompt_length`: the table of soft prompts; none if either is 0.
    - `prompt_init`: called as `prompt_init(rng, shape, dtype)` for the table of prompts where the
      network's own `init` makes the parameters, as under upstream T5X; None is uniform in +-0.5.
    - `lora`: adapters of kernels; None has none.
    """

    # The fields of stacks that the family has.
    depths: ClassVar[tuple[str, ...]] = ("num_encoder_layers", "num_decoder_layers")

    vocab_size: int = static()
    dtype: Any = static(default=jnp.float32)
    emb_dim: int = static(default=512)
    num_heads: int = static(default=8)
    num_encoder_layers: int = static(default=6)
    num_decoder_layers: int = static(default=6)
    head_dim: int = static(default=64)
    mlp_dim: int = static(default=2048)
    mlp_activations: Sequence[str] = static(default=("relu",))
    dropout_rate: float = static(default=0.1)
    scan_layers: bool = static(default=False)
    remat_policy: str = static(default="none")
    num_prompts: int = static(default=0)
    prompt_length: int = static(default=0)
    prompt_init: Callable[..., Any] | None = static(default=None)
    lora: LoRA | None = static(default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        object.__setattr__(self, "dtype", self._activation_dtype())
        self._check_choice("remat_policy", REMAT_POLICIES)
        for name in self.mlp_activations:
            if name != "linear" and not callable(getattr(nn, name, None)):
                raise UserError(
                    f"{self._name}.mlp_activations has {name!r}, which is neither 'linear' nor a "
                    f"function of flax.linen.{did_you_mean(name, ('linear', *dir(nn)))}"
                )
        if not self.mlp_activations:
            raise UserError(f"{self._name}.mlp_activations is empty: T5 1.0 has ('relu',).")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise UserError(
                f"{self._name}.dropout_rate is {self.dropout_rate}; it must be in [0, 1)."
            )
        for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"):
            self._check_at_least(name, 1)
        for name in self.depths:
            self._check_at_least(name, 1)
        for name in ("num_prompts", "prompt_length"):
            self._check_at_least(name, 0)

    @property
    def num_virtual_ids(self) -> int:
        """Number of prompt vectors, which is the number of ids above the vocabulary."""
        return self.num_prompts * self.prompt_length

    @property
    def has_encoder(self) -> bool:
        """Whether inputs have a stack of their own; in a decoder-only network they have not."""
        return "num_encoder_layers" in self.depths

    def of_decoder(self) -> "NetworkConfig":
        """Return the configuration whose widths are the decoder's."""
        return self

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _activation_dtype(self) -> jnp.dtype:
        try:
            name = jnp.dtype(self.dtype).name
        except TypeError:
            name = str(self.dtype)
        object.__setattr__(self, "dtype", name)
        self._check_choice("dtype", ACTIVATION_DTYPES)
        found: jnp.dtype = jnp.dtype(name)
        return found

    def _check_choice(self, field: str, choices: Sequence[str]) -> None:
        value = getattr(self, field)
        if value not in choices:
            raise UserError(
                f"{self._name}.{field} is {value!r}; it must be one of "
                f"{', '.join(map(repr, choices))}." + did_you_mean(str(value), choices)
            )

    def _check_at_least(self, field: str, bound: float) -> None:
        if getattr(self, field) < bound:
            raise UserError(
                f"{self._name}.{field} is {getattr(self, field)}; it must be at least {bound}."
            )


@struct.dataclass
class T5Config(NetworkConfig):
    """T5 1.0, T5 1.1, mT5, umT5, ByT5: the fields of `NetworkConfig` and these.

    - `logits_via_embedding`: the embedding also projects to logits (T5 1.0).
    - `float32_attention_logits`: accumulate attention logits in float32 whatever `dtype` is.
    - `relative_bias_per_layer`: every layer has its own relative position bias, as in umT5 and in
      T5X's scalable networks; otherwise the layers of a stack share one.
    - `relpos_bias_init`: given whether the stack is bidirectional, returns the initializer of its
      [num_heads, 32] table of relative position biases; None is T5's own.
    """

    logits_via_embedding: bool = static(default=False)
    float32_attention_logits: bool = static(default=False)
    relative_bias_per_layer: bool = static(default=False)
    relpos_bias_init: Callable[[bool], Callable[..., Any]] | None = static(default=None)
