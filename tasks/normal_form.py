"""What a vocabulary makes of an answer: no model can say more than its vocabulary can write.

T5's SentencePiece models have no `<`, `{` or line break and turn `½` into `1/2`. An answer with one
of these is something else once it has been encoded and decoded, its *normal form*.
"""

from collections.abc import Iterable
from typing import Any

from promot_t5x.tasks import dialects

_SHOWN = 3
_LONGEST = 60


def normal_form(vocabulary: Any, text: str) -> str:
    """Return `text`, encoded and decoded, without space around it."""
    return dialects.decode(vocabulary, vocabulary.encode(text)).strip()


def changed(vocabulary: Any, answers: Iterable[str]) -> list[tuple[str, str]]:
    """Return the answers that are not their own normal form, each with that form, once each."""
    found = ((text, normal_form(vocabulary, text)) for text in dict.fromkeys(answers))
    return [(text, form) for text, form in found if form != text.strip()]


def described(vocabulary: Any, answers: list[str]) -> tuple[int, str] | None:
    """Return how many answers change, and that in words; None where none does."""
    forms = dict(changed(vocabulary, answers))
    if not forms:
        return None
    count = sum(answer in forms for answer in answers)
    shown = [f"{_short(text)} as {_short(form)}" for text, form in list(forms.items())[:_SHOWN]]
    more = ", …" if len(forms) > _SHOWN else ""
    return count, (
        f"the vocabulary cannot write {count:,} of {len(answers):,} right answers "
        f"({count / len(answers):.1%}): {', '.join(shown)}{more}"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
