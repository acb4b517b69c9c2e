"""Where new prompts start: each initializer, its description and its complaints."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.errors import UserError
from promot_t5x.network.prompt_init import (
    ClassLabels,
    EmbeddedText,
    PromptInit,
    SampledVocabulary,
    Uniform,
)

KEY = jax.random.key(0)
TABLE = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


class Letters:
    """A vocabulary of a token a letter: a is 3."""

    def encode(self, s):
        return [ord(letter) - ord("a") + 3 for letter in s]


def rows_of(prompt):
    """The row of the table that each vector is."""
    matches = (prompt[:, None] == TABLE[None]).all(axis=-1)
    assert (matches.sum(axis=1) == 1).all()
    return matches.argmax(axis=1).tolist()


def test_uniform():
    prompts = Uniform()(KEY, (3, 100, 8))
    assert (prompts.shape, prompts.dtype) == ((3, 100, 8), np.float32)
    assert 0.49 < np.abs(prompts).max() <= 0.5
    assert abs(prompts.mean()) < 0.02
    assert np.abs(Uniform(scale=2.0)(KEY, (1, 100, 8))).max() > 1.9
    np.testing.assert_array_equal(prompts, Uniform()(KEY, (3, 100, 8)))
    assert not np.array_equal(prompts, Uniform()(jax.random.key(1), (3, 100, 8)))


@pytest.mark.parametrize("table", [TABLE, jnp.asarray(TABLE)])
def test_sampled_vocabulary(table):
    prompts = SampledVocabulary(population=20)(KEY, (2, 20, 4), embedding=table)
    assert (prompts.shape, prompts.dtype) == ((2, 20, 4), np.float32)
    # Without replacement: all of the population, each prompt in an order of its own.
    first, second = map(rows_of, prompts)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    # With replacement only where the prompt is longer.
    longer = rows_of(SampledVocabulary(population=3)(KEY, (1, 9, 4), embedding=table)[0])
    assert set(longer) <= {0, 1, 2}


def test_population_fits_a_small_table_or_is_an_error():
    drawn = SampledVocabulary()(KEY, (1, 30, 4), embedding=TABLE)
    assert {tuple(row) for row in drawn[0]} == {tuple(row) for row in np.asarray(TABLE)}
    for population in (31, 0):
        with pytest.raises(UserError, match=rf"population is {population}; .* 1 \.\.\. 30"):
            SampledVocabulary(population=population)(KEY, (1, 2, 4), embedding=TABLE)


def test_class_labels():
    init = ClassLabels(labels=["ab", "c"], fallback=SampledVocabulary(population=3))
    prompts = init(KEY, (2, 4, 4), embedding=TABLE, vocabulary=Letters())
    for prompt in prompts:
        np.testing.assert_array_equal(prompt[0], (TABLE[3] + TABLE[4]) / 2)
        assert rows_of(prompt[1:])[0] == 5
        assert set(rows_of(prompt[2:])) <= {0, 1, 2}
    with pytest.raises(UserError, match="2 labels for a prompt of 1"):
        init(KEY, (1, 1, 4), embedding=TABLE, vocabulary=Letters())
    with pytest.raises(UserError, match="'' encodes to no token"):
        ClassLabels(labels=("",), fallback=Uniform())(
            KEY, (1, 4, 4), embedding=TABLE, vocabulary=Letters()
        )


def test_embedded_text_is_repeated_or_cut():
    init = EmbeddedText(text="abc")
    longer = init(KEY, (2, 5, 4), embedding=TABLE, vocabulary=Letters())
    assert [rows_of(prompt) for prompt in longer] == [[3, 4, 5, 3, 4]] * 2
    shorter = init(KEY, (1, 2, 4), embedding=TABLE, vocabulary=Letters())
    assert rows_of(shorter[0]) == [3, 4]
    half = init(KEY, (1, 2, 4), embedding=jnp.asarray(TABLE, "bfloat16"), vocabulary=Letters())
    assert half.dtype == np.float32


def test_what_reads_the_base_says_so():
    text = EmbeddedText(text="z")
    with pytest.raises(UserError, match="no base"):
        text(KEY, (1, 2, 4), vocabulary=Letters())
    with pytest.raises(UserError, match="no vocabulary"):
        text(KEY, (1, 2, 4), embedding=TABLE)
    with pytest.raises(UserError, match=r"\(30, 4\) for prompts of shape \(1, 2, 5\)"):
        text(KEY, (1, 2, 5), embedding=TABLE, vocabulary=Letters())
    with pytest.raises(UserError, match="'z' encodes to the id 28, .* 20 rows"):
        text(KEY, (1, 2, 4), embedding=TABLE[:20], vocabulary=Letters())


@pytest.mark.parametrize(
    ("init", "described"),
    [
        (Uniform(), {"name": "Uniform", "scale": 0.5}),
        (SampledVocabulary(), {"name": "SampledVocabulary", "population": None}),
        (
            ClassLabels(labels=["yes", "no"]),
            {
                "name": "ClassLabels",
                "labels": ["yes", "no"],
                "fallback": {"name": "SampledVocabulary", "population": None},
            },
        ),
        (EmbeddedText(text="a b"), {"name": "EmbeddedText", "text": "a b"}),
    ],
)
def test_initializers_are_values_that_describe_themselves(init, described):
    assert isinstance(init, PromptInit)
    assert json.loads(json.dumps(init.describe())) == described
    assert hash(init) == hash(dataclasses.replace(init))
