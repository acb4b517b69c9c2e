"""What a run refuses before it looks for devices, weights or data: `--dry_run` refuses the same.

A function for each command that gin configures, with the arguments of the command's own function
but the partitioner. The command's function calls it first. Paths are read as `paths.user_path`
reads them; whether something is there, and may be written, only a start can say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.checkpoints.finding import check_reference
from promot_t5x.config import validation
from promot_t5x.data import sources
from promot_t5x.errors import UserError
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.models.model import Model
from promot_t5x.network.quantization import STORAGE
from promot_t5x.paths import user_path
from promot_t5x.runs.loggers import check as check_loggers
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.weights import Weights, adapter_paths


def train(*, model: Model, stage: Stage, model_dir: str, loggers: Any = ()) -> None:
    """Raise `UserError` for values that `train` does not take."""
    check_loggers(loggers)
    user_path(model_dir, "MODEL_DIR")
    _check_stage(model, stage, {})
    if stage.suite and not stage.suite_period:
        raise UserError(
            "SUITE names tasks to evaluate while the stage trains, but not how often: set "
            "SUITE_EVAL_PERIOD, in steps."
        )


def promot(
    *,
    model: Model,
    stages: Sequence[Stage],
    comparison: Any,
    model_dir: str,
    seeds: Sequence[int] | None = None,
    loggers: Any = (),
) -> None:
    """Raise `UserError` for values that `promot` does not take."""
    check_loggers(loggers)
    user_path(model_dir, "MODEL_DIR")
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise UserError(f"Two stages share a name: {names}.")
    _check_seeds(seeds)
    for index, stage in enumerate(stages):
        _check_stage(model, stage, {s.name: s for s in stages[:index]})
    for questions in (*comparison.targets, comparison.suite):
        _check_questions(questions)


def evaluate(
    *,
    model: Model,
    checkpoint_path: str | Sequence[str],
    questions: EvalConfig,
    output_dir: str,
    prompt_path: str | None = None,
    adapter_path: str | Sequence[str] | None = None,
    frozen_dtype: str = "float32",
    **modes: Any,
) -> None:
    """Raise `UserError` for values that `eval` does not take."""
    del model, modes  # the one checks itself as it is made; the others are checked with the files
    user_path(output_dir, "EVAL_OUTPUT_DIR")
    several = isinstance(checkpoint_path, (list, tuple))
    for path in checkpoint_path if several else [checkpoint_path]:
        check_reference(path, "CHECKPOINT_PATH")
    if prompt_path is not None:
        user_path(prompt_path, "PROMPT_FILE")
    _check_adapters(adapter_path)
    validation.check_choice("FROZEN_DTYPE", frozen_dtype, STORAGE)
    _check_questions(questions)


def infer(
    *,
    model: Model,
    checkpoint_path: str,
    questions: Any,
    output_dir: str | None,
    prompt_path: str | None = None,
    adapter_path: str | Sequence[str] | None = None,
    frozen_dtype: str = "float32",
) -> None:
    """Raise `UserError` for values that `infer` does not take."""
    del model
    check_reference(checkpoint_path, "CHECKPOINT_PATH")
    if prompt_path is not None:
        user_path(prompt_path, "PROMPT_FILE")
    _check_adapters(adapter_path)
    validation.check_choice("FROZEN_DTYPE", frozen_dtype, STORAGE)
    if output_dir is not None:
        user_path(output_dir, "INFER_OUTPUT_DIR")
    if questions.input_file != "-":
        user_path(questions.input_file, "INPUT_FILE")


def _check_stage(model: Model, stage: Stage, earlier: Mapping[str, Stage]) -> None:
    """Refuse a stage's values; `earlier` are the stages that run before it, by name."""
    where = f"stage {stage.name!r}: "
    if stage.base is not None and stage.base not in earlier:
        check_reference(stage.base, f"{where}INITIAL_CHECKPOINT_PATH")
    if isinstance(stage.prompt, str) and stage.prompt not in earlier:
        user_path(stage.prompt, f"{where}PROMPT_FILE")
    by_path = isinstance(stage.adapter, str) and stage.adapter not in earlier
    if by_path:
        user_path(stage.adapter, f"{where}ADAPTER_FILE")
    data = stage.train_dataset
    sources.check_names([data.mixture_or_task_name], data.module)
    for questions in (stage.evaluation, stage.suite):
        _check_questions(questions)
    if not by_path:  # whose kernels its file names; the stage looks at them before it begins
        stage.check_model(Weights(model, earlier).model_of(stage))


def _check_adapters(given: str | Sequence[str] | None) -> None:
    for path in adapter_paths(given):
        user_path(path, "ADAPTER_FILE")


def _check_questions(questions: EvalConfig | None) -> None:
    if questions is not None:
        sources.check_names(questions.names, questions.module)


def _check_seeds(seeds: Sequence[int] | None) -> None:
    """Raise `UserError` unless `seeds` are different whole numbers that JAX's generators take."""
    if seeds is None:
        return
    listed = isinstance(seeds, (list, tuple))
    if not seeds or not listed or not all(map(validation.is_seed, seeds)):
        raise UserError(
            f"SEEDS = {seeds!r}: give whole numbers from 0 to 2**31 - 1, as in [0, 1, 2]."
        )
    if len(set(seeds)) < len(seeds):
        raise UserError(f"SEEDS = {seeds!r} names a seed twice.")
