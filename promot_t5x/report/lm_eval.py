"""A model's scores as lm-evaluation-harness writes them, for tools that read its results.

The keys are those of `lm_eval.simple_evaluate`: `results`, `configs`, `versions`, `n-shot`,
`higher_is_better`, `n-samples` and `config`. A score is `<metric>,<filter>`, a share in [0, 1]
except BLEU, chrF, ROUGE and perplexity, which stay as they are; means over examples have their
standard error, `<metric>_stderr,<filter>`, others `N/A`.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float64

from promot_t5x.files import write_atomically
from promot_t5x.paths import make_directory, user_path
from promot_t5x.report.answers import TaskAnswers
from promot_t5x.report.comparison import RunComparison
from promot_t5x.report.runs import DiscoveredRun
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.chrf import Chrf
from promot_t5x.tasks.metrics import MeanOfExamples, Metric
from promot_t5x.tasks.ranking import Continuation, MultipleChoice
from promot_t5x.tasks.rouge import Rouge

# Their names of scores, with filters, and of tasks.
_SCORES = {
    "accuracy": "acc,none",
    "strict_match": "exact_match,strict-match",
    "flexible_extract": "exact_match,flexible-extract",
}
_TASKS = {"openbookqa_ranked": "openbookqa"}
_IN_PERCENT = (Bleu, Chrf, Rouge)
_LOWER_IS_BETTER = ("perplexity", "rouge_blank_targets")
_SHOTS = re.compile(r"_(\d+)shot$")


def write(output: str, made: RunComparison) -> list[epath.Path]:
    """Write `<row>/results.json` for each row of a report, or one a seed where it has several.

    **Arguments:**

    - `output`: a directory, made if it is not there.

    **Returns:** the files.
    """
    directory, written = user_path(output, "--lm_eval"), []
    for row in made.rows:
        for run in row.runs:
            path = directory / _file_name(row.label)
            path = path / f"seed_{_file_name(run.seed)}" if len(row.runs) > 1 else path
            make_directory(path, "--lm_eval")
            text = json.dumps(results(run), indent=2, ensure_ascii=False)
            write_atomically(path / "results.json", text + "\n")
            written.append(path / "results.json")
    return written


def results(run: DiscoveredRun) -> dict[str, Any]:
    """Return the scores of a run's tasks as lm-evaluation-harness has them."""
    named = _named(run.answers)
    better = {name: _directions(scores(answers)) for name, answers in named.items()}
    return {
        "results": {
            name: {
                "name": name,
                "alias": name,
                "sample_len": len(answers.records),
                **scores(answers),
            }
            for name, answers in named.items()
        },
        "group_subtasks": {name: [] for name in named},
        "configs": {name: _config(name, answers, better[name]) for name, answers in named.items()},
        "versions": {name: answers.summary.get("version") for name, answers in named.items()},
        "n-shot": {name: _shots(answers) for name, answers in named.items()},
        "higher_is_better": better,
        "n-samples": {
            name: {"original": len(answers.records), "effective": len(answers.records)}
            for name, answers in named.items()
        },
        "config": _execution(run),
    }


def scores(answers: TaskAnswers) -> dict[str, float | str]:
    """Return a task's scores and their standard errors, by lm-evaluation-harness's names."""
    errors: dict[str, float | str] = {}
    scales: dict[str, float] = {}
    for metric, rows in zip(answers.metrics, answers.statistics, strict=True):
        for number, name in enumerate(metric.scores):
            scales[name] = _scale(metric, name)
            errors[name] = _error(metric, name, rows[:, number], 100.0 * scales[name])
    made: dict[str, float | str] = {}
    for name, value in answers.summary["metrics"].items():
        metric_name, filter_name = _SCORES.get(name, f"{name},none").split(",")
        made[f"{metric_name},{filter_name}"] = value * scales.get(name, 0.01)
        made[f"{metric_name}_stderr,{filter_name}"] = errors.get(name, "N/A")
    return made


def _scale(metric: Metric, name: str) -> float:
    return 1.0 if isinstance(metric, _IN_PERCENT) or name == "perplexity" else 0.01


def _error(
    metric: Metric, name: str, shares: Float64[np.ndarray, " examples"], scale: float
) -> float | str:
    """Return the standard error of a mean over the examples; "N/A" of what is none."""
    is_mean = isinstance(metric, MeanOfExamples) or (
        isinstance(metric, Continuation) and name == "acc"
    )
    if not is_mean or len(shares) < 2:
        return "N/A"
    return scale * float(np.std(shares, ddof=1)) / math.sqrt(len(shares))


def _named(answers: Mapping[str, TaskAnswers]) -> dict[str, TaskAnswers]:
    """Return answers by their name there, which has no number of shots, unless two share it."""
    theirs = {name: _SHOTS.sub("", name) for name in answers}
    theirs = {name: _TASKS.get(base, base) for name, base in theirs.items()}
    shared = list(theirs.values())
    return {
        base if shared.count(base) == 1 else name: answers[name] for name, base in theirs.items()
    }


def _directions(found: Iterable[str]) -> dict[str, bool]:
    names = [key.split(",")[0] for key in found]
    return {n: n not in _LOWER_IS_BETTER for n in names if not n.endswith("_stderr")}


def _shots(answers: TaskAnswers) -> int:
    """Return the demonstrations before each question; records of older runs have them by name."""
    match = _SHOTS.search(answers.task)
    return int(answers.summary.get("shots") or (match[1] if match else 0))


def _config(name: str, answers: TaskAnswers, better: Mapping[str, bool]) -> dict[str, Any]:
    ranked = any(isinstance(metric, MultipleChoice | Continuation) for metric in answers.metrics)
    return {
        "task": name,
        "output_type": "multiple_choice" if ranked else "generate_until",
        "test_split": answers.split,
        "num_fewshot": _shots(answers),
        "metric_list": [{"metric": n, "higher_is_better": up} for n, up in better.items()],
        "metadata": {"version": answers.summary.get("version")},
    }


def _execution(run: DiscoveredRun) -> dict[str, Any]:
    summary = next(iter(run.answers.values())).summary
    checkpoint = summary.get("checkpoint") or {}
    decoding, seeds = summary.get("decoding") or {}, summary.get("seeds") or {}
    return {
        "model": "promot_t5x",
        "model_args": checkpoint.get("path"),
        "model_sha": checkpoint.get("hash"),
        "model_name": run.label,
        "batch_size": decoding.get("batch_size"),
        "gen_kwargs": decoding.get("method"),
        "random_seed": seeds.get("decoding"),
        "fewshot_seed": seeds.get("shots"),
    }


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("_")
