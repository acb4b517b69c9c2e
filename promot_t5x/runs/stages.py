"""A stage is data: what trains, from which weights, with which prompt, on which examples.

ProMoT's two stages, standard fine-tuning, prompt tuning, joint tuning, a fixed random prompt and
LoRA differ only in the values of a `Stage`:

| stage                | trainable | prompt         | adapter       |
|----------------------|-----------|----------------|---------------|
| ProMoT stage one     | `prompt`  | an initializer | none          |
| ProMoT stage two     | `model`   | `'stage_one'`  | none          |
| standard fine-tuning | `all`     | none           | none          |
| joint tuning         | `all`     | an initializer | none          |
| fixed random prompt  | `model`   | an initializer | none          |
| LoRA                 | `adapter` | none           | `LoRA()`      |
| stage two behind it  | `model`   | none           | `'stage_one'` |
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import optax

from promot_t5x.checkpoints.steps import TIES
from promot_t5x.config import validation
from promot_t5x.data import batches
from promot_t5x.errors import UserError
from promot_t5x.evaluation.eval_config import EvalConfig
from promot_t5x.models.model import Model
from promot_t5x.models.objectives import Objective
from promot_t5x.network.lora import LoRA, adapters_of
from promot_t5x.network.quantization import STORAGE, is_quantized
from promot_t5x.training import adafactor, state
from promot_t5x.training.alignment import AlignmentConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Training data, under T5X's names.

    **Attributes:**

    - `mixture_or_task_name`: a registered task or mixture.
    - `task_feature_lengths`: tokens a row of `inputs` (prompt included) and of `targets` holds.
    - `split`: the tasks' split to train on.
    - `batch_size`: examples of a global batch; with `pack` True rows, which hold several each.
    - `shuffle`: draw every epoch in an order of its own, by `seed`.
    - `seed`: of the order and of the demonstrations, which each example has others of each epoch.
    - `pack`: False puts one example into a row. `'batch'` puts the same examples into as few rows
      as they need: a step's loss and gradients are those of False, dropout's masks apart. True
      fills every row with as many examples as fit: more of them a step.
    - `module`: a Python module (dotted name or file) that registers the user's own tasks.
    - `rates`: rates of a mixture's tasks by name, in place of its own for those that are named.
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    split: str = "train"
    batch_size: int
    shuffle: bool = True
    seed: int = 0
    pack: batches.Packing = False
    module: str | None = None
    rates: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        validation.check_feature_lengths(self.task_feature_lengths)
        validation.check_positive("BATCH_SIZE", self.batch_size)
        validation.check_seed("RANDOM_SEED", self.seed)
        if self.pack not in (False, True, "batch"):
            raise UserError(f"PACK must be False, True or 'batch', got {self.pack!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run.

    **Attributes:**

    - `name`: the stage's directory within a run of several stages, and what later ones call it.
    - `trainable`: what trains: `prompt`, `adapter`, `model` (all but these two), `all`, or regular
      expressions over whole parameter paths; what matches none is frozen.
    - `base`: the weights to start from: a checkpoint's path, the name of an earlier stage, or
      none for random ones. A prompt in it is left behind; an adapter that the stage trained is
      merged into its kernels.
    - `prompt`: an initializer of `prompt_init` for a new prompt, the name of an earlier stage or
      a file for a trained one, or none to train without.
    - `adapter`: `lora.LoRA` for new adapters, the name of an earlier stage or a path (a stage's
      directory, a checkpoint, an adapter of peft) for trained ones, or none to train without.
    - `train_dataset`: see `DatasetConfig`.
    - `evaluation`: how the target's validation score is taken, which chooses the best checkpoint;
      none keeps the last one.
    - `best_ties`: of equally good checkpoints, the one with the least teacher-forced validation
      `loss` is the best, or the `earliest`, or the `latest`.
    - `suite`, `suite_period`: tasks that the model is asked, before the first step, every so many
      steps and after the last: what it can still do in context. It is asked without its prompt,
      and without adapters that do not train. Without a period they are not asked while the stage
      trains.
    - `alignment`: measure gradient alignment at step 0, with every validation score, and at the
      steps that it names.
    - `drift`: measure how far the model, as the suite is asked of it, has gone from what it was, at
      step 0 and with every validation score; needs an `evaluation`.
    - `train_steps`: updates of this stage, whatever came before it.
    - `optimizer`: called as `optimizer(learning_rate=schedule)`; any optax optimizer fits.
    - `learning_rate`: schedule from the stage's own step to a rate.
    - `objective`: what is minimized in place of plain cross-entropy, see `objectives`.
    - `dropout_rate`, `label_smoothing`: of this stage; none takes the model's.
    - `microbatches`: parts that a batch is taken in.
    - `skip_non_finite_steps`: how many steps in a row may be left out because a loss, gradient or
      parameter is not finite; the next one ends the run. 0 ends it at the first one, and needs
      no room for old and new parameters at the same time.
    - `frozen_dtype`: storage of the frozen weights: `float32`, `bfloat16`, or `int8`, which holds
      kernels and embeddings so and the rest in float32 (`network.quantization`).
    - `eval_period`: steps between validation scores, each followed by a checkpoint.
    - `keep`: newest checkpoints kept besides the best; none keeps all.
    - `keep_period`: steps that it divides keep their checkpoints too. (So does a checkpoint with a
      file `PINNED` in its directory.)
    - `best_metric`, `best_mode`: what the best checkpoint is best in, `score` (the mean of the
      tasks' primary metrics) or `<task>/<metric>`, and whether `max` or `min` is best. Later
      stages and rows take the stage's best.
    - `optimizer_step`: the count that the optimizer's state, which is always fresh, and the
      schedule begin at. T5X counts on from the base's step: with 1_100_000 here, and Adafactor's
      `step_offset` at 0, prompts train in the regime of prompt-tuning's recipe, every update
      clipped (see `adafactor`, "Starting late"); with both at 1_100_000, or both at 0, in the
      usual one.
    - `random_seed`: seeds dropout, new parameters and new prompts.
    """

    name: str = "train"
    trainable: Sequence[str]
    base: str | None
    prompt: Any = None
    adapter: LoRA | str | None = None
    train_dataset: DatasetConfig
    evaluation: EvalConfig | None = None
    best_ties: str = "loss"
    suite: EvalConfig | None = None
    suite_period: int | None = None
    alignment: AlignmentConfig | None = None
    drift: bool = False
    train_steps: int
    optimizer: Callable[..., optax.GradientTransformation] = adafactor.adafactor
    learning_rate: Callable[[Any], Any]
    objective: Objective | None = None
    dropout_rate: float | None = None
    label_smoothing: float | None = None
    microbatches: int = 1
    skip_non_finite_steps: int = 0
    frozen_dtype: str = "float32"
    eval_period: int
    keep: int | None = 1
    keep_period: int | None = None
    best_metric: str = "score"
    best_mode: Literal["max", "min"] = "max"
    optimizer_step: int = 0
    random_seed: int = 0

    @property
    def keeps_base(self) -> bool:
        """Whether what trains is kept as it was at the stage's beginning, beside what it is."""
        return self.drift or (self.objective is not None and self.objective.needs_base)

    def in_context(self, model: Model) -> Model:
        """Return the stage's model as the suite is asked of it.

        It has no prompt, and adapters only where they train.
        """
        plain = model.without_prompt()
        return plain if self.trains_adapter(model) else plain.with_lora(None)

    def trains_adapter(self, model: Model) -> bool:
        """Whether adapters train, given the stage's model."""
        adapters = adapters_of(state.flatten(model.param_shapes()))
        return bool(state.trained_paths(adapters, self.trainable))

    def with_seed(self, seed: int) -> "Stage":
        """Return the stage with another seed of dropout, of what is new and of the data."""
        data = dataclasses.replace(self.train_dataset, seed=seed)
        return dataclasses.replace(self, random_seed=seed, train_dataset=data)

    def check_model(self, model: Model) -> None:
        """Raise `UserError` where a model has not what the stage trains, or what it freezes.

        **Arguments:**

        - `model`: with the stage's prompt and adapters.
        """
        _, frozen = state.split(model.param_shapes(), self.trainable)
        if self.frozen_dtype == "int8" and not any(map(is_quantized, state.flatten(frozen))):
            raise UserError(
                f"stage {self.name!r}: frozen_dtype = 'int8' holds frozen kernels and embeddings "
                f"in int8, and none is frozen where {list(self.trainable)} trains: leave it at "
                "'float32'."
            )

    def __post_init__(self) -> None:
        for field in ("train_steps", "eval_period", "microbatches", "keep", "keep_period"):
            if (value := getattr(self, field)) is not None or field not in ("keep", "keep_period"):
                validation.check_positive(f"stage {self.name!r}: {field}", value)
        validation.check_seed(f"stage {self.name!r}: RANDOM_SEED", self.random_seed)
        if isinstance(self.trainable, str) or not all(isinstance(p, str) for p in self.trainable):
            raise UserError(
                f"stage {self.name!r}: trainable = {self.trainable!r} must be a list of patterns, "
                "as in ['encoder/.*']."
            )
        if not isinstance(self.adapter, LoRA | str | None):
            raise UserError(
                f"stage {self.name!r}: adapter = {self.adapter!r} must be @lora.LoRA(), an earlier "
                "stage, a path, or None."
            )
        if self.best_mode not in ("max", "min"):
            raise UserError(
                f"stage {self.name!r}: best_mode must be 'max' or 'min', got {self.best_mode!r}."
            )
        for field in ("optimizer_step", "skip_non_finite_steps"):
            if (value := getattr(self, field)) < 0:
                raise UserError(f"stage {self.name!r}: {field} must not be negative, got {value}.")
        for field in ("dropout_rate", "label_smoothing"):
            if (value := getattr(self, field)) is not None and not 0.0 <= value < 1.0:
                raise UserError(
                    f"stage {self.name!r}: {field} = {value} must be in [0, 1), or None for the "
                    "model's."
                )
        if self.suite_period is not None:
            validation.check_positive(f"stage {self.name!r}: suite_period", self.suite_period)
            if self.suite is None:
                raise UserError(
                    f"stage {self.name!r}: SUITE_EVAL_PERIOD = {self.suite_period}, but there is "
                    "no SUITE to evaluate; add one, as in --gin_file=suites/icl_1shot.gin."
                )
        if self.drift and self.evaluation is None:
            raise UserError(
                f"stage {self.name!r}: drift is measured on the examples of its evaluation, and it "
                "has none; bind stages.Stage.evaluation, or leave drift out."
            )
        for field, choices in (("frozen_dtype", STORAGE), ("best_ties", TIES)):
            validation.check_choice(f"stage {self.name!r}: {field}", getattr(self, field), choices)
        if self.alignment is not None and self.frozen_dtype == "int8":
            raise UserError(
                f"stage {self.name!r}: gradient alignment takes the gradients of all kernels, and "
                "frozen_dtype = 'int8' has none: choose 'float32' or 'bfloat16', or leave "
                "stages.Stage.alignment out."
            )
        if self.train_dataset.batch_size % self.microbatches:
            raise UserError(
                f"stage {self.name!r}: microbatches = {self.microbatches} does not divide "
                f"batch_size = {self.train_dataset.batch_size}."
            )
