"""`promot-t5x eval`: evaluate checkpoints on tasks, with a prompt, without, or both."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from promot_t5x import config
from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.paths import CHECKPOINT_PREFIX, absolute, numbered_steps, step_of
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.distributed import processes
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.evaluation.evaluator import Evaluator, eval_run
from promot_t5x.evaluation.records import EvalRun, TaskResult
from promot_t5x.models.model import Model
from promot_t5x.network.prompt import PROMPT_AXES
from promot_t5x.paths import user_path
from promot_t5x.report import rows as report
from promot_t5x.runs import compiled_programs, preflight, run_directory
from promot_t5x.runs.weights import Weights, adapter_paths
from promot_t5x.training.state import Tree, flatten, laid_out, unflatten, with_prompt

CHECKPOINT_MODES = ("specific", "all")
PROMPT_MODES = ("kept", "removed", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One of the checkpoints of an evaluation.

    **Attributes:**

    - `path`: as the configuration names it.
    - `label`: tells its results from others'.
    - `step`: under which they are kept.
    """

    path: str
    label: str
    step: int


def evaluate(
    *,
    model: Model,
    checkpoint_path: str | Sequence[str],
    checkpoint_mode: str = "specific",
    prompt_path: str | None = None,
    adapter_path: str | Sequence[str] | None = None,
    prompt_mode: str | None = None,
    questions: EvalConfig,
    output_dir: str,
    partitioner: Partitioner,
    frozen_dtype: str = "float32",
) -> dict[str, list[TaskResult]]:
    """Evaluate checkpoints on tasks; `promot-t5x eval` calls this.

    What an earlier launch has answered is not asked again.

    **Arguments:**

    - `model`: the network with its vocabulary; without a prompt table it takes the file's.
    - `checkpoint_path`: one or several pretrained or trained checkpoints, of any format; a prompt
      in one is left behind.
    - `checkpoint_mode`: `specific`, or `all` for every checkpoint in those directories.
    - `prompt_path`: a prompt file to attach, or none to ask without one.
    - `adapter_path`: an adapter to attach, or several, of stages or of peft; none has none.
    - `prompt_mode`: whether the prompt and the adapters are `kept` (the default), `removed`, or
      `both`.
    - `questions`: the tasks, and how answers are decoded.
    - `partitioner`: the mesh.
    - `frozen_dtype`: storage of the weights, as `stages.Stage` has it.
    - `output_dir`: gets `config.gin` and `inference_eval/`; where there are several checkpoints or
      both modes, a directory for each with its own `inference_eval/`.

    **Returns:** the results by the names of those directories.

    **Raises:** `UserError` for bad input, before anything is written.
    """
    preflight.evaluate(
        model=model,
        checkpoint_path=checkpoint_path,
        questions=questions,
        output_dir=output_dir,
        prompt_path=prompt_path,
        adapter_path=adapter_path,
        frozen_dtype=frozen_dtype,
    )
    directory = user_path(output_dir, "EVAL_OUTPUT_DIR")
    model = with_prompt_table(model, prompt_path)
    adapters = adapter_paths(adapter_path)
    modes = _prompt_modes(bool(prompt_path or adapters), prompt_mode)
    paths = [checkpoint_path] if isinstance(checkpoint_path, str) else list(checkpoint_path)
    checkpoints = find_checkpoints(paths, checkpoint_mode)
    models = {mode: model if mode == "kept" else model.without_prompt() for mode in modes}
    weights = Weights(models.get("kept", models[modes[0]]))
    for checkpoint in checkpoints:
        weights.check(checkpoint.path, {}, "base")
    weights.check(prompt_path, {}, "prompt")
    for adapter in adapters:
        weights.check(adapter, {}, "adapter")
    # One prompt precedes whatever is asked behind it; several belong to a task each.
    index = 0 if models[modes[0]].prompt_shape[0] == 1 else None
    evaluators = {
        mode: Evaluator(models[mode], questions, partitioner, index if mode == "kept" else None)
        for mode in modes
    }
    run_directory.claim(directory, config.resolved_str(), macro="EVAL_OUTPUT_DIR")

    found = {}
    what = "prompt" if prompt_path else "adapter"
    with compiled_programs.kept(directory):
        for checkpoint, mode in itertools.product(checkpoints, modes):
            name = "_".join(
                [checkpoint.label] * (len(checkpoints) > 1) + [f"{what}_{mode}"] * (len(modes) > 1)
            )
            attached = (prompt_path, adapters) if mode == "kept" else (None, ())
            place = directory / name
            params, run = load(
                weights, checkpoint, *attached, place, models[mode], partitioner, frozen_dtype
            )
            with partitioner.activate():
                found[name] = evaluators[mode].run(params, f"[{name or 'evaluate'}]", run)
            del params
            if processes.is_primary():
                for result in found[name]:
                    print(_line(name, result), flush=True)
    return found


def with_prompt_table(model: Model, prompt_path: str | None) -> Model:
    """Return the model with a table for the prompts of a file, where it has none of its own.

    **Raises:** `UserError` where the file holds no prompts.
    """
    if prompt_path is None or model.config.num_virtual_ids:
        return model
    prompts, length, _ = prompt_file.load_prompt(prompt_path)[0].shape
    return model.with_prompts(prompts, length)


