"""Which runs are seeds of one row: those that differ in their seed and their directory alone."""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from promot_t5x import config
from promot_t5x.config import gin_reader
from promot_t5x.errors import UserError
from promot_t5x.report.runs import DiscoveredRun

# Settings in which seeds of one row may differ: seeds, directories, what is asked besides, and how
# devices are used.
_FREE = re.compile(
    r"SEEDS|RANDOM_SEED|(.*\.)?(random_)?seeds?|MODEL_DIR|EVAL_OUTPUT_DIR|.*\.(model|output)_dir"
    r"|SUITE_SHOT_SEEDS|.*\.suite_shot_seeds|NUM_PARTITIONS|MESH|partitioning\..*"
)
# What `eval` is told to evaluate; a label that the user gave says that they are seeds.
_EVALUATED = re.compile(r"CHECKPOINT_PATH|PROMPT_FILE|.*\.(checkpoint|prompt)_path")
_SHOWN = 2  # settings in a label


def grouped(runs: Sequence[DiscoveredRun]) -> list[DiscoveredRun]:
    """Return the runs with labels that seeds of one method share, and others do not.

    Runs of one label that differ in more than their seed and directory become rows of their own,
    with what differs in their labels. One model that several runs evaluated is one row.

    **Raises:** `UserError` where the user gave one label to runs that are not seeds of one method,
    and where a run is there twice.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    found = [run for label in labels for run in _of_label([r for r in runs if r.label == label])]
    seen: dict[tuple[str, str], DiscoveredRun] = {}
    for run in found:
        twin = seen.setdefault((run.label, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{twin.path} and {run.path} are both {run.label!r}, seed {run.seed}: name each "
                "run once, or give one another label, as in LABEL=PATH."
            )
    return found


def _of_label(runs: Sequence[DiscoveredRun]) -> list[DiscoveredRun]:
    """Return the runs of one label, as seeds or as rows of their own."""
    alike: list[list[DiscoveredRun]] = []
    for run in _one_of_each_model(list(map(_with_seed, runs))):
        for group in alike:
            if not differences(group[0], run):
                group.append(run)
                break
        else:
            alike.append([run])
    if len(alike) == 1:
        return alike[0]
    first, *others = (group[0] for group in alike)
    apart = [differences(first, other) for other in others]
    if first.named:
        raise UserError(
            f"{first.path} and {others[0].path} are both named {first.label!r}, but they are no "
            f"seeds of one method: {'; '.join(apart[0][:5])}. Give each a label of its own."
        )
    made = []
    suffixes = _suffixes([group[0] for group in alike])
    for group, suffix in zip(alike, suffixes, strict=True):
        for run in group:
            note = (
                f"{first.label!r} is {len(alike)} rows, as its runs are no seeds of one method: "
                + "; ".join(dict.fromkeys(line for lines in apart for line in lines[:3]))
                + "."
            )
            made.append(dataclasses.replace(run, label=f"{run.label} [{suffix}]", notes=[note]))
    return made


def differences(first: DiscoveredRun, second: DiscoveredRun) -> list[str]:
    """Return what tells two runs apart beside seed and directory, a line each; none of seeds."""
    if list(first.targets) != list(second.targets):
        return [f"targets: {_targets(first)} and {_targets(second)}"]
    mine, theirs = map(_settings, (first, second))
    if mine == theirs or mine is None or theirs is None:
        return []
    lines = []
    for line in config.describe_difference(mine, theirs):
        name = line.partition(":")[0]
        evaluated = first.named and second.named and _EVALUATED.fullmatch(name)
        if not _FREE.fullmatch(name) and not evaluated:
            lines.append(line.replace("was not set, now", "not set and").replace(", now", " and"))
    return [line.replace(": was ", ": ") for line in lines]


def _one_of_each_model(runs: Sequence[DiscoveredRun]) -> list[DiscoveredRun]:
    """Return the runs; models that no stage trained and that answered alike become one."""
    kept: list[DiscoveredRun] = []
    for run in runs:
        for n, other in enumerate(kept):
            if _same_model(other, run):
                kept[n] = dataclasses.replace(
                    other,
                    targets={**run.targets, **other.targets},
                    suite={**run.suite, **other.suite},
                )
                break
        else:
            kept.append(run)
    return kept


def _same_model(first: DiscoveredRun, second: DiscoveredRun) -> bool:
    """Whether two runs are of one model that is no result of training, as the pretrained one is."""
    if first.stage or second.stage or first.path == second.path:
        return False
    shared = first.answers.keys() & second.answers.keys()
    if any(first.answers[task].answers != second.answers[task].answers for task in shared):
        return False
    return bool(shared) and all(
        _weights(first, task) == _weights(second, task) and _weights(first, task)[0] is not None
        for task in shared
    )


def _weights(run: DiscoveredRun, task: str) -> tuple[Any, Any]:
    summary = run.answers[task].summary
    checkpoint, prompt = summary.get("checkpoint") or {}, summary.get("prompt") or {}
    return checkpoint.get("hash"), prompt.get("hash")


def _with_seed(run: DiscoveredRun) -> DiscoveredRun:
    """Return the run with the seed that its configuration states, if it has none of its own."""
    text = _settings(run)
    if "/" not in run.seed or not text:
        return run
    seed = gin_reader.plain_bindings(text, str(run.path)).get("RANDOM_SEED")
    return run if seed is None or not run.stage else dataclasses.replace(run, seed=seed)


def _settings(run: DiscoveredRun) -> str | None:
    """Return the configuration that the run's summaries hold."""
    return next((a.summary.get("config") or None for a in run.answers.values()), None)


def _targets(run: DiscoveredRun) -> str:
    return ", ".join(run.targets) or "none"


def _suffixes(runs: Sequence[DiscoveredRun]) -> list[str]:
    """Return what tells the labels of runs apart: targets, else settings, else directories."""
    named = [_targets(run) for run in runs]
    if len(set(named)) == len(runs):
        return named
    bindings = [gin_reader.plain_bindings(_settings(run) or "", str(run.path)) for run in runs]
    names = [
        name
        for name in sorted(set().union(*bindings))
        if not _FREE.fullmatch(name) and len({b.get(name) for b in bindings}) > 1
    ]
    if 0 < len(names) <= _SHOWN:
        return [", ".join(f"{n.rpartition('.')[2]}={b.get(n)}" for n in names) for b in bindings]
    paths = [str(run.path) for run in runs]
    shared = len(os.path.commonpath(paths)) + 1
    return [path[shared:] for path in paths]
