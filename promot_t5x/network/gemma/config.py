"""The shape and numerics of a T5Gemma network."""

import dataclasses

from flax import struct

from promot_t5x.errors import UserError
from promot_t5x.network.config import NetworkConfig, static

DECODER_WIDTHS = ("emb_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")


@struct.dataclass
class T5GemmaConfig(NetworkConfig):
    """T5Gemma 1 (arXiv 2504.06225): the fields of `NetworkConfig` and these.

    Lengths of windows are in tokens, their own included.

    - `num_kv_heads`: heads of keys and values; each serves num_heads / num_kv_heads queries.
    - `decoder_emb_dim`, `decoder_num_heads`, `decoder_num_kv_heads`, `decoder_head_dim`,
      `decoder_mlp_dim`: the decoder's widths; None makes each the encoder's (all but 9b-2b).
    - `query_scale`: attention logits are divided by its square root (`query_pre_attn_scalar`).
    - `attention_soft_cap`, `logits_soft_cap`: c in c tanh(x / c); 0 has none.
    - `sliding_window`: how near a key must be in the layers that slide; 0 lets none slide.
    - `full_attention_period`: every so many-th layer sees everything, the others slide.
    - `rope_theta`: the base of the rotary position embedding's wavelengths.
    - `norm_epsilon`: added to the mean square.
    """

    num_kv_heads: int = static(default=8)
    decoder_emb_dim: int | None = static(default=None)
    decoder_num_heads: int | None = static(default=None)
    decoder_num_kv_heads: int | None = static(default=None)
    decoder_head_dim: int | None = static(default=None)
    decoder_mlp_dim: int | None = static(default=None)
    query_scale: float = static(default=256)
    attention_soft_cap: float = static(default=50.0)
    logits_soft_cap: float = static(default=30.0)
    sliding_window: int = static(default=4096)
    full_attention_period: int = static(default=2)
    rope_theta: float = static(default=10_000.0)
    norm_epsilon: float = static(default=1e-6)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least("num_kv_heads", 1)
        self._check_at_least("full_attention_period", 1)
        for name in ("attention_soft_cap", "logits_soft_cap", "sliding_window"):
            self._check_at_least(name, 0)
        if not self.query_scale > 0:
            raise UserError(f"{self._name}.query_scale is {self.query_scale}; it must be above 0.")
        for name in DECODER_WIDTHS:
            if getattr(self, f"decoder_{name}") is None:
                object.__setattr__(self, f"decoder_{name}", getattr(self, name))
        for side in ("", "decoder_"):
            heads, kv_heads = (
                getattr(self, f"{side}num_heads"),
                getattr(self, f"{side}num_kv_heads"),
            )
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

    def of_decoder(self) -> "T5GemmaConfig":
        """Return the configuration whose widths are the decoder's."""
        own = {name: getattr(self, f"decoder_{name}") for name in DECODER_WIDTHS}
        return dataclasses.replace(self, **own)
