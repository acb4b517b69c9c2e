"""The configured run, read from its gin files, as the programs that it will compile.

Planning has neither weights nor data nor a vocabulary: what a run only reads them for gets a
stand-in, and arrays are shapes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax

from promot_t5x import config
from promot_t5x.config import validation
from promot_t5x.data import sources
from promot_t5x.data.batch_rows import Shape
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.evaluation.answering import shared_decoder
from promot_t5x.evaluation.evaluator import EvalConfig
from promot_t5x.models.model import Model
from promot_t5x.network.quantization import STORAGE
from promot_t5x.planning import flops
from promot_t5x.runs import eval, promot, train
from promot_t5x.runs.program import StageProgram
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.weights import Weights
from promot_t5x.tasks import registry
from promot_t5x.training.state import laid_out, only

ROOTS = (promot.promot, train.train, eval.evaluate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyVocabulary:
    """Stands where a vocabulary would: no text is read."""

    vocab_size: int = 0
    pad_id: int = 0
    eos_id: int = 1
    bos_id: int = 2


# Macros of what a plan has no use for, and what they are instead.
STAND_INS = {
    "MODEL_DIR": "''",
    "INITIAL_CHECKPOINT_PATH": "None",
    "CHECKPOINT_PATH": "None",
    "EVAL_OUTPUT_DIR": "''",
    "VOCABULARY": "@AnyVocabulary()",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Questions that the run asks, with what some stage has in memory.

    `stage` is the one that asks them while it trains; none asks with weights alone, held in
    `dtype`, into which adapters are merged. `attached` is with prompt and adapters as the stage
    trains, or with the prompt; otherwise the questions are the suite's.
    """

    name: str
    questions: EvalConfig
    attached: bool
    stage: Stage | None = None
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A configured run. `text` is its configuration, resolved; `macros` are the names in it.

    `packed` is the shape of the batches of stages with `PACK = 'batch'`: their largest if None.
    """

    model: Model
    stages: Sequence[Stage]
    asked: Sequence[Asked]
    partitioner: Partitioner
    text: str
    macros: frozenset[str]
    packed: Shape | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """One program of a run on a mesh.

    **Attributes:**

    - `name`: the stage's, or what is asked.
    - `parameter_bytes`, `optimizer_bytes`: held by each chip.
    - `waiting_bytes`: held by each chip while the program runs, without being an argument of it.
    - `flops`: see `planning.flops`.
    - `steps`: how often the run is configured to run it; none where that depends on the data.
    - `lower`: lowers it for the mesh's devices.
    """

    name: str
    parameter_bytes: int
    optimizer_bytes: int
    waiting_bytes: int = 0
    flops: flops.Flops
    steps: int | None
    lower: Callable[[], jax.stages.Lowered]


def read(
    files: Sequence[str],
    bindings: Sequence[str],
    search_paths: Sequence[str],
    packed: Shape | None = None,
) -> Run:
    """Read a run's gin files as its command would. **Raises** `UserError` as the command would."""
    config.configured(AnyVocabulary)
    for root in ROOTS:
        config.configured(root)
    config.parse(files, bindings, search_paths, stand_ins=STAND_INS)
    bound = [root for root in ROOTS if gin.get_bindings(root, resolve_references=False)]
    if len(bound) != 1:
        names = ", ".join(f"{root.__module__.split('.')[-1]}.{root.__name__}" for root in ROOTS)
        raise UserError(
            f"the configuration binds {len(bound)} of {names}: give the model's and the run's "
            "files of one run, as for its own command."
        )
    config.check(bound)
    given: Any = gin.get_bindings(bound[0])
    if bound[0] is train.train:
        stages, asked = [given["stage"]], []
    elif bound[0] is promot.promot:
        stages = list(given["stages"])
        asked = _compared(given["comparison"], stages)
    else:
        stages = []
        each = _asked(given["questions"], attached=bool(given.get("prompt_path")))
        dtype = given.get("frozen_dtype", each.dtype)
        validation.check_choice("FROZEN_DTYPE", dtype, STORAGE)
        asked = [dataclasses.replace(each, dtype=dtype)]
    if packed and not any(stage.train_dataset.pack == "batch" for stage in stages):
        raise UserError(
            f"--packed={packed}: no stage of this run packs its batches; leave it out, or set "
            "PACK = 'batch'."
        )
    validated = [
        Asked(
            name=f"{stage.name} validation",
            questions=stage.evaluation,
            attached=True,
            stage=stage,
        )
        for stage in stages
        if stage.evaluation is not None
    ]
    reviewed = [
        Asked(name=f"{stage.name} suite", questions=stage.suite, attached=False, stage=stage)
        for stage in stages
        if stage.suite is not None and stage.suite_period is not None
    ]
    return Run(
        model=given["model"],
        stages=stages,
        asked=[*validated, *reviewed, *asked],
        partitioner=given["partitioner"],
        text=config.resolved_str() + (f"# batches of {packed}\n" if packed else ""),
        packed=packed,
        macros=config.macros(),
    )


