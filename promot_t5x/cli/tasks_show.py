"""`promot-t5x tasks show`: examples of a task exactly as a model is asked them."""

import argparse
from typing import Any

import numpy as np

from promot_t5x.cli.tasks_questions import Asking, asking, default_split, spoken_answer_of
from promot_t5x.data.questions import Question, answer_text
from promot_t5x.tasks import dialects, normal_form

_RULE = 80


def show(arguments: argparse.Namespace) -> int:
    """Print the first examples of each task."""
    how = asking(arguments)
    for task in how.tasks(arguments.name, shots=arguments.shots, module=arguments.module):
        split = arguments.split or default_split(task)
        questions = how.questions(task, split, arguments.n)
        print(f"{task.name}, {split}: {_described(how)}")
        for number, question in enumerate(questions, start=1):
            print(_page(how, task, number, question))
        print("─" * _RULE)
    return 0


def _described(how: Asking) -> str:
    dialect = how.dialect.kind
    if how.dialect.kind == "span_corruption":
        dialect += f", sentinel {how.dialect.sentinel}"
    cut = "" if how.unit == "tokens" else "; no model given, so nothing is cut"
    return f"dialect {dialect}{cut}"


def _page(how: Asking, task: Any, number: int, question: Question) -> str:
    target = spoken_answer_of(question)
    parts = [
        f"── {number}: id {question.id} ".ljust(_RULE, "─"),
        _losses(question),
        f"asked, {how.length(question.inputs, question.text)} {how.unit}:",
        f"{question.text}\n",
        f"target, {how.length(question.example['targets'], target)} {how.unit}:",
        target,
    ]
    answer = answer_text(question)
    if (form := normal_form.normal_form(how.vocabulary, answer)) != answer.strip():
        parts.append(f"\nwhich the vocabulary can only write as:\n{form}")
    reference = task.task.postprocess_fn(question.answer, example=question.example, is_target=True)
    if str(reference) != target:
        parts.append(f"\nscored against: {reference!r}")
    if how.unit == "tokens":
        read = dialects.decode(how.vocabulary, question.inputs.tolist())
        if " ".join(read.split()) != " ".join(question.text.split()):
            parts.append(f"\nthe vocabulary does not keep all of it, but reads:\n{read}")
    return "\n".join(part for part in parts if part)


def _losses(question: Question) -> str:
    example = question.example
    parts = []
    if np.size(example.get("shots", ())):
        shots = (shot.decode() for shot in example["shots"])
        parts.append(f"demonstrations: ids {', '.join(shots)}")
    for key, said in (
        ("dropped_shots", "demonstrations that did not fit"),
        ("cut_articles", "articles cut"),
    ):
        if int(example.get(key, 0)):
            parts.append(f"{said}: {int(example[key])}")
    return "\n".join(parts)
