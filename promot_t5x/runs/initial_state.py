"""The state that a stage starts or resumes training from, and what its checkpoints say of it.

What trains comes from the stage's newest valid checkpoint, if there is one; then only what is
frozen is read from the pretrained checkpoint. A run that could not continue as the one that was
saved is refused.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from promot_t5x import config, versions
from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.adapters import ADAPTER_KEY
from promot_t5x.checkpoints.restoring import Restored
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.data.batches import Batches
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.network import quantization
from promot_t5x.network.lora import adapters_of
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.runs.program import StageProgram
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.weights import Loaded, Weights
from promot_t5x.training import state

_SAME = ("rng", "data", "position")  # parts of a checkpoint's metadata that decide what follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialState:
    """A stage's state before its next step, and where every part of it came from.

    **Attributes:**

    - `train_state`: on the mesh.
    - `origins`: a line for each source of parameters.
    - `restored`: the checkpoint of this stage that it continues from; None for a new stage.
    """

    train_state: state.TrainState
    origins: list[str]
    restored: Restored | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunMetadata:
    """What every checkpoint of a stage says of its run.

    **Attributes:**

    - `constant`: configuration, origins, seeds, data, and the content hash of what is frozen.
    - `base_hash`: the content hash of the model, where nothing of it trains.
    """

    constant: Mapping[str, Any]
    base_hash: str | None

    def at(self, step: int, data: Batches) -> dict[str, Any]:
        """Return the metadata of a step's checkpoint."""
        return {**self.constant, "position": position(data, step)}


def initial_state(
    stage: Stage,
    program: StageProgram,
    saver: Checkpoints,
    weights: Weights,
    partitioner: Partitioner,
    data: Batches,
    report: Callable[[str], None],
) -> tuple[state.TrainState, RunMetadata]:
    """Return the state that training continues from, and the metadata of its checkpoints.

    **Arguments:**

    - `saver`: the stage's own checkpoints.
    - `weights`: finds the pretrained checkpoint and the prompt.
    - `report`: prints a line.

    **Raises:** `UserError` where checkpoint, pretrained weights and data do not belong together.
    """
    found = restore_or_initialize(stage, program, saver, weights, partitioner)
    for line in describe(found, stage, saver):
        report(line)
    metadata = run_metadata(stage, program, found, data)
    if found.restored is not None:
        check_resumable(stage, found.restored, metadata.at(found.restored.step, data))
        for line in warnings(found.restored):
            report(f"warning: {line}")
        report(f"resumes after step {found.restored.step} of {saver.directory}")
    return found.train_state, metadata


def restore_or_initialize(
    stage: Stage,
    program: StageProgram,
    saver: Checkpoints,
    weights: Weights,
    partitioner: Partitioner,
) -> InitialState:
    """Read what the stage needs: its newest checkpoint and what is frozen, or all weights."""
    like = program.state_shapes()
    restored = saver.restore(trainable=like.trainable, opt_state=like.opt_state)
    needed = like.params if restored is None else state.merge(like.base, like.frozen)
    loaded = _load(stage, weights, partitioner, state.flatten(needed))
    params = state.unflatten(loaded.arrays)
    if restored is None:
        fresh = program.create_state(params, random_seed=stage.random_seed)
        return InitialState(train_state=fresh, origins=loaded.summary(), restored=None)
    base, frozen = state.split(params, stage.trainable) if like.base else ({}, params)
    step, seed = np.int32(restored.step), np.int32(stage.random_seed)
    train_state = state.TrainState(
        step=partitioner.place(step, partitioner.replicated),
        seed=partitioner.place(seed, partitioner.replicated),
        trainable=restored.trainable,
        frozen=frozen,
        opt_state=restored.opt_state,
        base=base,
    )
    return InitialState(train_state=train_state, origins=loaded.summary(), restored=restored)


def describe(found: InitialState, stage: Stage, saver: Checkpoints) -> list[str]:
    """Return the lines that say where every parameter came from, and how many train."""
    lines = list(found.origins)
    trainable, frozen = found.train_state.trainable, found.train_state.frozen
    if found.restored is None:
        lines.append(f"optimizer's state from scratch, counting from {stage.optimizer_step}")
    else:
        lines.append(
            f"{len(jax.tree.leaves(trainable))} arrays, {state.count(trainable):,} parameters and "
            f"the optimizer's state from this run: step {found.restored.step} of {saver.directory}"
        )
    rest = {p: a for p, a in state.flatten(frozen).items() if not quantization.is_scale(p)}
    lines.append(f"{state.count(trainable):,} parameters train, {state.count(rest):,} are frozen")
    return lines


