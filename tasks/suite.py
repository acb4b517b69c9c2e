"""The paper's eight in-context tasks, for any number of demonstrations.

| name | asked of | scored split | primary score |
|---|---|---|---|
| `cb`, `wic` | SuperGLUE | validation | accuracy |
| `triviaqa` | TriviaQA, unfiltered, without context | validation | exact match over all aliases |
| `webquestions` | WebQuestions (no validation split) | test | exact match over all answers |
| `wmt16_ende`, `wmt16_enro` | WMT16 from English | test | BLEU |
| `xsum` | one-sentence summaries of news | test | ROUGE-2 |
| `wikilingua` | summaries of English how-tos | test | ROUGE-2 |

Demonstrations come from the training split. `icl` is the mixture of all eight, `icl_<task>` of
one; each name takes a number of shots, as in `icl_4shot`, `icl_cb_1shot`, `xsum_2shot`. Each task
of a mixture is scored on its own. `wikilingua_<language>` summarizes one of 17 other languages,
in English.

CB's class order differs from SNLI's: 0 entailment, 1 contradiction, 2 neutral. XSum's own builder
wants a download by hand, so `gem/xsum` is read, and `xsum` where only that has been prepared.
"""

from typing import Any

from promot_t5x.tasks import metrics
from promot_t5x.tasks.answers import Until, first_word
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.exact_match import squad, trivia_qa
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.rouge import Rouge
from promot_t5x.tasks.rows import map_rows
from promot_t5x.tasks.sources import tfds
from promot_t5x.tasks.targets import ENTAILMENT_3_WAY, LABEL_LENGTH, SENTENCE_LENGTH, translation
from promot_t5x.tasks.templates import Choice, Template

TRUE_FALSE_NEITHER = ("True", "False", "Neither")
FALSE_TRUE = ("False", "True")
LISTED_SHOTS = (0, 1, 4)
ANSWER_LENGTH, SUMMARY_LENGTH = 32, 64
ALL_SPLITS = ("train", "validation", "test")
EIGHT = (
    "cb",
    "wic",
    "triviaqa",
    "webquestions",
    "wmt16_ende",
    "wmt16_enro",
    "xsum",
    "wikilingua",
)
# WikiLingua's languages besides English, as its builders name them.
LANGUAGES = (
    "arabic_ar",
    "chinese_zh",
    "czech_cs",
    "dutch_nl",
    "french_fr",
    "german_de",
    "hindi_hi",
    "indonesian_id",
    "italian_it",
    "japanese_ja",
    "korean_ko",
    "portuguese_pt",
    "russian_ru",
    "spanish_es",
    "thai_th",
    "turkish_tr",
    "vietnamese_vi",
)


def with_summary(dataset: Any) -> Any:
    """Return a preprocessor: GEM's `target` under XSum's own name for it."""
    if "target" not in dataset.element_spec:
        return dataset
    return map_rows(dataset, lambda row: {**row, "summary": row["target"]})


def _suite_task(name: str, description: str, **settings: Any) -> None:
    register(TaskDef(name=name, description=description, listed_shots=LISTED_SHOTS, **settings))


def _super_glue(
    name: str, description: str, *, question: str, words: tuple[str, ...], **more: Any
) -> None:
    splits = ("train", "validation")
    _suite_task(
        name,
        description,
        source=tfds(f"super_glue/{name}:1.0.2", splits),
        splits=splits,
        template=Template(
            question=question, answer=Choice(field="label", words=words), example_id="{idx}"
        ),
        postprocess=first_word,
        labels=words,
        output_length=LABEL_LENGTH,
        **more,
    )


def _translation(name: str, language: str, code: str) -> None:
    _suite_task(
        name,
        f"WMT16 English to {language}",
        source=tfds(f"wmt16_translate/{code}-en:1.0.0", ALL_SPLITS),
        splits=ALL_SPLITS,
        template=translation(language, code),
        postprocess=Until("Translate"),
        metrics=(Bleu(),),
        output_length=SENTENCE_LENGTH,
        language=code,
        scored_split="test",
    )


def _summaries(name: str, description: str, *, article: str, summary: str, **more: Any) -> None:
    _suite_task(
        name,
        description,
        splits=ALL_SPLITS,
        template=Template(
            question=f"Article: {{{article}}}{{br}}One sentence summary:",
            answer=f"{{{summary}}}",
            article=article,
        ),
        postprocess=Until("Article:"),
        metrics=(Rouge(),),
        output_length=SUMMARY_LENGTH,
        scored_split="test",
        **more,
    )


_super_glue(
    "cb",
    "CommitmentBank (SuperGLUE): True / False / Neither",
    question=ENTAILMENT_3_WAY,
    words=TRUE_FALSE_NEITHER,
    metrics=(metrics.accuracy, metrics.macro_f1(TRUE_FALSE_NEITHER)),
)
_super_glue(
    "wic",
    "Words in Context (SuperGLUE): is a word used in the same way? True / False",
    question=(
        "{sentence1} {sentence2}{br}question: The word {word} is used in the same way in the two "
        "sentences. Is it true or False?{br}answer:"
    ),
    words=FALSE_TRUE,
    metrics=(metrics.accuracy,),
)
_suite_task(
    "triviaqa",
    "TriviaQA, closed book",
    source=tfds("trivia_qa/unfiltered.nocontext:1.1.0", ("train", "validation")),
    splits=("train", "validation"),
    template=Template(
        question="Q: {question}{br}A:", answer="{answer.value}", example_id="{question_id}"
    ),
    postprocess=Until("Q:"),
    metrics=(trivia_qa,),
    references="answer.aliases",
    output_length=ANSWER_LENGTH,
)
_suite_task(
    "webquestions",
    "WebQuestions, closed book",
    source=tfds("web_questions:1.0.0", ("train", "test")),
    splits=("train", "test"),
    template=Template(question="Q: {question}{br}A:", answer="{answers.0}"),
    postprocess=Until("Q:"),
    metrics=(squad,),
    references="answers",
    output_length=ANSWER_LENGTH,
    scored_split="test",
)
_translation("wmt16_ende", "German", "de")
_translation("wmt16_enro", "Romanian", "ro")
_summaries(
    "xsum",
    "XSum: a BBC article in one sentence",
    source=tfds("gem/xsum:1.1.0", ALL_SPLITS, instead=("xsum:1.1.0",)),
    preprocessors=(with_summary,),
    article="document",
    summary="summary",
)
for _builder in ("english_en", *LANGUAGES):
    _language = _builder.rsplit("_", 1)[0]
    _summaries(
        "wikilingua" if _language == "english" else f"wikilingua_{_language}",
        f"WikiLingua: how-tos in {_language.title()}, summarized in English",
        source=tfds(f"gem/wiki_lingua_{_builder}:1.1.0", ALL_SPLITS),
        article="source",
        summary="target",
    )

register(
    Mixture(
        name="icl",
        description="the paper's eight in-context tasks",
        rates=dict.fromkeys(EIGHT, 1.0),
        listed_shots=LISTED_SHOTS,
    )
)
for _name in EIGHT:
    register(
        Mixture(
            name=f"icl_{_name}",
            description=f"{_name} alone, of the eight in-context tasks",
            rates={_name: 1.0},
            listed_shots=LISTED_SHOTS,
        )
    )
