r"""Tasks that papers report of every model, asked and scored as lm-evaluation-harness does.

| name | rows | answered by | scored split | scores, the primary one first |
|---|---|---|---|---|
| `hellaswag` | HellaSwag | likelihood | validation | `acc_norm`, `acc` |
| `arc_easy` | ARC | likelihood | test | `acc`, `acc_norm` |
| `arc_challenge` | ARC | likelihood | test | `acc_norm`, `acc` |
| `winogrande` | WinoGrande XL | likelihood | validation | `acc` |
| `piqa` | PIQA | likelihood | validation | `acc`, `acc_norm` |
| `openbookqa_ranked` | OpenbookQA | likelihood | test | `acc_norm`, `acc` |
| `boolq` | BoolQ (SuperGLUE) | likelihood | validation | `acc` |
| `lambada_openai`, `lambada_standard` | LAMBADA | likelihood | test | `acc`, `perplexity` |
| `gsm8k` | GSM8K | decoding | test | `strict_match`, `flexible_extract` |
| `squad` | SQuAD 1.1 | decoding | validation | `exact_match`, `f1` |

Prompts, candidates, normalizations and filters are those of lm-evaluation-harness 0.4.13, whose
version of each task is the definition's; `openbookqa_ranked` is its `openbookqa`. Which of two
scores is the primary one follows what papers print. SQuAD 1.1, which lm-evaluation-harness lacks,
is asked as T5 was. `lm_eval` is the mixture of the eight that are scored by likelihood without
demonstrations.

Rows come from TFDS where it has them as lm-evaluation-harness reads them. TFDS's HellaSwag has lost
where the second sentence begins, and its LAMBADA is not OpenAI's, so these are read from the
Hugging Face hub.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from promot_t5x.tasks.answers import Until
from promot_t5x.tasks.exact_match import squad
from promot_t5x.tasks.extracted import Extracted
from promot_t5x.tasks.ranking import Continuation, MultipleChoice
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.rows import map_rows
from promot_t5x.tasks.sources import hugging_face, tfds
from promot_t5x.tasks.suite import ANSWER_LENGTH
from promot_t5x.tasks.targets import LABEL_LENGTH, SENTENCE_LENGTH
from promot_t5x.tasks.templates import Candidates, Template

EIGHT = (
    "lambada_openai",
    "hellaswag",
    "piqa",
    "arc_easy",
    "arc_challenge",
    "winogrande",
    "openbookqa_ranked",
    "boolq",
)
# Of a task in SQuAD's form, asked as T5 and mT5 were fine-tuned on it.
SPAN_OF_PASSAGE: dict[str, Any] = {
    "template": Template(
        question="question: {question} context: {context}",
        answer="{answers.text.0}",
        example_id="{id}",
        article="context",
    ),
    "postprocess": Until("question:"),
    "metrics": (squad,),
    "references": "answers.text",
}
_QUESTION = "Question: {question}\nAnswer:"
_VALIDATED, _TESTED = ("train", "validation"), ("train", "validation", "test")
_BRACKETED = re.compile(r"\[.*?\]")
# GSM8K's final number, and what does not count in it.
_FINAL_NUMBER = Extracted(
    filters=(
        ("strict_match", r"#### (\-?[0-9\.\,]+)", 0),
        ("flexible_extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1),
    ),
    ignored=(",", r"\$", r"(?s).*#### ", r"\.$"),
)


def _in_python(
    function: Callable[..., Sequence[Any]], fields: Sequence[str], made: dict[str, Sequence[None]]
) -> Callable[[Any], Any]:
    """Return a preprocessor: texts made in Python of texts of the row.

    **Arguments:**

    - `function`: of the fields' values (a text, or a list of texts), returns the values of `made`.
    - `made`: name -> shape.
    """

    def preprocessor(dataset: Any) -> Any:
        import numpy as np
        import tensorflow as tf

        def call(*values: Any) -> list[Any]:
            texts = [
                v.decode() if isinstance(v, bytes) else [b.decode() for b in v] for v in values
            ]
            return [np.array(value, object) for value in function(*texts)]

        def extended(row: Any) -> Any:
            kinds = [tf.string] * len(made)
            values = tf.numpy_function(call, [row[name] for name in fields], kinds, stateful=False)
            found = dict(zip(made, values, strict=True))
            for name, shape in made.items():
                found[name].set_shape(shape)
            return {**row, **found}

        return map_rows(dataset, extended)

    return preprocessor


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else [each.decode() for each in value]


def hellaswag(
    activity: str, first: str, second: str, endings: Sequence[str]
) -> tuple[str, list[str]]:
    """Return the text to be continued, and its endings, without WikiHow's marks."""
    return _plain(f"{activity}: {first} {second.capitalize()}"), [_plain(each) for each in endings]


