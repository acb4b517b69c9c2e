"""What evaluations leave, written by hand: rows of a comparison, stages, several seeds.

`questions` are real rows where the samples lie beside the checkout, and `made_up` ones anywhere;
`answer` makes a model of a skill and a habit answer them.
"""

import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import run_helpers
from etils import epath
from real_rows import SAMPLES

from promot_t5x.evaluation import records
from promot_t5x.report import comparison, runs
from promot_t5x.report.rows import ReportRow
from promot_t5x.tasks import exact_match, metrics
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.rouge import Rouge

RESAMPLES = 500
THREE, TWO = ("True", "False", "Neither"), ("False", "True")


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's questions, (id, text, target), and how it is scored."""

    name: str
    questions: Sequence[tuple[str, str, Any]]
    metrics: Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """How a made-up model answers: rightly with probability `skill`, else `habit` or otherwise."""

    skill: float
    habit: float = 0.0  # probability of "True" or "False" among what is not right
    seed: int = 0


def real_tasks(limit: int = 60) -> tuple[Task, list[Task]]:
    """RTE, and the eight of the suite, on sample rows; skips where there are none."""
    if not (SAMPLES / "splits.json").exists():
        pytest.skip("sample rows are not beside this checkout")
    splits = json.loads((SAMPLES / "splits.json").read_text())

    def task(name, file, split, metrics, ask, answer):
        start, stop = splits[file]["splits"][split]
        lines = (SAMPLES / f"{file}.jsonl").read_text().splitlines()[start:stop][:limit]
        rows = enumerate(map(json.loads, lines))
        return Task(name, [(str(n), ask(row), answer(row)) for n, row in rows], metrics)

    def pair(row):
        return f"{row['premise']} question: {row['hypothesis']} Is it true or false? answer:"

    def translated(name, file, language):
        return task(
            *(f"{name}_1shot", file, "test", [Bleu()]),
            *(lambda r: f"Translate: {r['en']}", lambda r: r[language]),
        )

    accuracy, wikilingua = metrics.accuracy, "gem_wiki_lingua_english_en"
    suite = [
        task(
            *("cb_1shot", "super_glue_cb", "validation", [accuracy, metrics.macro_f1(THREE)]),
            *(pair, lambda r: THREE[r["label"]]),
        ),
        task(
            *("wic_1shot", "super_glue_wic", "validation", [accuracy]),
            *(
                lambda r: f"{r['sentence1']} {r['sentence2']} {r['word']}",
                lambda r: TWO[r["label"]],
            ),
        ),
        task(
            *("triviaqa_1shot", "trivia_qa", "validation", [exact_match.trivia_qa]),
            *(lambda r: f"Q: {r['question']} A:", lambda r: r["answer"]["aliases"]),
        ),
        task(
            *("webquestions_1shot", "web_questions", "test", [exact_match.squad]),
            *(lambda r: f"Q: {r['question']} A:", lambda r: r["answers"]),
        ),
        translated("wmt16_ende", "wmt16_translate_de-en", "de"),
        translated("wmt16_enro", "wmt16_translate_ro-en", "ro"),
        task(
            *("xsum_1shot", "xsum", "test_pool_a", [Rouge()]),
            *(lambda r: f"Article: {r['document']}", lambda r: r["summary"]),
        ),
        task(
            *("wikilingua_1shot", wikilingua, "test", [Rouge()]),
            *(lambda r: f"Article: {r['source']}", lambda r: r["target"]),
        ),
    ]
    rte = task(
        *("rte", "super_glue_rte", "validation", [accuracy]),
        *(pair, lambda r: ("True", "False")[r["label"]]),
    )
    return rte, suite


def made_up_tasks(examples: int = 30) -> tuple[Task, list[Task]]:
    """A target with two answers, and a suite of two tasks."""
    words = "apple pear plum cherry fig grape melon lemon".split()
    rng = random.Random(0)

    def questions(answer):
        return [(f"q{n}", f"question {n}?", answer()) for n in range(examples)]

    suite = [
        Task("toy_fruit_1shot", questions(lambda: rng.choice(words)), [metrics.exact_match]),
        Task(
            "toy_talk_1shot",
            questions(lambda: " ".join(rng.choices(words, k=rng.randint(4, 9)))),
            [Bleu()],
        ),
    ]
    return Task("toy", questions(lambda: rng.choice(TWO)), [metrics.accuracy]), suite


