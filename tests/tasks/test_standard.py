"""Standard and multilingual tasks: prompts, candidates and right answers of rows made up here.

What is expected is written by hand from lm-evaluation-harness's published definitions (0.4.13) and
from mT5's, not made with the package's templates. Rows have the fields of the data sets themselves;
that TFDS has these fields is checked on its builders, which need no data for that.
"""

import dataclasses
import json
import re

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks import jsonl, multilingual, registry, rendering, squad
from promot_t5x.tasks.ranking import Continuation, MultipleChoice
from promot_t5x.tasks.sources import Joined, Tfds, hugging_face, with_row_id

pytestmark = pytest.mark.slow

ACTIVITY = {
    "activity_label": "Baking bread",
    "ctx_a": "[header] How to knead [title] Flour the table.",
    "ctx_b": "then THE dough",
    "endings": ["rests [substeps] for an hour.", "flies  away."],
    "label": "1",
}
BLANK = {
    "sentence": "The cup did not fit the shelf because the _ was too tall .",
    "option1": "cup",
    "option2": "shelf",
    "label": 0,
}
SCIENCE = {
    "id": "Mercury_1",
    "question": "What melts ice?",
    "choices": {"text": ["cold", "heat", "dark"], "label": [0, 1, 2]},
    "answerKey": 1,
}
BOOK = {
    "stem": "A plant needs",
    **{f"choice_{letter}": f"{letter.lower()} thing" for letter in "ABCD"},
}
PASSAGE = {"passage": "Bees make honey.", "question": "do bees make honey", "label": 1, "idx": 3}
GOAL = {"goal": "Open a jar", "sol1": "Twist the lid.", "sol2": "Shout.", "label": 0}
STORY = {"text": "He sang to the old dog and then he sang to the cat"}
# name: (row, question, candidates, place of the right one)
RANKED = {
    "hellaswag": (
        ACTIVITY,
        "Baking bread: How to knead. Flour the table. Then the dough",
        ["rests for an hour.", "flies away."],
        1,
    ),
    "arc_easy": (SCIENCE, "Question: What melts ice?\nAnswer:", ["cold", "heat", "dark"], 1),
    "winogrande": (
        BLANK,
        "The cup did not fit the shelf because the cup",
        ["was too tall .", "was too tall ."],
        0,
    ),
    "piqa": (GOAL, "Question: Open a jar\nAnswer:", ["Twist the lid.", "Shout."], 0),
    "openbookqa_ranked": (
        {"question": BOOK, "answerKey": 2},
        "A plant needs",
        ["a thing", "b thing", "c thing", "d thing"],
        2,
    ),
    "boolq": (
        PASSAGE,
        "Bees make honey.\nQuestion: do bees make honey?\nAnswer:",
        ["no", "yes"],
        1,
    ),
    "lambada_openai": (STORY, "He sang to the old dog and then he sang to the", ["cat"], 0),
}
LM_EVAL_METRICS = {
    "hellaswag": {"acc", "acc_norm"},
    "arc_easy": {"acc", "acc_norm"},
    "arc_challenge": {"acc", "acc_norm"},
    "winogrande": {"acc"},
    "piqa": {"acc", "acc_norm"},
    "openbookqa_ranked": {"acc", "acc_norm"},
    "boolq": {"acc"},
    "lambada_openai": {"acc", "perplexity"},
    "lambada_standard": {"acc", "perplexity"},
}
SPAN = {
    "id": "finnish-17-0",
    "question": "Kuka lauloi?",
    "context": "Kissa lauloi.",
    "answers": {"text": ["Kissa", "kissa"]},
}
TRANSLATED = {
    "premise": {"de": "Es regnet.", "sw": "Mvua inanyesha."},
    "hypothesis": {"language": ["de", "sw"], "translation": ["Es ist nass.", "Kuna maji."]},
    "label": 2,
}
# name: (row, question, answer)
ANSWERED = {
    "gsm8k": (
        {"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
        "Question: Two and two?\nAnswer:",
        "2+2=<<2+2=4>>4\n#### 4",
    ),
    "squad": (SPAN, "question: Kuka lauloi? context: Kissa lauloi.", "Kissa"),
    "tydiqa_fi": (SPAN, "question: Kuka lauloi? context: Kissa lauloi.", "Kissa"),
    "xnli_sw": (TRANSLATED, "xnli: premise: Mvua inanyesha. hypothesis: Kuna maji.", "2"),
    "xnli_train": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
        "xnli: premise: It rains. hypothesis: It is wet.",
        "0",
    ),
    "pawsx_fr": (
        {"sentence1": "Il pleut.", "sentence2": "Il neige.", "label": 0},
        "paws sentence1: Il pleut. sentence2: Il neige.",
        "different_meaning",
    ),
    "wikilingua_es": (
        {
            "source_aligned": {"es": "Hierve agua.", "en": "Boil water."},
            "target_aligned": {"es": "Agua caliente.", "en": "Hot water."},
        },
        "Article: Hierve agua. One sentence summary in Spanish:",
        "Agua caliente.",
    ),
    "flores_en_zh": (
        {"en": {"id": 7, "sentence": "Rain."}, "zh": {"id": 7, "sentence": "雨。"}},
        "Translate English to Chinese: Rain.",
        "雨。",
    ),
}


