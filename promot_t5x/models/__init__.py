"""A network with its vocabulary and its loss: what a stage trains and an evaluation asks.

`model` binds the three together, `encoder_decoder` and `decoder_only` are its kinds, `loss` has
T5X's loss in chunks that never hold a whole batch of logits, `objectives` what a stage may minimize
in its place. Public are `EncoderDecoderModel` and `DecoderOnlyModel`, which gin files bind as
MODEL, and the objectives; a model of another kind gets a module of its own here.
"""

from promot_t5x.models.decoder_only import DecoderOnlyModel as DecoderOnlyModel
from promot_t5x.models.encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
