"""Networks of Gemma's layers: T5Gemma's encoder-decoders, and decoder-only ones.

`config` is the shape of a network, `layers` has the norm, rotary positions and soft caps,
`attention` grouped queries and windows, `stacks` T5Gemma's encoder and decoder, with the signatures
of T5's, and `decoder_only` Gemma, Llama and Qwen.
"""

from promot_t5x.network.gemma.config import DecoderOnlyConfig as DecoderOnlyConfig
from promot_t5x.network.gemma.config import T5GemmaConfig as T5GemmaConfig
from promot_t5x.network.gemma.decoder_only import DecoderOnly as DecoderOnly
