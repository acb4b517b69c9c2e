"""ROUGE-1, ROUGE-2 and ROUGE-Lsum: F-measures, averaged over the examples.

Computed by `rouge_score`, T5's choice, but averaged plainly: T5 reports the middle of an
unseeded bootstrap, which changes from call to call (1.337 to 1.348 where the mean is 1.344).
Without stemming, as in T5; GEM stems. As T5 does, " . " starts a new sentence for ROUGE-Lsum.

`rouge_score` keeps only runs of a-z and 0-9 of the lowered text: "größe" is the words "gr" and
"e", and a text in Greek, Hindi or Chinese has no word at all and scores 0 even against itself.
Such targets are never passed over in silence: where there are any, their share is reported as
`rouge_blank_targets`. For summaries in those languages take `words="unicode"`.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from promot_t5x.tasks.metrics import MeanOfExamples, References, mean_percent, references

# The primary score first.
KINDS = ("rouge2", "rouge1", "rougeLsum")
WORDS = ("rouge_score", "unicode")


@dataclass(frozen=True)
class Rouge(MeanOfExamples):
    """A metric: `{"rouge2": …, "rouge1": …, "rougeLsum": …}` in percent, ROUGE-2 the primary.

    **Attributes:**

    - `stem`: whether words lose their English endings (Porter) before they are compared.
    - `words`: how text is split: "rouge_score", the published one, for English; "unicode" for any
      language: runs of letters, marks and digits, and each ideograph, kana or Thai, Lao, Khmer or
      Burmese letter alone, since these are written without spaces.
    """

    stem: bool = False
    words: str = "rouge_score"
    registered = "rouge"
    scores = KINDS

    def __post_init__(self) -> None:
        if self.words not in WORDS:
            raise ValueError(f"words is {self.words!r}; it must be one of {WORDS}")
        if self.stem and self.words == "unicode":
            raise ValueError("stem=True knows English only; it needs words='rouge_score'")

    def __call__(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> dict[str, float]:
        """Every score, and the share of targets without a word to compare, if there are any."""
        tokenize = self._tokenizer().tokenize
        blank = [not any(map(tokenize, references(target))) for target in targets]
        found = {"rouge_blank_targets": mean_percent(blank)} if any(blank) else {}
        return super().__call__(targets, predictions) | found

    def shares(
        self, targets: Sequence[References], predictions: Sequence[str]
    ) -> Iterable[Sequence[float]]:
        """F-measures; of several references the best counts, for each kind by itself."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(KINDS), tokenizer=self._tokenizer())
        for target, prediction in zip(targets, predictions, strict=True):
            wanted = [_sentences(text) for text in references(target)]
            found = scorer.score_multi(wanted, _sentences(prediction))
            yield [found[kind].fmeasure for kind in KINDS]

    def signatures(self, targets: Sequence[References] = ()) -> dict[str, str]:
        """How each score was computed: settings, and the version of `rouge_score`."""
        del targets  # plays no part; sacreBLEU's signature tells the number of references
        stem = "yes" if self.stem else "no"
        signature = f"stem:{stem}|words:{self.words}|average:mean|rouge_score:"
        return dict.fromkeys(KINDS, signature + version("rouge_score"))

    def warnings(self, targets: Sequence[References]) -> list[str]:
        """Say where targets have letters that the published tokenizer does not see."""
        if self.words == "unicode":
            return []
        texts = [text for target in targets for text in references(target)]
        foreign = sum(_mostly_unseen(text) for text in texts)
        if not foreign:
            return []
        return [
            f"{foreign:,} of {len(texts):,} targets are written in letters other than a to z, "
            "which ROUGE's own tokenizer does not see: state the task's language, or take "
            "Rouge(words='unicode')"
        ]

    def _tokenizer(self) -> Any:
        from rouge_score import tokenizers

        if self.words == "unicode":
            return UnicodeWords()
        return tokenizers.DefaultTokenizer(use_stemmer=self.stem)


class UnicodeWords:
    """Splits text of any language into lowered words, as `rouge_score` wants a tokenizer."""

    # Scripts without spaces: Thai, Lao, Burmese, Khmer, kana, ideographs.
    _UNSPACED = re.compile(
        r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
        r"\uf900-\ufaff\U00020000-\U0003ffff]"
    )

    def tokenize(self, text: str) -> list[str]:
        """Words in reading order."""
        return "".join(map(self._part, unicodedata.normalize("NFC", text).lower())).split()

    def _part(self, letter: str) -> str:
        if self._UNSPACED.match(letter):
            return f" {letter} "
        # Letters, marks (the vowel signs of Hindi are marks) and numbers make words.
        return letter if unicodedata.category(letter)[0] in "LMN" else " "


def _mostly_unseen(text: str) -> bool:
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return 2 * sum(not "a" <= letter <= "z" for letter in letters) > len(letters)


def _sentences(text: str) -> str:
    return text.replace(" . ", " .\n")
