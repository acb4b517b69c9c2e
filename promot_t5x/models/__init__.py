"""A network with its vocabularies and its loss: what a stage trains and an evaluation asks.

`encoder_decoder` binds the three together, `loss` has T5X's loss in chunks that never hold a whole
batch of logits, `objectives` what a stage may minimize in its place. Public are
`EncoderDecoderModel`, which gin files bind as MODEL, and the objectives; a model of another kind,
such as a decoder-only one, gets a module of its own here.
"""

from promot_t5x.models.encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