def run_metadata(
    stage: Stage, program: StageProgram, found: InitialState, data: Batches
) -> RunMetadata:
    """Return what the stage's checkpoints say of the run."""
    base, frozen = found.train_state.base, found.train_state.frozen
    frozen_hash = hashing.content_hash(state.merge(base, frozen))
    origins = found.origins if found.restored is None else found.restored.metadata["origins"]
    constant = {
        "config": config.resolved_str(),
        "base_path": stage.base,
        "prompt_path": None if stage.prompt is None else str(stage.prompt),
        "frozen_hash": frozen_hash,
        "origins": origins,
        "rng": {
            "random_seed": stage.random_seed,
            "default_prng_impl": jax.config.values["jax_default_prng_impl"],
            "threefry_partitionable": jax.config.values["jax_threefry_partitionable"],
        },
        "data": {
            "seed": stage.train_dataset.seed,
            "batch_size": stage.train_dataset.batch_size,
            "pack": stage.train_dataset.pack,
            "shuffle": stage.train_dataset.shuffle,
            "examples": data.contents,
        },
    }
    if (lora := program.model.config.lora) is not None:
        constant |= {ADAPTER_KEY: dataclasses.asdict(lora), "adapter_path": str(stage.adapter)}
    base_hash = None
    if state.flatten(found.train_state.trainable).keys() <= {PROMPT_PATH}:
        base_hash = hashing.content_hash(frozen) if base else frozen_hash
    return RunMetadata(constant=constant, base_hash=base_hash)


def position(data: Batches, step: int) -> dict[str, Any]:
    """Return where the data stand after a step: the next batch is a function of its number."""
    content = json.dumps(hashing.digests(data.content(step)), sort_keys=True)
    return {"next_batch": step, "content_hash": hashing.hex_digest(content.encode())}


def check_resumable(stage: Stage, restored: Restored, now: Mapping[str, Any]) -> None:
    """Refuse to resume where the continuation would not be that of the run that was saved.

    **Arguments:**

    - `now`: the metadata that a checkpoint of the restored step would have now.
    """
    saved, step = restored.metadata, restored.step
    if saved["frozen_hash"] != now["frozen_hash"]:
        raise UserError(
            f"Step {step} was trained behind other frozen weights than those that {stage.base!r} "
            f"and {stage.prompt!r} now hold; give this run a MODEL_DIR of its own."
        )
    for part in _SAME:
        changes = [
            f"{name}: was {saved[part].get(name)}, now {value}"
            for name, value in now[part].items()
            if saved[part].get(name) != value
        ]
        if changes:
            raise UserError(
                f"The run that saved step {step} cannot go on as it was, because its {part} "
                f"changed: {'; '.join(changes)}. Put that back, or give this run a MODEL_DIR of "
                "its own."
            )


def warnings(restored: Restored) -> list[str]:
    """Return what may make the continuation differ from a run that was never stopped."""
    now, was = versions.installed(), restored.versions
    changed = [
        f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name]
    ]
    if not changed:
        return list(restored.warnings)
    return [
        *restored.warnings,
        f"other versions than before, last digits may differ: {', '.join(changed)}",
    ]


def _load(
    stage: Stage,
    weights: Weights,
    partitioner: Partitioner,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> Loaded:
    """Read parameters from where the stage says that they come from; each process its shards."""
    adapters = adapters_of(wanted)
    model = {p: leaf for p, leaf in wanted.items() if p != PROMPT_PATH and p not in adapters}
    loaded = weights.read(stage.base, model, seed=stage.random_seed)
    arrays, origins = dict(loaded.arrays), dict(loaded.origins)
    if (leaf := wanted.get(PROMPT_PATH)) is not None:
        table, origin = weights.prompt(stage.prompt, seed=stage.random_seed, base=stage.base)
        arrays[PROMPT_PATH] = partitioner.place(table.astype(leaf.dtype), leaf.sharding)
        origins[PROMPT_PATH] = origin
    if adapters:
        assert stage.adapter is not None  # or the model would have none
        parts, origin = weights.adapter(stage.adapter, adapters, seed=stage.random_seed)
        for path, leaf in adapters.items():
            part = parts[path]
            cast = part if part.dtype == leaf.dtype else part.astype(leaf.dtype)
            arrays[path] = partitioner.place(cast, leaf.format)
            origins[path] = origin
    return Loaded(arrays=arrays, origins=origins)