@pytest.fixture(scope="module")
def vocabulary():
    import seqio

    return seqio.ByteVocabulary(extra_ids=125)


def examples(directory, vocabulary, name, *rows):
    """The examples that a task makes of rows."""
    path = directory / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = dataclasses.replace(registry.get_task(name), source=jsonl(path))
    data = task.build(vocabulary).get_dataset(None, "train", shuffle=False)
    return task, list(data.as_numpy_iterator())


@pytest.mark.parametrize("name", RANKED)
def test_questions_with_candidates_are_those_of_lm_evaluation_harness(tmp_path, vocabulary, name):
    row, question, candidates, right = RANKED[name]
    task, (example,) = examples(tmp_path, vocabulary, name, row)
    assert example["inputs_pretokenized"].decode() == question
    assert [each.decode() for each in example["candidates"]] == candidates
    assert example["right"] == right
    assert example["answer"].decode() == candidates[right]
    assert task.candidates.delimiter == " "
    target = task.reference(example)
    assert (target["right"], target["candidates"]) == (right, candidates)


def test_each_option_of_winogrande_makes_a_question_of_its_own(tmp_path, vocabulary):
    _, (example,) = examples(tmp_path, vocabulary, "winogrande", BLANK)
    assert [each.decode() for each in example["questions"]] == [
        "The cup did not fit the shelf because the cup",
        "The cup did not fit the shelf because the shelf",
    ]


def test_a_row_whose_label_is_no_candidate_is_refused(tmp_path, vocabulary):
    import tensorflow as tf

    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"label 2 is none of the row.*s candidates \(0 to 1\): row rows-1, field .*label",
    ):
        examples(tmp_path, vocabulary, "piqa", GOAL | {"label": 2})


@pytest.mark.parametrize("name", LM_EVAL_METRICS)
def test_scores_by_likelihood_are_those_of_lm_evaluation_harness(name):
    task = registry.get_task(name)
    assert {score for metric in task.metrics for score in metric.scores} == LM_EVAL_METRICS[name]
    assert isinstance(task.metrics[0], MultipleChoice | Continuation)
    assert task.version == (2.0 if name == "boolq" else 1.0)


@pytest.mark.parametrize("name", ANSWERED)
def test_questions_that_are_answered_in_words(tmp_path, vocabulary, name):
    row, question, answer = ANSWERED[name]
    task, (example,) = examples(tmp_path, vocabulary, name, row)
    assert example["inputs_pretokenized"].decode() == question
    assert example["answer"].decode() == answer
    assert task.score([task.reference(example)], [task.postprocess(answer)])


def test_tydiqa_keeps_the_rows_of_its_language(tmp_path, vocabulary):
    other = SPAN | {"id": "korean-1-0"}
    _, (example,) = examples(tmp_path, vocabulary, "tydiqa_fi", SPAN, other)
    assert example["id"] == b"finnish-17-0"


@pytest.mark.parametrize(
    ("said", "scores"),
    [
        ("2+2=4\n#### 4", (100.0, 100.0)),
        ("#### $1,234.", (0.0, 0.0)),
        ("so it is 9, no, 4", (0.0, 100.0)),
        ("#### 4.", (100.0, 100.0)),
        ("#### 4 and then 5", (100.0, 0.0)),
        ("four", (0.0, 0.0)),
        ("", (0.0, 0.0)),
    ],
)
def test_final_numbers_of_gsm8k(said, scores):
    (metric,) = registry.get_task("gsm8k").metrics
    found = metric(["2+2=<<2+2=4>>4\n#### 4"], [said])
    assert (found["strict_match"], found["flexible_extract"]) == scores


