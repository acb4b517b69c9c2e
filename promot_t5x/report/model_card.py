"""The model card of an export: what it is made of, how, from what data, and what it lost.

Everything is read from what the run left; what it did not record is said to be unknown.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from etils import epath

from promot_t5x import versions
from promot_t5x.checkpoints import hub, pretrained_names
from promot_t5x.checkpoints.conversion.conversion import ConversionSource
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError
from promot_t5x.evaluation import drift
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.report import comparison, pairs, runs, table
from promot_t5x.report.rows import number, signed_number, span

# Of T5, T5 1.1, Flan-T5, mT5, umT5 and ByT5, as their authors published them.
_PUBLIC_LICENSE = "apache-2.0"
_UNKNOWN = "unknown"
_SCRATCH = "random weights"
_PROMPT_ORIGIN = "the prompt of "


def card(opened: ConversionSource, *, title: str, prompt_removed: bool) -> str:
    """Return a model card for Hugging Face's format.

    **Arguments:**

    - `opened`: the checkpoint that is exported.
    - `title`: the card's heading.
    - `prompt_removed`: whether a soft prompt was left behind.
    """
    terms, base = _license(opened), _base(opened)
    head: dict[str, Any] = {"license": terms, "library_name": "transformers"}
    if base.startswith(hub.SCHEME):
        head["base_model"] = hub.parse(base)[0]
    if opened.trained is not None:
        head["tags"] = ["promot_t5x"]
    said = "is not recorded: look it up" if terms == _UNKNOWN else f"is {terms}"
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {title}",
        f"## Base\n\n`{base}`. Its license {said}.",
    ]
    if opened.trained is not None:
        parts += _training(opened.trained, prompt_removed)
    used = dict(
        versions.installed() if opened.trained is None else opened.trained.manifest.versions
    )
    listed = ", ".join(f"{name} {version}" for name, version in used.items())
    parts.append(f"## Versions\n\nWritten by `promot-t5x convert`; made with {listed}.")
    return "\n\n".join(parts) + "\n"


def _base(opened: ConversionSource) -> str:
    """Return what the first of the stages started from, as the user named it."""
    trained = opened.trained
    if trained is None:
        return [origin for origin in opened.origins if not origin.startswith(_PROMPT_ORIGIN)][-1]
    while (reference := trained.manifest.metadata["base_path"]) is not None:
        earlier = trained.directory.parent.parent / reference
        result = None if "/" in reference else StageResult.read(earlier)
        if result is None:
            return str(reference)
        stored = result.trained().stored
        assert isinstance(stored, PromotCheckpoint)  # a stage's result is
        trained = stored
    return _SCRATCH


def _license(opened: ConversionSource) -> str:
    base = _base(opened)
    public = [place for places in pretrained_names.PUBLIC.values() for place in places]
    if base in pretrained_names.NAMES or base in public or base == str(_shipped()):
        return _PUBLIC_LICENSE
    directories = [hub.download(base)] if base.startswith(hub.SCHEME) else [epath.Path(base)]
    for directory in directories:
        if (path := directory / hub.CARD).is_file():
            front = re.match(r"---\n(.*?)\n---", path.read_text(), re.DOTALL)
            found = (yaml.safe_load(front[1]) if front else None) or {}
            return str(found.get("license", _UNKNOWN))
    return _UNKNOWN


def _shipped() -> str:
    return pretrained_names.resolve("tiny_world")[0]


def _training(trained: PromotCheckpoint, prompt_removed: bool) -> Iterator[str]:
    metadata = trained.manifest.metadata
    stage = trained.directory.parent
    only_prompt = set(trained.shapes) <= {PROMPT_PATH}
    what = "a soft prompt, the model being frozen" if only_prompt else "the model's parameters"
    lines = [f"The stage `{stage.name}` trained {what}, for {trained.step:,} steps"]
    if not only_prompt and metadata.get("prompt_path"):
        lines[0] += " behind a frozen soft prompt (ProMoT's stage two)"
    lines[0] += "."
    if prompt_removed:
        lines.append("The soft prompt was removed: the model is asked without it.")
    yield "## Method\n\n" + " ".join(lines)
    examples = metadata.get("data", {}).get("examples", {})
    rows = "\n".join(
        f"- `{name}`: {found['examples']:,} examples" for name, found in examples.items()
    )
    yield f"## Data\n\n{rows or 'Not recorded.'}"
    yield from _scores(stage)
    path = stage / drift.FILE
    if path.is_file():
        steps = {row["step"]: row for row in map(json.loads, path.read_text().splitlines())}
        found = {name: value for name, value in steps[trained.step].items() if name != "step"}
        yield (
            "## Drift\n\nKL(base over tuned) on the target without any prompt, in nats a token: "
            f"`{json.dumps(found)}`."
        )


def _scores(stage: epath.Path) -> Iterator[str]:
    run = stage.parent.parent if stage.parent.name.startswith("seed_") else stage.parent
    if not (run / runs.COMPARISON).is_dir():
        yield "## Scores\n\nThe run has no comparison with its base."
        return
    try:
        found = runs.read([str(run)])
        made = comparison.compare(found)
    except UserError as error:
        yield f"## Scores\n\nThe run's comparison cannot be read: {error}"
        return
    labels = {one.label for one in found if one.stage == stage.name}
    yield f"## Scores\n\nWith 95% intervals.\n\n{table.document(made).rstrip()}"
    for label in sorted(labels - {made.baseline}):
        if pairs.share_a_column(made, made.baseline, label):
            yield f"## What was lost in context\n\n{_lost(pairs.pair(made, made.baseline, label))}"


def _lost(found: pairs.PairedComparison) -> str:
    suite = [d for d in found.differences if d.column.kind in (comparison.SUITE, comparison.MEAN)]
    lost = [
        f"- {d.column.title}: {number(d.first)} → {number(d.second)} "
        f"({signed_number(d.found.value)}; {span(d.found.interval, signed=True)})"
        for d in suite
        if d.found.interval.high < 0
    ]
    start = f"“{found.second}” after “{found.first}”, without a prompt"
    if not lost:
        return f"{start}: no loss of any of {len(suite)} numbers that chance does not explain."
    return f"{start}:\n\n" + "\n".join(lost)
