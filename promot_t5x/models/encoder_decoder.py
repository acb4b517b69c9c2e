"""An encoder-decoder as training sees it."""

import dataclasses

from promot_t5x.data import vocabularies
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.models.model import Model
from promot_t5x.network.transformer import Transformer
from promot_t5x.tasks import dialects

DECODER_STARTS = ("pad", "bos")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderModel(Model):
    """A `network.Transformer` with the loss that trains it; named and bound in gin as T5X's is.

    **Attributes** besides those of `Model`:

    - `decoder_start`: which of the vocabulary's tokens the decoder begins with, `pad` (T5) or
      `bos` (T5Gemma).
    """

    network = Transformer

    decoder_start: str = "pad"

    def __post_init__(self) -> None:
        if self.decoder_start not in DECODER_STARTS:
            raise UserError(
                f"DECODER_START is {self.decoder_start!r}; it must be one of "
                f"{', '.join(map(repr, DECODER_STARTS))}."
                + did_you_mean(self.decoder_start, DECODER_STARTS)
            )
        super().__post_init__()
        vocabularies.check_padding(self.vocabulary)

    @property
    def start_id(self) -> int:
        """The id that the decoder begins with.

        **Raises:** `UserError` where the vocabulary has no such token.
        """
        if self.decoder_start == "pad":
            pad: int = self.vocabulary.pad_id
            return pad
        return dialects.bos_id(self.vocabulary)