def _compared(comparison: promot.Comparison, stages: Sequence[Stage]) -> list[Asked]:
    """List what the comparison asks every model."""
    asked = []
    for index, target in enumerate(comparison.targets):
        names = {name for row in comparison.rows for name in row.attached(index)}
        asked.append(_asked(target, attached=False))
        if any(stage.prompt is not None for stage in stages if stage.name in names):
            asked.append(_asked(target, attached=True))
    if comparison.suite is not None:
        asked.append(_asked(comparison.suite, attached=False))
    return asked


def _asked(questions: EvalConfig, *, attached: bool) -> Asked:
    name = f"ask {questions.name}" + " with prompt" * attached
    return Asked(name=name, questions=questions, attached=attached)


def on_devices(run: Run, devices: Sequence[Any]) -> Partitioner:
    """Make the run's mesh on these devices."""
    return dataclasses.replace(run.partitioner, devices=tuple(devices))


def programs(run: Run, devices: Sequence[Any]) -> list[Program]:
    """Everything that the run compiles on a mesh of these devices; equal programs once.

    Of what it asks, the longest inputs and answers, which need the most.
    """
    partitioner = on_devices(run, devices)
    found = [_training(run, stage, partitioner) for stage in run.stages]
    seen: set[Any] = set()
    for asked in run.asked:
        key, program = _decoding(run, asked, partitioner)
        if key not in seen:
            seen.add(key)
            found.append(program)
    return found


def chosen(found: Sequence[Program], only: Sequence[str]) -> list[Program]:
    """Those of the given names; all if there are none. **Raises** `UserError` for unknown ones."""
    names = [program.name for program in found]
    for name in only:
        if name not in names:
            raise UserError(
                f"--only={name}: the run has no such program; it has {', '.join(names)}."
                f"{did_you_mean(name, names)}"
            )
    return [program for program in found if not only or program.name in only]


def _weights(run: Run) -> Weights:
    return Weights(run.model, {stage.name: stage for stage in run.stages})


def _training(run: Run, stage: Stage, partitioner: Partitioner) -> Program:
    data, model = stage.train_dataset, _weights(run).model_of(stage)
    stage.check_model(model)
    program = StageProgram(model, stage, partitioner)
    shape = (run.packed if data.pack == "batch" else None) or program.whole
    for rows in {shape.rows, program.whole.rows}:
        partitioner.check_batch(rows // stage.microbatches, f"stage {stage.name!r}: a batch")
    shapes = program.state_shapes()
    return Program(
        name=stage.name,
        parameter_bytes=bytes_a_chip((shapes.params, shapes.base)),
        optimizer_bytes=bytes_a_chip(shapes.opt_state),
        flops=flops.training(
            model,
            stage.trainable,
            batch=shape.rows,
            lengths={"inputs": shape.inputs, "targets": shape.targets},
            microbatches=stage.microbatches,
            objective=stage.objective,
        ),
        steps=stage.train_steps,
        lower=functools.partial(program.lower, shape),
    )


def _decoding(run: Run, asked: Asked, partitioner: Partitioner) -> tuple[Any, Program]:
    questions = asked.questions
    inputs, outputs = questions.task_feature_lengths["inputs"], answer_length(questions)
    waiting = 0
    if asked.stage is not None:
        model = _weights(run).model_of(asked.stage)
        state = StageProgram(model, asked.stage, partitioner).state_shapes()
        waiting = bytes_a_chip((state.opt_state, state.base))
        model = model if asked.attached else asked.stage.in_context(model)
        params = only(state.params, model.param_shapes())
    else:
        model = run.model if asked.attached else run.model.without_prompt()
        params = laid_out(model.param_shapes(), model.param_axes(), partitioner, asked.dtype)
    decoder = shared_decoder(
        model.module,
        questions.decoding_method,
        questions.batch_size,
        model.vocabulary.eos_id,
        model.start_id,
        partitioner.sharding(("batch",)),
    )

    def lower() -> jax.stages.Lowered:
        with partitioner.activate():
            return decoder.lower(params, inputs, outputs)

    planned = Program(
        name=asked.name,
        parameter_bytes=bytes_a_chip(params),
        optimizer_bytes=0,
        waiting_bytes=waiting,
        flops=flops.decoding(
            model.config,
            params,
            batch=questions.batch_size,
            inputs=inputs,
            outputs=outputs,
            hypotheses=questions.decoding_method.num_decodes,
        ),
        steps=None,
        lower=lower,
    )
    dtypes = tuple(str(leaf.dtype) for leaf in jax.tree.leaves(params))
    method = questions.decoding_method
    key = (model.config, dtypes, inputs, outputs, questions.batch_size, method, waiting)
    return key, planned


def answer_length(questions: EvalConfig) -> int:
    """Tokens of the longest answer of any of the tasks that are asked."""
    lengths = questions.task_feature_lengths
    if "targets" in lengths:
        return lengths["targets"]
    if questions.module:
        sources.import_task_module(questions.module)
    tasks = [
        task
        for name in questions.names
        for task in (registry.get_mixture(name).rates if registry.is_mixture(name) else [name])
    ]
    known = {task: registry.get_task(task).output_length for task in tasks}
    if measured := [task for task, length in known.items() if length is None]:
        raise UserError(
            f"Task {measured[0]!r} takes the length of its answers from its data, which are not "
            "read here: set TASK_FEATURE_LENGTHS['targets']."
        )
    return max(length for length in known.values() if length is not None)


def bytes_a_chip(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings that lie on each chip."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
