"""The T5 network and its soft prompts, as flax linen modules with T5X's names and parameter tree.

`config` is the shape of a network as one frozen value, `layers` and `attention` are the parts of a
layer, `stacks` the encoder and the decoder made of them, `transformer` the module that T5X's own
code can call, and `prompt` the table of virtual tokens. `prompt_init` says what a new prompt starts
from, `scan` where the layers of a scanned network lie. Read them in that order. Public are
`T5Config` and `Transformer`. A network of another family gets a configuration and stacks of its
own beside these and shares the layers that are the same.
"""

from promot_t5x.network.config import T5Config as T5Config
from promot_t5x.network.transformer import Transformer as Transformer
