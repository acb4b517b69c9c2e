"""From what a model said, read in its dialect, to the answer that is scored: the paper's cuts."""

import dataclasses

from promot_t5x.tasks.metrics import first_word

__all__ = ["Until", "first_word", "keep"]


def keep(text: str) -> str:
    """The answer as it was decoded, without surrounding white space."""
    return text.strip()


@dataclasses.dataclass(frozen=True)
class Until:
    """The answer up to where the model starts to ask the next question by itself.

    The query itself begins with the template's prefix, so the first one in the output is the
    second there is, and cuts. An output that repeats the question, and so begins with the
    prefix, is cut at the next one.

    Attributes:
      prefix: how the task's questions begin: `Q:`, `Translate`, `Article:`.
    """

    prefix: str

    def __call__(self, text: str) -> str:
        text = text.strip()
        start = len(self.prefix) if text.startswith(self.prefix) else 0
        end = text.find(self.prefix, start)
        return text[: end if end >= 0 else None].strip()