def _plain(text: str) -> str:
    text = _BRACKETED.sub("", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def winogrande(sentence: str, *options: str) -> tuple[list[str], str]:
    """Return the beginning of a sentence with each option in place of its blank, and its end."""
    before, _, after = sentence.partition("_")
    return [before + option for option in options], after.strip()


def last_word(text: str) -> tuple[str, str]:
    """Return a text without what follows its last space, and that."""
    before, _, last = text.rpartition(" ")
    return before, last


def _right_context(dataset: Any) -> Any:
    return map_rows(dataset, lambda row: {**row, "context": row["contexts"][row["label"]]})


def _right_letter(dataset: Any) -> Any:
    """Return a preprocessor: ARC's right choice by its place, which its letter need not be."""
    import tensorflow as tf

    def placed(row: Any) -> Any:
        return {**row, "right": tf.argmax(tf.equal(row["choices"]["label"], row["answerKey"]))}

    return map_rows(dataset, placed)


def _ranked(
    name: str,
    description: str,
    *,
    question: str,
    candidates: Candidates,
    measures: Sequence[str],
    article: str | None = None,
    version: float = 1.0,
    **more: Any,
) -> None:
    register(
        TaskDef(
            name=name,
            description=f"{description}; by likelihood, as in lm-evaluation-harness",
            template=Template(question=question, answer=candidates, article=article),
            metrics=(MultipleChoice(tuple(measures)),),
            # Of the right candidate when it is trained on; likelihoods have no limit.
            output_length=more.pop("output_length", SENTENCE_LENGTH),
            version=version,
            **more,
        )
    )


_ranked(
    "hellaswag",
    "HellaSwag: how does it go on?",
    source=hugging_face("Rowan/hellaswag", splits=_VALIDATED),
    splits=_VALIDATED,
    preprocessors=(
        _in_python(
            hellaswag,
            ("activity_label", "ctx_a", "ctx_b", "endings"),
            {"query": [], "candidates": [None]},
        ),
    ),
    question="{query}",
    candidates=Candidates(texts="candidates", label="label"),
    measures=("acc_norm", "acc"),
)
for _name, _measures in (("easy", ("acc", "acc_norm")), ("challenge", ("acc_norm", "acc"))):
    _ranked(
        f"arc_{_name}",
        f"ARC {_name}: a question about grade-school science",
        source=tfds(f"ai2_arc/ARC-{_name.title()}:1.0.0", _TESTED),
        splits=_TESTED,
        preprocessors=(_right_letter,),
        question=_QUESTION,
        candidates=Candidates(texts="choices.text", label="right"),
        measures=_measures,
        scored_split="test",
    )
_ranked(
    "winogrande",
    "WinoGrande: which of two fills the blank, judged by the rest of the sentence",
    source=tfds("winogrande:1.2.0", {"train": "train_xl", "validation": "validation"}),
    splits=_VALIDATED,
    preprocessors=(
        _in_python(
            winogrande, ("sentence", "option1", "option2"), {"contexts": [None], "ending": []}
        ),
        _right_context,
    ),
    question="{context}",
    candidates=Candidates(texts=("{ending}", "{ending}"), label="label", questions="contexts"),
    measures=("acc",),
)
_ranked(
    "piqa",
    "PIQA: which of two ways reaches an everyday goal",
    source=tfds("piqa:1.0.0", _VALIDATED),
    splits=_VALIDATED,
    question="Question: {goal}\nAnswer:",
    candidates=Candidates(texts=("{sol1}", "{sol2}"), label="label"),
    measures=("acc", "acc_norm"),
)
_ranked(
    "openbookqa_ranked",
    "OpenbookQA: a question about elementary science, the choices not shown",
    source=tfds("openbookqa:0.1.0", _TESTED),
    splits=_TESTED,
    question="{question.stem}",
    candidates=Candidates(
        texts=tuple(f"{{question.choice_{letter}}}" for letter in "ABCD"), label="answerKey"
    ),
    measures=("acc_norm", "acc"),
    scored_split="test",
)
_ranked(
    "boolq",
    "BoolQ (SuperGLUE): a yes/no question about a passage",
    source=tfds("super_glue/boolq:1.0.2", _VALIDATED),
    splits=_VALIDATED,
    question="{passage}\nQuestion: {question}?\nAnswer:",
    candidates=Candidates(texts=("no", "yes"), label="label"),
    measures=("acc",),
    article="passage",
    output_length=LABEL_LENGTH,
    version=2.0,
)
for _name, _rows, _splits in (
    ("openai", hugging_face("EleutherAI/lambada_openai", "default", splits=["test"]), ("test",)),
    (
        "standard",
        hugging_face("cimec/lambada", splits=["validation", "test"]),
        ("validation", "test"),
    ),
):
    register(
        TaskDef(
            name=f"lambada_{_name}",
            description=f"LAMBADA ({_name}): the last word; as in lm-evaluation-harness",
            source=_rows,
            splits=_splits,
            preprocessors=(_in_python(last_word, ("text",), {"context": [], "word": []}),),
            template=Template(question="{context}", answer=Candidates(texts=("{word}",))),
            metrics=(Continuation(),),
            output_length=ANSWER_LENGTH,
            scored_split="test",
            shots_split=_splits[0],
            version=1.0,
        )
    )
register(
    TaskDef(
        name="gsm8k",
        description="GSM8K: a word problem solved in steps; as in lm-evaluation-harness",
        source=tfds("gsm8k:1.0.0", ("train", "test")),
        splits=("train", "test"),
        template=Template(question=_QUESTION, answer="{answer}"),
        postprocess=Until("Question:"),
        metrics=(_FINAL_NUMBER,),
        output_length=SENTENCE_LENGTH,
        scored_split="test",
        listed_shots=(5,),
        version=3.0,
    )
)
register(
    TaskDef(
        name="squad",
        description="SQuAD 1.1: a span of a passage that answers a question, asked as T5 was",
        source=tfds("squad/v1.1:3.0.0", _VALIDATED),
        splits=_VALIDATED,
        **SPAN_OF_PASSAGE,
        output_length=ANSWER_LENGTH,
    )
)
register(
    Mixture(
        name="lm_eval",
        description="eight standard tasks by likelihood, as in lm-evaluation-harness",
        rates=dict.fromkeys(EIGHT, 1.0),
    )
)