def test_a_comma_and_a_dollar_sign_do_not_count_in_gsm8k():
    (metric,) = registry.get_task("gsm8k").metrics
    said = ["#### 1,234.", "She pays $1,234"]
    assert metric(["x\n#### 1,234"] * 2, said) == {"strict_match": 50.0, "flexible_extract": 100.0}


def test_metrics_of_languages():
    def specs(name):
        return [metric.spec() for metric in registry.get_task(name).metrics]

    assert [specs(f"flores_en_{code}")[1]["tokenise"] for code in ("de", "zh", "ja", "th")] == [
        "intl",
        "zh",
        "ja-mecab",
        "char",
    ]
    assert specs("flores_en_de")[0] == {"metric": "chrf", "word_order": 2}
    assert specs("wikilingua_th")[0]["words"] == "unicode"
    # The published F1, which papers on TyDiQA report.
    assert registry.get_task("tydiqa_te").metrics == (squad,)


def test_sentences_in_two_languages_are_joined_by_their_ids(monkeypatch):
    rows = {
        "deu_Latn": [{"id": 1, "sentence": "eins"}, {"id": 2, "sentence": "zwei"}],
        "eng_Latn": [{"id": 2, "sentence": "two"}, {"id": 1, "sentence": "one"}],
        "fra_Latn": [{"id": 1, "sentence": "un"}],
    }
    monkeypatch.setattr(
        "promot_t5x.tasks.sources.HuggingFace.rows", lambda self, split: rows[self.arguments[1]]
    )

    def joined(*names):
        splits = {"test": "devtest"}
        return Joined(tuple((n, hugging_face("facebook/flores", n, splits=splits)) for n in names))

    data = joined("deu_Latn", "eng_Latn")().get_dataset("test").as_numpy_iterator()
    pairs = [(r["deu_Latn"]["sentence"], r["eng_Latn"]["sentence"], r["row_id"]) for r in data]
    assert pairs == [(b"eins", b"one", b"test-1"), (b"zwei", b"two", b"test-2")]
    with pytest.raises(UserError, match="rows of 'fra_Latn' and 'deu_Latn' do not have the same"):
        joined("deu_Latn", "fra_Latn").rows("test")


LANGUAGES = re.compile(r"_([a-z]{2}|[a-z]{5,})$")
FROM_TFDS = {
    name: registry.get_task(name)
    for name in registry.names()
    if registry.is_task(name)
    and isinstance(registry.get_task(name).source, Tfds)
    and not registry.get_task(name).shots
    and not name.endswith("_0shot")
}
# One language of each task is enough: the others differ in the name of a field and of a builder.
KINDS = {LANGUAGES.sub("", name): name for name in FROM_TFDS}


@pytest.mark.parametrize("name", KINDS.values())
def test_tfds_has_the_fields_that_a_task_names(name):
    import tensorflow as tf
    import tensorflow_datasets as tfds

    task = FROM_TFDS[name]
    features = tfds.builder(task.source.name, data_dir="/nowhere").info.features
    spec = features.get_tensor_spec() | {"tfds_id": tf.TensorSpec([], tf.string)}
    data = tf.data.Dataset.from_generator(lambda: iter(()), output_signature=spec)
    for step in (with_row_id, *task.preprocessors):
        data = step(data)
    keep = {"references": task.references} if task.references else {}
    made = rendering.rendered(data, template=task.template, task=name, keep=keep)
    assert made.element_spec["targets"].dtype == tf.string


def test_tfds_has_every_data_set_that_a_task_names():
    import tensorflow_datasets as tfds

    for task in FROM_TFDS.values():
        name, _, version = task.source.name.partition(":")
        name, _, config = name.partition("/")
        builder = tfds.builder_cls(name)
        assert not config or config in builder.builder_configs, task.source.name
        assert builder.VERSION is None or version == str(builder.VERSION), task.source.name


def test_xnli_names_its_languages_as_tfds_does():
    from tensorflow_datasets.text import xnli

    assert sorted(multilingual.XNLI) == sorted(xnli._LANGUAGES)
