"""chrF and chrF++ of sacreBLEU: F-scores of character n-grams, with words or without.

They need no words, so they serve languages that are written without spaces too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from promot_t5x.tasks.metrics import Metric, References, check, references

CHARACTERS = 6  # n-grams of one to six characters
BETA = 2.0  # recall counts so many times as much as precision


@dataclass(frozen=True)
class Chrf(Metric):
    """chrF of the corpus (`chrf`), or with words chrF++ (`chrf++`), in percent.

    **Attributes:**

    - `word_order`: the longest n-grams of words that count besides: 0 is chrF, 2 chrF++.
    """

    word_order: int = 0
    registered = "chrf"

    def __post_init__(self) -> None:
        if self.word_order not in (0, 1, 2):
            raise ValueError(f"word_order is {self.word_order!r}; it must be 0, 1 or 2")

    @property
    def scores(self) -> tuple[str, ...]:
        """Return the score's name as sacreBLEU has it, without its beta."""
        return ("chrf" + "+" * self.word_order,)

    def example_statistics(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Float64[np.ndarray, "examples k"]:
        """Count, for each n, the n-grams said, those of the best reference, and those shared."""
        check(targets, predictions)
        scorer = self._sacrebleu()
        rows = []
        for target, prediction in zip(targets, predictions, strict=True):
            wanted = [[reference] for reference in references(target)]
            rows += scorer._extract_corpus_statistics([prediction], wanted)
        return np.array(rows, np.float64)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """Average precision and recall over the n-grams that both sides have, then take F."""
        said, wanted, shared = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
        counts = (said > 0) & (wanted > 0)
        orders = np.maximum(counts.sum(axis=-1), 1)
        precision, recall = (
            np.where(counts, shared / np.maximum(of, 1.0), 0.0).sum(axis=-1) / orders
            for of in (said, wanted)
        )
        weighted = BETA**2 * precision + recall
        score = (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0)
        return {self.scores[0]: np.asarray(100.0 * score)}

    def signatures(self, targets: Sequence[References] = ("",)) -> dict[str, str]:
        """Return sacreBLEU's signature: all that is needed to compute the score again."""
        kinds = list({len(references(target)): target for target in targets}.values())
        scorer = self._sacrebleu()
        most = max(len(references(target)) for target in kinds)
        columns = [
            [dict(enumerate(references(target))).get(n) for target in kinds] for n in range(most)
        ]
        scorer.corpus_score([""] * len(kinds), columns)
        return {self.scores[0]: str(scorer.get_signature())}

    def _sacrebleu(self) -> Any:
        from sacrebleu.metrics.chrf import CHRF

        return CHRF(char_order=CHARACTERS, word_order=self.word_order, beta=int(BETA))
