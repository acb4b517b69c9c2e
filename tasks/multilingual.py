"""What multilingual models are measured on, in the words that mT5 was fine-tuned with.

| name | rows | scored split | primary score |
|---|---|---|---|
| `xnli_<15 languages>` | XNLI | test | accuracy |
| `xnli_train` | MultiNLI, which zero-shot transfer trains on | validation | accuracy |
| `pawsx_<7 languages>` | PAWS-X | test | accuracy |
| `tydiqa_<9 languages>` | TyDiQA-GoldP | validation | exact match |
| `wikilingua_<17 codes>` | WikiLingua, summarized in its own language | test | ROUGE-2 |
| `flores_<code>_<code>` | FLORES-200, from English and into it | test | chrF++ |

Languages are ISO 639-1 codes. XNLI's, PAWS-X's and TyDiQA's templates and answers are mT5's
(`multilingual_t5`), without the spaces that its pipeline puts around punctuation in TyDiQA.
TyDiQA's scores are the published ones, which split words at spaces; all its languages have them.
The mixtures `xnli`, `pawsx` and `tydiqa` are each task in all its languages.
"""

import functools
from collections.abc import Sequence
from typing import Any

from promot_t5x.tasks import metrics
from promot_t5x.tasks.answers import LabelAtStart, Until
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.chrf import Chrf
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.rouge import Rouge
from promot_t5x.tasks.rows import map_rows
from promot_t5x.tasks.sources import Joined, Tfds, hugging_face, tfds
from promot_t5x.tasks.standard import SPAN_OF_PASSAGE
from promot_t5x.tasks.suite import ALL_SPLITS, ANSWER_LENGTH, LANGUAGES, SUMMARY_LENGTH
from promot_t5x.tasks.targets import LABEL_LENGTH, SENTENCE_LENGTH
from promot_t5x.tasks.templates import Choice, Template

XNLI = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")
PAWS_X = ("de", "en", "es", "fr", "ja", "ko", "zh")
TYDI_QA = {
    "ar": "arabic",
    "bn": "bengali",
    "en": "english",
    "fi": "finnish",
    "id": "indonesian",
    "ko": "korean",
    "ru": "russian",
    "sw": "swahili",
    "te": "telugu",
}
# Code -> (FLORES' name, English name), of languages that mT5 has.
FLORES = {
    "ar": ("arb_Arab", "Arabic"),
    "bg": ("bul_Cyrl", "Bulgarian"),
    "bn": ("ben_Beng", "Bengali"),
    "cs": ("ces_Latn", "Czech"),
    "de": ("deu_Latn", "German"),
    "el": ("ell_Grek", "Greek"),
    "es": ("spa_Latn", "Spanish"),
    "fi": ("fin_Latn", "Finnish"),
    "fr": ("fra_Latn", "French"),
    "hi": ("hin_Deva", "Hindi"),
    "id": ("ind_Latn", "Indonesian"),
    "it": ("ita_Latn", "Italian"),
    "ja": ("jpn_Jpan", "Japanese"),
    "ko": ("kor_Hang", "Korean"),
    "nl": ("nld_Latn", "Dutch"),
    "pl": ("pol_Latn", "Polish"),
    "pt": ("por_Latn", "Portuguese"),
    "ro": ("ron_Latn", "Romanian"),
    "ru": ("rus_Cyrl", "Russian"),
    "sw": ("swh_Latn", "Swahili"),
    "te": ("tel_Telu", "Telugu"),
    "th": ("tha_Thai", "Thai"),
    "tr": ("tur_Latn", "Turkish"),
    "uk": ("ukr_Cyrl", "Ukrainian"),
    "ur": ("urd_Arab", "Urdu"),
    "vi": ("vie_Latn", "Vietnamese"),
    "zh": ("zho_Hans", "Chinese"),
}
_ENGLISH = ("eng_Latn", "English")
_XNLI_LABELS = ("0", "1", "2")
_PAWS_LABELS = ("different_meaning", "paraphrase")


def _hypothesis(dataset: Any, *, code: str) -> Any:
    """Return a preprocessor: XNLI's hypothesis in one language, out of a list of translations."""
    import tensorflow as tf

    def chosen(row: Any) -> Any:
        texts = row["hypothesis"]
        here = tf.argmax(tf.equal(texts["language"], code))
        return {**row, "hypothesis": texts["translation"][here], "premise": row["premise"][code]}

    return map_rows(dataset, chosen)