def load(
    weights: Weights,
    checkpoint: Checkpoint,
    prompt_path: str | None,
    adapters: Sequence[str],
    directory: epath.Path,
    model: Model,
    partitioner: Partitioner,
    frozen_dtype: str,
) -> tuple[Tree, EvalRun]:
    """Read a checkpoint onto the mesh, with adapters in its kernels and a prompt if there are any.

    **Returns:** the parameters, and what identifies an evaluation with them in `directory`.
    """
    plain = model.without_prompt()
    wanted = laid_out(plain.param_shapes(), plain.param_axes(), partitioner, frozen_dtype)
    loaded = weights.read(checkpoint.path, flatten(wanted), seed=0)
    for adapter in adapters:
        loaded = weights.with_adapter(loaded, adapter)
    params, prompt_origin = unflatten(loaded.arrays), None
    if prompt_path:
        table, prompt_origin = weights.prompt(prompt_path, seed=0, base=checkpoint.path)
        placed = partitioner.place(table, partitioner.sharding(PROMPT_AXES))
        params = with_prompt(params, placed)
    run = eval_run(
        directory,
        checkpoint.step,
        params,
        path=checkpoint.path,
        origin=loaded.origin,
        prompt_origin=prompt_origin,
        selection_split=_selection_split(checkpoint),
    )
    return params, run


def _selection_split(checkpoint: Checkpoint) -> Mapping[str, str]:
    """By task, the split on which a finished stage chose this checkpoint; nothing of others."""
    path = absolute(checkpoint.path)
    for directory in (path, path.parent):
        result = StageResult.read(directory) if directory.is_dir() else None
        if result is not None and result.step == checkpoint.step:
            return result.selection_split
    return {}


def find_checkpoints(paths: Sequence[str], mode: str) -> list[Checkpoint]:
    """Return the checkpoints that paths name, each with a label of its own.

    **Raises:** `UserError` for a mode that there is not, for `all` of a directory without
    checkpoints, and for a checkpoint that is named twice.
    """
    if mode not in CHECKPOINT_MODES:
        raise UserError(
            f"CHECKPOINT_MODE = {mode!r} must be one of {', '.join(CHECKPOINT_MODES)}."
            f"{did_you_mean(mode, CHECKPOINT_MODES)}"
        )
    if not paths:
        raise UserError("CHECKPOINT_PATH = [] names no checkpoint.")
    found = list(paths) if mode == "specific" else [p for path in paths for p in _all_in(path)]
    if twice := sorted({path for path in found if found.count(path) > 1}):
        raise UserError(f"CHECKPOINT_PATH names {twice[0]} twice.")
    labels = _labels(found)
    return [
        Checkpoint(path=path, label=label, step=_step_of(path))
        for path, label in zip(found, labels, strict=True)
    ]


def _all_in(path: str) -> Iterator[str]:
    """Yield the paths of a directory's checkpoints, ours or T5X's, by their steps."""
    directory = absolute(path)
    steps = complete_steps(directory) or numbered_steps(directory)
    if not steps:
        raise UserError(
            f"CHECKPOINT_MODE = 'all', but {path} holds no {CHECKPOINT_PREFIX}<step>. Name the "
            "directory of a stage, or one checkpoint with CHECKPOINT_MODE = 'specific'."
        )
    for step in steps:
        yield str(epath.Path(path) / f"{CHECKPOINT_PREFIX}{step}")


def _labels(paths: Sequence[str]) -> list[str]:
    """Return the shortest ends of paths that tell them apart, as names of directories."""
    parts = [[re.sub(r"[^\w.-]+", "_", part) for part in path.split("/") if part] for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["_".join(part[-count:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{number}_{label}" for number, label in enumerate(labels)]


def _step_of(path: str) -> int:
    """Return the step of a checkpoint; of a stage's directory, that of its newest one; else 0."""
    if (step := step_of(path.rstrip("/").rpartition("/")[2])) is not None:
        return step
    directory = absolute(path)
    steps = complete_steps(directory) if directory.is_dir() else []
    return steps[-1] if steps else 0


def _prompt_modes(attached: bool, mode: str | None) -> list[str]:
    if mode not in (None, *PROMPT_MODES):
        raise UserError(
            f"PROMPT_MODE = {mode!r} must be one of {', '.join(PROMPT_MODES)}."
            f"{did_you_mean(str(mode), PROMPT_MODES)}"
        )
    if not attached and mode in ("kept", "both"):
        raise UserError(
            f"PROMPT_MODE = {mode!r} needs a prompt or an adapter: set PROMPT_FILE or ADAPTER_FILE."
        )
    if not attached:
        return ["removed"]
    return ["kept", "removed"] if mode == "both" else [mode or "kept"]


def _line(name: str, result: TaskResult) -> str:
    scores = "  ".join(f"{k} {report.number(v)}" for k, v in result.metrics.items())
    start = f"{name}  " if name else ""
    return f"{start}{result.task}  {scores}  ({len(result.records)} examples)"
