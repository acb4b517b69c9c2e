"""A decoder-only model as training sees it: inputs and targets are one sequence."""

import dataclasses

from promot_t5x.models.model import Model
from promot_t5x.network.gemma.decoder_only import DecoderOnly


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOnlyModel(Model):
    """A `network.DecoderOnly` with the loss that trains it, which is that of the targets alone.

    Targets follow their inputs in one sequence, the prompt in front. The last token of the inputs
    predicts the first target; it moves to the front of the targets, so that batches have the
    features of an encoder-decoder's and logits are computed where there are targets.
    """

    network = DecoderOnly

    @property
    def start_id(self) -> None:
        """No id: the decoder's tokens begin with the last of the inputs."""
        return
