"""`promot-t5x tasks stats`: how long a task's questions and answers are, and its labels."""

import argparse
import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from promot_t5x.cli.tasks_questions import Asking, asking, default_split
from promot_t5x.data.questions import Question, answer_text
from promot_t5x.tasks import normal_form

_PERCENTILES = (50, 90, 95, 99)
# Answers are labels where there are few of them and each comes back often.
_MOST_LABELS = 20
_REPEATS = 4


def stats(arguments: argparse.Namespace) -> int:
    """Print one table a task."""
    how = asking(arguments)
    for task in how.tasks(arguments.name, shots=arguments.shots, module=arguments.module):
        split = arguments.split or default_split(task)
        questions = how.questions(task, split, arguments.n)
        print(_table(how, task, split, questions, arguments.over))
    return 0


def _table(
    how: Asking, task: Any, split: str, questions: Sequence[Question], over: Sequence[int]
) -> str:
    asked, answered = (np.array(lengths) for lengths in _lengths(how, questions))
    total = task.num_input_examples(split)
    of = f" of {total:,}" if total and total != len(questions) else ""
    heads = ["mean", *(f"p{p}" for p in _PERCENTILES), "max"]
    lines = [
        f"{task.name}, {split}: {len(questions):,}{of} examples, lengths in {how.unit}",
        f"{'':10}" + "".join(f"{head:>8}" for head in heads),
        f"{'questions':10}{_row(asked)}",
        f"{'answers':10}{_row(answered)}",
    ]
    for length in over:
        count = int((asked > length).sum())
        lines.append(f"questions over {length}: {count} ({count / len(asked):.1%})")
    for key, said in (
        ("dropped_shots", "with demonstrations dropped"),
        ("cut_articles", "with an article cut"),
    ):
        count = sum(int(question.example.get(key, 0)) > 0 for question in questions)
        if count:
            lines.append(f"questions {said}: {count} ({count / len(asked):.1%})")
    found = normal_form.described(how.vocabulary, [answer_text(each) for each in questions])
    if found is not None:
        lines.append(found[1])
    limit = None
    if task.definition is not None:
        limit = task.definition.answer_limit(how.vocabulary, how.dialect)
    if limit is not None and how.unit == "tokens":
        count = int((answered > limit).sum())
        lines.append(f"answers over output_length {limit}: {count} ({count / len(answered):.1%})")
    return "\n".join([*lines, _balance(questions), ""])


def _lengths(how: Asking, questions: Sequence[Question]) -> tuple[list[int], list[int]]:
    asked = [how.length(question.inputs, question.text) for question in questions]
    answered = [how.length(q.example["targets"], answer_text(q)) for q in questions]
    return asked, answered


def _row(lengths: Int64[np.ndarray, " examples"]) -> str:
    values = [lengths.mean(), *np.percentile(lengths, _PERCENTILES, method="higher"), lengths.max()]
    return "".join(f"{value:8.0f}" for value in values)


def _balance(questions: Sequence[Question]) -> str:
    counts = collections.Counter(answer_text(question) for question in questions)
    if len(counts) > _MOST_LABELS or len(counts) * _REPEATS > len(questions):
        return f"different answers: {len(counts):,}"
    shares = (f"{label!r} {n} ({n / len(questions):.1%})" for label, n in counts.most_common())
    return "labels: " + ", ".join(shares)
