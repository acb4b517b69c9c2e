"""T5Gemma: encoder-decoders made of Gemma 2's layers, with the signatures of T5's stacks.

`config` is the shape of a network, `layers` has the norm, rotary positions and soft caps,
`attention` grouped queries and windows, `stacks` the encoder and the decoder.
"""

from promot_t5x.network.gemma.config import T5GemmaConfig as T5GemmaConfig
