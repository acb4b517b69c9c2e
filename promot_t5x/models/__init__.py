"""A network, its vocabularies and its loss: what a stage trains and an evaluation asks."""

from promot_t5x.models.encoder_decoder import EncoderDecoderModel as EncoderDecoderModel
