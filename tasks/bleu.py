"""Corpus BLEU of sacreBLEU, with both tokenizations in use and the signature of each.

T5's evaluation, and so most papers on T5 models, splits words as the WMT campaigns'
`mteval-v14 --international-tokenization` does (`intl`); sacreBLEU itself defaults to `13a`. The
same text scores differently (64.34 and 63.23 on one German sample), and the paper does not say
which it used, so both are computed. Text is detokenized, case counts, smoothing is `exp`.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from promot_t5x.errors import UserError
from promot_t5x.tasks import languages
from promot_t5x.tasks.metrics import Metric, References, check, references

TOKENIZATIONS = ("intl", "13a")
# What sacreBLEU has for other languages, and the scripts that each splits into words.
_EVERY = tuple(languages.SCRIPTS)
TOKENIZERS = {
    "intl": (),
    "13a": (),
    "none": (),
    "zh": ("Han",),
    "ja-mecab": ("Han", "kana"),
    "ko-mecab": ("Hangul",),
    "char": _EVERY,
    "spm": _EVERY,
    "flores101": _EVERY,
    "flores200": _EVERY,
}
_NEEDS = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
ORDERS = 4  # n-grams of one to four words


@dataclass(frozen=True)
class Bleu(Metric):
    """BLEU of the corpus: `{"bleu": …}` in percent, and by the other of "intl" and "13a".

    A task that states its `language` replaces "intl", the default, by what sacreBLEU has for the
    language.

    **Attributes:**

    - `tokenise`: what `bleu`, the primary score, is computed with: one of sacreBLEU's "intl",
      "13a", "zh", "ja-mecab", "ko-mecab", "char", "none", "flores101" (its older name is "spm")
      and "flores200". With "intl" or "13a", `bleu_<the other one>` is computed too. The mecab ones
      need `pip install sacrebleu[ja]` or `[ko]`; flores101 and flores200 download a SentencePiece
      model once.
    """

    tokenise: str = "intl"
    registered = "bleu"

    def __post_init__(self) -> None:
        if self.tokenise not in TOKENIZERS:
            raise ValueError(
                f"tokenise is {self.tokenise!r}; it must be one of {tuple(TOKENIZERS)}"
            )

    @property
    def scores(self) -> tuple[str, ...]:
        """`bleu`, and the other tokenization's."""
        return tuple(self._names())

    def check_ready(self) -> None:
        """Raise `UserError` where the tokenizer's package or model is not there."""
        for tokenise in self._names().values():
            _sacrebleu(tokenise)

    def warnings(self, targets: Sequence[References]) -> list[str]:
        """Say where targets are in a script that the tokenizer does not split into words."""
        remedy = (
            "state the task's language, or take Bleu('zh'), Bleu('ja-mecab'), Bleu('ko-mecab'), "
            "Bleu('char'), Bleu('flores200') or Chrf()"
        )
        texts = [text for target in targets for text in references(target)]
        return languages.unsplit(texts, TOKENIZERS[self.tokenise], remedy)

    def example_statistics(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Float64[np.ndarray, "examples k"]:
        """For each score: words said, words of the nearest reference, n-grams right, n-grams said.

        A target may be a list of references.
        """
        check(targets, predictions)
        # An effective order plays a part in scores of sentences only; the counts are the same.
        scorers = [_sacrebleu(name, effective_order=True) for name in self._names().values()]
        rows = []
        for target, prediction in zip(targets, predictions, strict=True):
            wanted = references(target)
            found = [scorer.sentence_score(prediction, wanted) for scorer in scorers]
            rows.append([n for f in found for n in (f.sys_len, f.ref_len, *f.counts, *f.totals)])
        return np.array(rows, np.float64)

    def value(self, sums: Float64[np.ndarray, "*b k"]) -> dict[str, Float64[np.ndarray, "*b"]]:
        """BLEU of each tokenization, in percent, as sacreBLEU computes it of a corpus."""
        parts = np.split(sums, len(self.scores), axis=-1)
        return {name: _bleu(part) for name, part in zip(self.scores, parts, strict=True)}

    def example_score(self, statistics: Float64[np.ndarray, "*b k"]) -> Float64[np.ndarray, "*b"]:
        """SacreBLEU's sentence BLEU: a sentence of three words has no n-grams of four to miss."""
        return _bleu(statistics[..., : 2 + 2 * ORDERS], effective_order=True)

    def signatures(self, targets: Sequence[References] = ("",)) -> dict[str, str]:
        """SacreBLEU's signature of each score: all that is needed to compute it again.

        **Arguments:**

        - `targets`: what was scored; only the number of references a target matters, one by
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
        if self.tokenise not in TOKENIZATIONS:
            return {"bleu": self.tokenise}
        (other,) = set(TOKENIZATIONS) - {self.tokenise}
        return {"bleu": self.tokenise, f"bleu_{other}": other}


def _bleu(
    sums: Float64[np.ndarray, "*b k"], effective_order: bool = False
) -> Float64[np.ndarray, "*b"]:
    """Geometric mean of the n-grams' precisions, times the penalty for brevity, in percent."""
    said, wanted = sums[..., 0], sums[..., 1]
    right, grams = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    # Smoothing "exp": the first order without a hit counts half a hit, the next a quarter, ….
    missed = np.cumsum(right == 0, axis=-1)
    hits = np.where(right > 0, right, 0.5**missed)
    with np.errstate(divide="ignore"):
        logs = np.where(grams > 0, np.log(hits / np.maximum(grams, 1.0)), -np.inf)
        penalty = np.minimum(0.0, 1.0 - wanted / np.maximum(said, 1.0))
    if effective_order:
        orders = np.maximum((grams > 0).sum(axis=-1), 1)
        mean = np.where(grams > 0, logs, 0.0).sum(axis=-1) / orders
    else:
        mean = logs.sum(axis=-1) / ORDERS
    return np.where(right.any(axis=-1), 100.0 * np.exp(mean + penalty), 0.0)


def _sacrebleu(tokenise: str, effective_order: bool = False) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # sacreBLEU warns of the older name of the same tokenizer.
    name = "flores101" if tokenise == "spm" else tokenise
    try:
        return BLEU(tokenize=name, effective_order=effective_order)
    # A package that is not installed, a model that cannot be downloaded, a damaged one.
    except Exception as error:
        if name in _NEEDS:
            remedy = f"`pip install {_NEEDS[name]}`"
        else:
            remedy = "run once where there is a network and copy ~/.sacrebleu/models"
        raise UserError(
            f"BLEU with sacreBLEU's tokenizer {tokenise!r} cannot be computed here: "
            f"{' '.join(str(error).split())} Take Bleu('char'), which needs nothing, or {remedy}."
        ) from error


def _columns(targets: Sequence[References]) -> list[list[str | None]]:
    """Return the n-th reference of every target, for each n; None where a target has fewer."""
    rows = map(references, targets)
    return [list(column) for column in itertools.zip_longest(*rows)]
