"""Networks and their soft prompts, as flax linen modules with T5X's names and parameter tree.

`config` is the shape of a network as one frozen value, `layers` and `attention` are the parts of a
layer, `stacks` the encoder and the decoder made of them (all of these T5's), `repeated` how a layer
becomes a stack, `transformer` the module that T5X's own code can call, and `prompt` the table of
virtual tokens. `prompt_init` says what a new prompt starts from, `lora` which kernels have adapters
beside them and what these add, `scan` where the layers of a scanned network lie, `parameters` what
parameters a configuration's network has, `quantization` how kernels and embeddings that do not
train lie in int8. Read them in that order. `gemma` is another family: configurations and stacks of
its own, which `families` lists, a decoder-only network, and the layers that are the same shared.
Public are `T5Config`, `T5GemmaConfig`, `DecoderOnlyConfig`, `Transformer`, `DecoderOnly` and
`lora.LoRA`, which users bind in gin.
"""

from promot_t5x.network.config import T5Config as T5Config
from promot_t5x.network.gemma import DecoderOnly as DecoderOnly
from promot_t5x.network.gemma import DecoderOnlyConfig as DecoderOnlyConfig
from promot_t5x.network.gemma import T5GemmaConfig as T5GemmaConfig
from promot_t5x.network.transformer import Transformer as Transformer
