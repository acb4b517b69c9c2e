"""Corpus BLEU of sacreBLEU, with both tokenisations in use and the signature of each.

T5's evaluation, and so most papers on T5 models, splits words as the WMT campaigns'
`mteval-v14 --international-tokenization` does (`intl`); sacreBLEU itself defaults to `13a`. The
same text scores differently (64.34 and 63.23 on one German sample), and the paper does not say
which it used, so both are computed. Text is detokenised, case counts, smoothing is `exp`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from promot_t5x.tasks.metrics import References, check, references

TOKENISATIONS = ("intl", "13a")


@dataclass(frozen=True)
class Bleu:
    """A metric: `{"bleu": …, "bleu_<the other tokenisation>": …}` in percent.

    Attributes:
        tokenise: what `bleu`, the primary score, is computed with: "intl" or "13a".
    """

    tokenise: str = "intl"

    def __post_init__(self) -> None:
        if self.tokenise not in TOKENISATIONS:
            raise ValueError(f"tokenise is {self.tokenise!r}; it must be one of {TOKENISATIONS}")

    def __call__(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Score translations; a target may be a list of references."""
        check(targets, predictions)
        columns = _columns(targets)
        return {
            # Perfect answers come out a rounding error above 100.
            name: min(100.0, _sacrebleu(tokenise).corpus_score(list(predictions), columns).score)
            for name, tokenise in self._names().items()
        }

    def signatures(self, targets: Sequence[References] = ("",)) -> dict[str, str]:
        """sacreBLEU's signature of each score: all that is needed to compute it again.

        Args:
            targets: what was scored; only the number of references a target matters, one by
                default.
        """
        # One target of each number of references has the signature of them all.
        kinds = list({len(references(target)): target for target in targets}.values())
        made = {}
        for name, tokenise in self._names().items():
            metric = _sacrebleu(tokenise)
            metric.corpus_score([""] * len(kinds), _columns(kinds))
            made[name] = str(metric.get_signature())
        return made

    def _names(self) -> dict[str, str]:
        (other,) = set(TOKENISATIONS) - {self.tokenise}
        return {"bleu": self.tokenise, f"bleu_{other}": other}


def _sacrebleu(tokenise: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(tokenize=tokenise)


def _columns(targets: Sequence[References]) -> list[list[str | None]]:
    """The n-th reference of every target, for each n; None where a target has fewer."""
    rows = map(references, targets)
    return [list(column) for column in itertools.zip_longest(*rows)]
