"""Metrics on answers written by hand."""

import pytest
from promot_t5x.tasks import metrics

LABELS = ("True", "False")


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.exact_match])
def test_gold_scores_100_empty_0_and_half_50(metric):
    gold = ["True", "False"]
    assert list(metric(gold, gold).values()) == [100.0]
    assert list(metric(gold, ["", ""]).values()) == [0.0]
    assert list(metric(gold, ["True", "true"]).values()) == [50.0]


def test_any_of_several_references_is_right():
    targets = [["Paris", "City of Light"], "Rome"]
    assert metrics.exact_match(targets, ["City of Light\n", " Rome"]) == {"exact_match": 100.0}
    assert metrics.exact_match(targets, ["City", "Rome"]) == {"exact_match": 50.0}
    assert metrics.exact_match(["Paris"], ["ar"]) == {"exact_match": 0.0}


def test_unmatched_counts_answers_that_are_no_label():
    metric = metrics.unmatched(LABELS)
    assert metric(["True"] * 4, ["False", "", "true", "maybe"]) == {"unmatched": 75.0}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("True", "True"),
        (" True, because False", "True"),
        ("False.\nTrue", "False"),
        ("'False'", "False"),
        ("untrue True", "untrue"),
        ("", ""),
        ("  \n", ""),
        ("...", ""),
    ],
)
def test_the_first_word_decides(text, word):
    assert metrics.first_word(text) == word


def test_format_share_looks_at_the_first_word_only():
    answers = ["True", "False it is", "it is False", "", "Truely"]
    assert metrics.format_share(answers) == 40.0
    assert metrics.format_share(answers, words=("it",)) == 20.0


def test_nothing_to_score_and_unequal_lists_are_errors():
    with pytest.raises(ValueError, match="no predictions"):
        metrics.accuracy([], [])
    with pytest.raises(ValueError, match="no predictions"):
        metrics.format_share([])
    for metric in (metrics.accuracy, metrics.exact_match, metrics.unmatched(LABELS)):
        with pytest.raises(ValueError, match="2 targets but 1 predictions"):
            metric(["True", "True"], ["True"])
