"""The families of networks: which stacks a configuration is built of."""

from collections.abc import Callable
from typing import Any, NamedTuple

from promot_t5x.network import stacks
from promot_t5x.network.config import NetworkConfig, T5Config
from promot_t5x.network.gemma import stacks as gemma_stacks
from promot_t5x.network.gemma.config import T5GemmaConfig
from promot_t5x.network.layers import Embed

AnyEncoder = stacks.Encoder | gemma_stacks.Encoder
AnyDecoder = stacks.Decoder | gemma_stacks.Decoder


class Family(NamedTuple):
    """What makes the parts of a network.

    **Attributes:**

    - `embedder`: of a configuration, the embedding of the encoder's ids.
    - `encoder`, `decoder`: of a configuration and that embedding, a stack each.
    """

    embedder: Callable[[Any], Embed]
    encoder: Callable[[Any, Embed], AnyEncoder]
    decoder: Callable[[Any, Embed], AnyDecoder]


_FAMILIES: dict[type[NetworkConfig], Family] = {
    T5Config: Family(Embed, stacks.Encoder, stacks.Decoder),
    T5GemmaConfig: Family(
        gemma_stacks.embedder,
        gemma_stacks.Encoder,
        lambda config, _: gemma_stacks.Decoder(config.of_decoder()),
    ),
}


def family_of(config: NetworkConfig) -> Family:
    """Return the family of a configuration."""
    return _FAMILIES[type(config)]
