"""From what a model said, read in its dialect, to the answer that is scored.

`first_word` and `Until` are the paper's cuts, and its tasks'; `LabelAtStart` reads the labels of
a user's own task.
"""

import dataclasses
import re
import unicodedata

from promot_t5x.tasks.languages import SCRIPTS
from promot_t5x.tasks.metrics import first_word

__all__ = ["LabelAtStart", "Until", "first_word", "keep"]

# Signs that join what stands on both sides to one word: "no-one", "yes/no", "don't", "3.5".
_JOINS = "-_/&@'’\u2010\u2011"
_JOINS_DIGITS = ".,:"
_UNSPACED = re.compile(f"[{''.join(SCRIPTS.values())}]")


def keep(text: str) -> str:
    """Return the answer as it was decoded, without surrounding white space."""
    return text.strip()


@dataclasses.dataclass(frozen=True)
class Until:
    """The answer up to where the model starts to ask the next question by itself.

    The query itself begins with the template's prefix, so the first one in the output is the
    second there is, and cuts. An output that repeats the question, and so begins with the
    prefix, is cut at the next one.

    **Attributes:**

    - `prefix`: how the task's questions begin: `Q:`, `Translate`, `Article:`.
    """

    prefix: str

    def __call__(self, text: str) -> str:
        """Return the answer in a text."""
        text = text.strip()
        start = len(self.prefix) if text.startswith(self.prefix) else 0
        end = text.find(self.prefix, start)
        return text[: end if end >= 0 else None].strip()


@dataclasses.dataclass(frozen=True)
class LabelAtStart:
    """The longest label that the answer begins with.

    Quotes, brackets, list marks, emphasis and punctuation of any script in front of it are passed
    over, unless a label itself begins with them, and white space counts as one space. The label
    must end where a word does: "no" is not the answer "nothing", "no-one" or "no/yes", and "3" is
    not "3.5"; in a script without spaces any letter may follow. Case counts. An answer that
    begins with no label stays whole, so that it counts as none of them.

    **Attributes:**

    - `labels`: the answers there are.
    """

    labels: tuple[str, ...]

    def __call__(self, text: str) -> str:
        """Return the label as the task spells it, or the whole answer."""
        text = " ".join(text.split())
        longest_first = sorted(self.labels, key=len, reverse=True)
        for start, letter in enumerate(text):
            rest = text[start:]
            for label in longest_first:
                spelled = " ".join(label.split())
                if rest.startswith(spelled) and _ends_a_word(rest, len(spelled)):
                    return label
            if _is_word(letter):
                break
        return text


def _is_word(letter: str) -> bool:
    # Letters, marks (vowel signs of Hindi and Thai) and numbers.
    return unicodedata.category(letter)[0] in "LMN"


def _ends_a_word(text: str, end: int) -> bool:
    """Return whether a word of `text` may end before the place `end`."""
    last, after, next_but_one = text[end - 1], text[end : end + 1], text[end + 1 : end + 2]
    if not after or _UNSPACED.match(last) or _UNSPACED.match(after):
        # A mark belongs to the letter before it, in any script.
        return not after or unicodedata.category(after)[0] != "M"
    if not _is_word(last):
        return True
    if _is_word(after):
        return False
    joined = after in _JOINS or (after in _JOINS_DIGITS and last.isdigit())
    return not (joined and next_but_one and _is_word(next_but_one))
