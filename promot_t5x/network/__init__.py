"""T5's network and its soft prompt."""

from promot_t5x.network.config import T5Config as T5Config
from promot_t5x.network.transformer import Transformer as Transformer