def _written_in(dataset: Any, *, language: str) -> Any:
    """Return a preprocessor: TyDiQA's rows in one language, which begins their ids."""
    import tensorflow as tf

    return dataset.filter(lambda row: tf.strings.split(row["id"], "-")[0] == language)


def _classified(
    name: str, description: str, source: Tfds, question: str, labels: Sequence[str], **more: Any
) -> None:
    register(
        TaskDef(
            name=name,
            description=description,
            source=source,
            splits=source.splits,
            template=Template(question=question, answer=Choice(field="label", words=labels)),
            postprocess=LabelAtStart(tuple(labels)),
            metrics=(metrics.accuracy,),
            labels=tuple(labels),
            output_length=LABEL_LENGTH,
            **more,
        )
    )


def _flores(source: str, target: str) -> None:
    """Register a translation between two codes, one of which is English."""
    (asked, spoken), (wanted, language) = (FLORES.get(c, _ENGLISH) for c in (source, target))
    splits = {"validation": "dev", "test": "devtest"}
    parts = tuple(
        (code, hugging_face("facebook/flores", name, splits=splits))
        for code, name in ((source, asked), (target, wanted))
    )
    register(
        TaskDef(
            name=f"flores_{source}_{target}",
            description=f"FLORES-200 {spoken} to {language}",
            source=Joined(parts),
            splits=tuple(splits),
            template=Template(
                question=f"Translate {spoken} to {language}: {{{source}.sentence}}",
                answer=f"{{{target}.sentence}}",
            ),
            postprocess=Until("Translate"),
            metrics=(Chrf(2), Bleu()),
            output_length=SENTENCE_LENGTH,
            language=target,
            scored_split="test",
            shots_split="validation",
        )
    )


_ASK_XNLI = "xnli: premise: {premise} hypothesis: {hypothesis}"
_classified(
    "xnli_train",
    "MultiNLI in XNLI's words, to train on for XNLI in other languages",
    tfds("multi_nli:1.1.0", {"train": "train", "validation": "validation_matched"}),
    _ASK_XNLI,
    _XNLI_LABELS,
)
for _code in XNLI:
    _classified(
        f"xnli_{_code}",
        f"XNLI ({_code}): 0 entailment, 1 neutral, 2 contradiction",
        tfds("xnli:1.1.0", ("validation", "test")),
        _ASK_XNLI,
        _XNLI_LABELS,
        preprocessors=(functools.partial(_hypothesis, code=_code),),
        scored_split="test",
        shots_split="validation",
    )
for _code in PAWS_X:
    _classified(
        f"pawsx_{_code}",
        f"PAWS-X ({_code}): do two sentences say the same?",
        tfds(f"paws_x_wiki/{_code}:1.0.0", ALL_SPLITS),
        "paws sentence1: {sentence1} sentence2: {sentence2}",
        _PAWS_LABELS,
        scored_split="test",
    )
for _code, _language in TYDI_QA.items():
    register(
        TaskDef(
            name=f"tydiqa_{_code}",
            description=f"TyDiQA-GoldP ({_code}): a span of a passage that answers a question",
            source=tfds(
                "tydi_qa/goldp:3.0.0", {"train": "train", "validation": f"validation-{_code}"}
            ),
            splits=("train", "validation"),
            preprocessors=(functools.partial(_written_in, language=_language),),
            **SPAN_OF_PASSAGE,
            output_length=2 * ANSWER_LENGTH,
        )
    )
for _builder in LANGUAGES:
    _language, _code = _builder.rsplit("_", 1)
    register(
        TaskDef(
            name=f"wikilingua_{_code}",
            description=f"WikiLingua: how-tos in {_language.title()}, summarized in it",
            source=tfds(f"gem/wiki_lingua_{_builder}:1.1.0", ALL_SPLITS),
            splits=ALL_SPLITS,
            template=Template(
                question=(
                    f"Article: {{source_aligned.{_code}}}{{br}}"
                    f"One sentence summary in {_language.title()}:"
                ),
                answer=f"{{target_aligned.{_code}}}",
                article=f"source_aligned.{_code}",
            ),
            postprocess=Until("Article:"),
            metrics=(Rouge(), Chrf()),
            output_length=2 * SUMMARY_LENGTH,
            language=_code,
            scored_split="test",
        )
    )
for _code in FLORES:
    _flores("en", _code)
    _flores(_code, "en")
for _name, _codes in (("xnli", XNLI), ("pawsx", PAWS_X), ("tydiqa", tuple(TYDI_QA))):
    register(
        Mixture(
            name=_name,
            description=f"{_name} in all its languages",
            rates={f"{_name}_{code}": 1.0 for code in _codes},
        )
    )