def answer(task: Task, model: Model) -> list[str]:
    """The model's answer to every question."""
    rng = random.Random(f"{task.name} {model.seed}")
    said = []
    for _, _, target in task.questions:
        right = target if isinstance(target, str) else target[0]
        # Drawn in any case, so that models of one seed find the same questions hard.
        hard, other, word = rng.random(), rng.random(), rng.choice(TWO)
        if hard < model.skill:
            said.append(right)
        elif other < model.habit:
            said.append(word)
        else:
            words = right.split()
            rng.shuffle(words)
            said.append(" ".join([*words[: max(1, 2 * len(words) // 3)], "perhaps"]))
    return said


def write_answers(
    directory: Path,
    task: Task,
    predictions: Sequence[str],
    *,
    step: int = 0,
    prompt: bool = False,
    answer_words: Sequence[str] = (),
    language: str | None = None,
    split: str = "validation",
    config: str = "",
    weights: str = "0123456789abcdef",
    chosen_on: str | None = None,
    version: float | None = None,
) -> None:
    """`inference_eval/` of one task in a directory."""
    targets = [target for _, _, target in task.questions]
    alone = records.example_scores(task.metrics[0], targets, predictions)
    result = records.TaskResult(
        task=task.name,
        split=split,
        answer_words=list(answer_words),
        language=language,
        version=version,
        metrics={name: v for m in task.metrics for name, v in m(targets, predictions).items()},
        metric_specs=[metrics.spec(metric) for metric in task.metrics],
        records=[
            {
                "task": task.name,
                "id": name,
                "inputs": text,
                "target": target,
                "output": f" {said}",
                "prediction": said,
                "score": score,
                "log_prob": -1.0,
            }
            for (name, text, target), said, score in zip(
                task.questions, predictions, alone, strict=True
            )
        ],
    )
    run = records.EvalRun(
        directory=epath.Path(directory),
        step=step,
        checkpoint={"path": "checkpoint_100", "hash": weights, "origin": "made up"},
        prompt={"hash": "fedcba9876543210", "origin": "made up"} if prompt else None,
        selection_split={} if chosen_on is None else {task.name: chosen_on},
        config=config,
    )
    records.write(run, [result])


def write_row(
    directory: Path,
    label: str,
    target: tuple[Task, Model],
    suite: Sequence[tuple[Task, Model]],
    *,
    config: str = "",
    **told: Any,
) -> Path:
    """One row of a comparison."""
    row = directory / re.sub(r"\W+", "_", label)
    for task, model in [target, *suite]:
        said = answer(task, model)
        write_answers(row, task, said, prompt=(task is target[0]), config=config)
    row_file = ReportRow(
        label=label,
        targets={target[0].name: 0.0},
        suite={task.name: 0.0 for task, _ in suite},
        **told,
    )
    (row / "row.json").write_text(json.dumps(dataclasses.asdict(row_file)))
    return row


SKILLS = {
    # label: skill on the target, on classification, on text; habit
    "pretrained": (0.45, 0.50, 0.45, 0.0),
    "prompt tuning": (0.88, 0.50, 0.45, 0.0),
    "standard fine-tuning": (0.92, 0.65, 0.05, 0.9),
    "ProMoT": (0.93, 0.62, 0.42, 0.02),
}


def write_run(
    run: Path,
    target: Task,
    suite: Sequence[Task],
    *,
    seed: int = 0,
    labels: Sequence[str] = (),
    config: str = "",
) -> Path:
    """The comparison of a whole `promot` run; rows but `pretrained` have a stage of their name."""
    for label in labels or SKILLS:
        on_target, on_labels, on_text, habit = SKILLS[label]
        rows = [
            (
                task,
                Model(
                    skill=on_labels if task.metrics[0] is metrics.accuracy else on_text,
                    habit=habit,
                    seed=seed,
                ),
            )
            for task in suite
        ]
        told = {
            "position": list(SKILLS).index(label),
            "stage": None if label == "pretrained" else re.sub(r"\W+", "_", label),
            "config": config,
        }
        write_row(run / "comparison", label, (target, Model(on_target, seed=seed)), rows, **told)
    return run


def compare(*words, **settings):
    found = runs.read([str(word) for word in words])
    return comparison.compare(found, resamples=RESAMPLES, **settings)


def cell(made, label, title):
    (column,) = (column for column in made.columns if column.title == title)
    return made.row(label).cells[column]


def command(*words):
    return run_helpers.here(["report", *map(str, words)])
