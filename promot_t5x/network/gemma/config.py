"""The shapes and numerics of networks with grouped queries and rotary positions."""

import dataclasses

from flax import struct

from promot_t5x.errors import UserError
from promot_t5x.network.config import NetworkConfig, static

DECODER_WIDTHS = ("emb_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")


@struct.dataclass
class GroupedQueryConfig(NetworkConfig):
    """What Gemma's layers have beside T5's: the fields of `NetworkConfig` and these.

    Lengths of windows are in tokens, their own included.

    - `num_kv_heads`: heads of keys and values; each serves num_heads / num_kv_heads queries.
    - `query_scale`: attention logits are divided by its square root (`query_pre_attn_scalar`).
    - `attention_soft_cap`, `logits_soft_cap`: c in c tanh(x / c); 0 has none.
    - `sliding_window`: how near a key must be in the layers that slide; 0 lets none slide.
    - `full_attention_period`: every so many-th layer sees everything, the others slide.
    - `rope_theta`: the base of the rotary position embedding's wavelengths.
    - `norm_epsilon`: added to the mean square.
    - `norm_plus_one`: norms scale by 1 + w (Gemma); False: by w (Llama, Qwen).
    - `qk_norm`: queries and keys are normalized, head by head (Gemma 3, Qwen 3).
    - `qkv_bias`: queries, keys and values have a bias (Qwen 2.5).
    - `sliding_rope_theta`: `rope_theta` of the layers that slide; None: the same (Gemma 2).
    - `rope_factor`: positions are divided by it in the layers that see everything.
    """

    num_kv_heads: int = static(default=8)
    query_scale: float = static(default=256)
    attention_soft_cap: float = static(default=50.0)
    logits_soft_cap: float = static(default=30.0)
    sliding_window: int = static(default=4096)
    full_attention_period: int = static(default=2)
    rope_theta: float = static(default=10_000.0)
    norm_epsilon: float = static(default=1e-6)
    norm_plus_one: bool = static(default=True)
    qk_norm: bool = static(default=False)
    qkv_bias: bool = static(default=False)
    sliding_rope_theta: float | None = static(default=None)
    rope_factor: float = static(default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("num_kv_heads", 1)
        self._check_at_least("full_attention_period", 1)
        for name in ("attention_soft_cap", "logits_soft_cap", "sliding_window"):
            self._check_at_least(name, 0)
        for name in ("query_scale", "rope_theta", "sliding_rope_theta", "rope_factor"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"{self._name}.{name} is {value}; it must be above 0.")
        self._check_heads("")

    def _check_heads(self, side: str) -> None:
        heads, kv_heads = getattr(self, f"{side}num_heads"), getattr(self, f"{side}num_kv_heads")
        if heads % kv_heads:
            raise UserError(
                f"{self._name}.{side}num_heads = {heads} is no multiple of {side}num_kv_heads "
                f"= {kv_heads}, whose heads the queries share."
            )
        if (head_dim := getattr(self, f"{side}head_dim")) % 2:
            raise UserError(
                f"{self._name}.{side}head_dim is {head_dim}; it must be even, because "
                "positions rotate pairs."
            )


@struct.dataclass
class T5GemmaConfig(GroupedQueryConfig):
    """T5Gemma 1 (arXiv 2504.06225): the fields of `GroupedQueryConfig` and these.

    - `decoder_emb_dim`, `decoder_num_heads`, `decoder_num_kv_heads`, `decoder_head_dim`,
      `decoder_mlp_dim`: the decoder's widths; None makes each the encoder's (all but 9b-2b).
    """

    decoder_emb_dim: int | None = static(default=None)
    decoder_num_heads: int | None = static(default=None)
    decoder_num_kv_heads: int | None = static(default=None)
    decoder_head_dim: int | None = static(default=None)
    decoder_mlp_dim: int | None = static(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in DECODER_WIDTHS:
            if getattr(self, f"decoder_{name}") is None:
                object.__setattr__(self, f"decoder_{name}", getattr(self, name))
        self._check_heads("decoder_")

    def of_decoder(self) -> "T5GemmaConfig":
        """Return the configuration whose widths are the decoder's."""
        own = {name: getattr(self, f"decoder_{name}") for name in DECODER_WIDTHS}
        return dataclasses.replace(self, **own)


@struct.dataclass
class DecoderOnlyConfig(GroupedQueryConfig):
    """Gemma 1, 2 and 3, Llama 3, Qwen 2.5 and 3: the fields of `GroupedQueryConfig` and these.

    There is no encoder: `num_decoder_layers` is the depth.

    - `post_norms`: what attention and MLP add is normalized, too (Gemma 2 and 3).
    - `scaled_embeddings`: embeddings are multiplied by sqrt(emb_dim) (Gemma).
    - `logits_via_embedding`: the embedding also projects to logits.
    - `prefix_mask`: tokens of the inputs see all of them, and not only those before.
    """

    depths = ("num_decoder_layers",)

    num_encoder_layers: int = static(default=0)
    post_norms: bool = static(default=True)
    scaled_embeddings: bool = static(default=True)
    logits_via_embedding: bool = static(default=True)
    prefix_mask: bool = static(default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_encoder_layers:
            raise UserError(
                f"{self._name}.num_encoder_layers is {self.num_encoder_layers}; a decoder-only "
                "network has none: its depth is num_decoder_layers."
            )
        if not self.sliding_window and self.full_attention_period != 1:
            raise UserError(
                f"{self._name}.full_attention_period is {self.full_attention_period}, but "
                "sliding_window is 0, so that no layer slides; set full_attention_period to 1."
            )
