"""Scores by likelihood, from numbers worked out by hand; from records and in bootstraps."""

import numpy as np
import pytest

from promot_t5x.tasks import Continuation, Extracted, MultipleChoice, ranking
from promot_t5x.tasks.metrics import answer_text, from_spec, total

# "abcd" is likelier as a whole; a character of "abcdefgh" is likelier (-1.5 against -2).
TARGETS = [
    {"answer": "abcdefgh", "right": 1, "candidates": ["abcd", "abcdefgh"]},
    # Two bytes a letter: -4 / 2 < -3 / 3 by characters and -4 / 4 = -1 = -3 / 3 by bytes.
    {"answer": "éé", "right": 0, "candidates": ["éé", "abc"]},
]
SAID = [
    {"answer": "abcd", "log_probs": [-8.0, -12.0], "greedy": [False, False]},
    {"answer": "abc", "log_probs": [-4.0, -3.0], "greedy": [True, False]},
]


def test_what_candidates_are_divided_by():
    metric = MultipleChoice(("acc_norm", "acc", "acc_bytes"))
    assert metric(TARGETS, SAID) == {"acc_norm": 50.0, "acc": 0.0, "acc_bytes": 100.0}
    rows = metric.example_statistics(TARGETS, SAID)
    assert metric.example_score(rows).tolist() == [100.0, 0.0]
    assert from_spec(metric.spec())(TARGETS, SAID) == metric(TARGETS, SAID)


def test_the_perplexity_of_last_words_is_over_examples():
    metric = Continuation()
    targets = [{"answer": "x", "right": 0, "candidates": ["x"]}] * 3
    said = [
        {"answer": "x", "log_probs": [p], "greedy": [g]}
        for p, g in ((-1.0, True), (-2.0, False), (-6.0, False))
    ]
    found = metric(targets, said)
    assert found["acc"] == pytest.approx(100 / 3)
    assert found["perplexity"] == pytest.approx(np.exp(3.0))
    samples = np.stack([total(metric.example_statistics(targets[:n], said[:n])) for n in (1, 2)])
    np.testing.assert_allclose(metric.value(samples)["perplexity"], np.exp([1.0, 1.5]))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="there is no measure 'acc_chars'"):
        MultipleChoice(("acc_chars",))
    with pytest.raises(ValueError, match="no measures"):
        MultipleChoice(())
    with pytest.raises(ValueError, match="no filters"):
        Extracted(())


def test_filters_take_the_first_match_or_the_last_and_survive_their_spec():
    metric = Extracted((("first", r"\d+", 0), ("last", r"(\d+)|(none)", -1)), ignored=("0",))
    metric = from_spec(metric.spec())
    assert metric(["7", "NONE"], ["70 or 8", "3, then none"]) == {"first": 50.0, "last": 50.0}


def test_records_read_as_text():
    assert answer_text(SAID[0]) == "abcd"
    assert answer_text(TARGETS[1]) == "éé"
    assert answer_text({"log_prob": -1.0, "tokens": 2}) == "{'log_prob': -1.0, 'tokens': 2}"
    example = {"candidates": [b"x", b"y"], "questions": [b"a", b"b"], "right": 1}
    assert ranking.target(example)["answer"] == "b y"
    assert ranking.prediction(example, [-1.0, -2.0], [False, False])["answer"] == "a x"
