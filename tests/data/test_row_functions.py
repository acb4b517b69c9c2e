"""Many rows at once: the examples of a pipeline that takes them one after the other, and errors."""

import json

import numpy as np
import pytest

from promot_t5x.data.ragged import FEATURES, joined_texts
from promot_t5x.data.row_tokenizer import RowTokenizer
from promot_t5x.data.rows import open_rows
from promot_t5x.data.tokenization import Pipeline, tokenized
from promot_t5x.errors import UserError

pytestmark = pytest.mark.slow

WORDS = ("no", "yes", "perhaps")
# Fields whose text is not what TensorFlow would make of their values.
ROWS = [
    {"q": f" Größe {n}? ", "n": n % 3, "f": n + 0.1, "whole": float(n % 2), "w": WORDS[n % 3]}
    | {"o": {"t": n % 2 == 0}, "i": 10**17 + n}
    for n in range(40)
]
LINE = '{{"q": "x", "n": {n}, "f": 1e3, "whole": 0.5, "w": "often", "o": {{"t": true}}, "i": 1}}\n'


def of_the_words(row):
    import tensorflow as tf

    return (row["n"] > 0) & (tf.strings.length(row["q"]) > 9)


def tidied(row):
    import tensorflow as tf

    text = tf.strings.lower(tf.strings.strip(row["q"]))
    return {**row, "q": tf.strings.regex_replace(text, "[?]", "!"), "n": row["n"] * 2}


def pipelines(folder, last="", **settings):
    """Give the pipeline of a task of the rows, and the rows."""
    import seqio

    from promot_t5x.tasks import jsonl, text_task

    file = folder / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + last)
    settings = {"inputs": "Is {q}?", "target": "{w}", **settings}
    definition = text_task(name="words", source=jsonl(file), **settings)
    task = definition.build(seqio.ByteVocabulary())
    return Pipeline(task, "train", {"inputs": 60, "targets": 12}), open_rows(
        task.source, "train", None
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"inputs": "{q} {q}"},
        {"inputs": "{q} {n} {f} {whole} {o.t} {i}", "target": "{f}"},
        {"target": "{n}", "labels": WORDS},
        {"target": "{whole}", "labels": WORDS},
        {"target": "{w}", "labels": WORDS},
        {"preprocessors": [lambda data: data.map(tidied)], "target": "{n} {f}"},
        {"preprocessors": [lambda data: data.filter(of_the_words)], "labels": WORDS},
        {"preprocessors": [lambda data: data.filter(lambda row: row["n"] > 5)]},
    ],
)
def test_rows_at_once_make_the_examples_of_rows_one_after_the_other(settings, tmp_path):
    pipeline, rows = pipelines(tmp_path, **settings)
    tokenizer = RowTokenizer(pipeline, rows)
    graph = tokenizer._run.get_concrete_function().graph.as_graph_def()
    loops = [f.signature.name for f in graph.library.function if "while_body" in f.signature.name]
    # What is not known to act on each row alone is looped over: as slow as row by row. Numbers
    # that a preprocessor has changed are spelled in a loop, the others are not.
    assert tokenizer._takes_many
    assert all("PyFunc" in name for name in loops), loops
    chunks = [*tokenizer.chunks(np.arange(40)), *tokenizer.chunks(np.array([7, 7, 39]))]
    again = list(tokenized(pipeline, rows))
    # SeqIO's own reading of the file.
    expected = list(tokenized(pipeline, None))
    for feature in FEATURES:
        wanted = joined_texts([each[feature] for each in expected])
        assert joined_texts([each[feature] for each in again])[0].tolist() == wanted[0].tolist()
        found = chunks[0][feature]
        assert found.tokens.tolist() == wanted.tokens.tolist()
        assert found.lengths.tolist() == wanted.lengths.tolist()
        if tokenizer.keeps_each:
            some = wanted.take(np.array([7, 7, 39]))
            assert chunks[1][feature].tokens.tolist() == some.tokens.tolist()


@pytest.mark.parametrize(("target", "said"), [("{n}", "the label 3"), ("{w}", "the label often")])
def test_a_row_among_many_that_is_wrong_is_named(target, said, tmp_path):
    pipeline, rows = pipelines(tmp_path, LINE.format(n=3), target=target, labels=WORDS)
    tokenizer = RowTokenizer(pipeline, rows)
    assert tokenizer._takes_many
    assert len(tokenizer(np.arange(40))["inputs"].lengths) == 40
    with pytest.raises(UserError) as one:
        list(tokenized(pipeline, rows))
    with pytest.raises(UserError, match=f"{said} is none of no, yes.*row train-41") as many:
        tokenizer(np.arange(41))
    assert str(many.value) == str(one.value)


def test_a_row_that_a_filter_leaves_out_may_be_wrong(tmp_path):
    kept = [lambda data: data.filter(lambda row: row["n"] < 3)]
    pipeline, rows = pipelines(
        tmp_path, LINE.format(n=3), target="{n}", labels=WORDS, preprocessors=kept
    )
    tokenizer = RowTokenizer(pipeline, rows)
    assert tokenizer.looks_at_each
    assert not tokenizer.keeps_each
    assert len(tokenizer(np.arange(41))["inputs"].lengths) == 40


@pytest.mark.parametrize(
    "step",
    [
        lambda data: data.shuffle(5, seed=0),
        lambda data: data.filter(lambda row: row["n"] > 0).repeat(2),
        lambda data: data.enumerate().map(lambda n, row: {**row, "n": n}),
    ],
)
def test_a_pipeline_that_looks_beyond_a_row_is_not_taken(step, tmp_path):
    tokenizer = RowTokenizer(*pipelines(tmp_path, preprocessors=[step]))
    assert not tokenizer.looks_at_each
    assert not tokenizer.keeps_each
