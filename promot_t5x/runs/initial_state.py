"""What a stage begins with, or goes on with: its state, and where each part of it came from.

What trains comes from the stage's newest sound checkpoint, if there is one; then only what is
frozen is read from the base. A run that could not go on as the one that was saved is refused.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from promot_t5x import config, versions
from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.restoring import Restored
from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.data.batches import Batches
from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.runs.program import StageProgram
from promot_t5x.runs.stages import Stage
from promot_t5x.runs.weights import Loaded, Weights
from promot_t5x.training import state

_SAME = ("rng", "data", "position")  # parts of a checkpoint's metadata that decide what follows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What every checkpoint of a run says of it.

    **Attributes:**

    - `base_hash`: the content hash of the model, where nothing of it trains.
    - `told`: configuration, origins, seeds, data, and the content hash of what is frozen.
    """

    base_hash: str | None
    told: Mapping[str, Any]

    def metadata(self, data: Batches, step: int) -> dict[str, Any]:
        """What the checkpoint of a step says."""
        return {**self.told, "position": position(data, step)}


def begin(
    stage: Stage,
    program: StageProgram,
    saver: Checkpoints,
    weights: Weights,
    partitioner: Partitioner,
    data: Batches,
    *,
    say: Callable[[str], None],
) -> tuple[state.TrainState, Identity]:
    """Put together the state that training goes on from, and say where it came from.

    **Raises** `UserError` where the checkpoint, the base and the data do not belong together.
    """
    like = program.state_shapes()
    restored = saver.restore(trainable=like.trainable, opt_state=like.opt_state)
    loaded = _load(
        stage, weights, partitioner, state.flatten(like.frozen if restored else like.params)
    )
    for line in loaded.summary():
        say(line)
    params = state.unflatten(loaded.arrays)
    if restored is None:
        begun = program.create_state(params, random_seed=stage.random_seed)
        say(f"optimiser's state from scratch, counting from {stage.optimizer_step}")
    else:
        step, seed = np.int32(restored.step), np.int32(stage.random_seed)
        begun = state.TrainState(
            step=partitioner.place(step, partitioner.replicated),
            seed=partitioner.place(seed, partitioner.replicated),
            trainable=restored.trainable,
            frozen=params,
            opt_state=restored.opt_state,
        )
        arrays = len(jax.tree.leaves(restored.trainable))
        say(
            f"{arrays} arrays, {state.count(restored.trainable):,} parameters and the optimiser's "
            f"state from this run: step {restored.step} of {saver.directory}"
        )
    trains, rests = state.count(begun.trainable), state.count(begun.frozen)
    say(f"{trains:,} parameters train, {rests:,} are frozen")
    frozen_hash = hashing.content_hash(begun.frozen)
    told = {
        "config": config.resolved_str(),
        "base_path": stage.base,
        "prompt_path": None if stage.prompt is None else str(stage.prompt),
        "frozen_hash": frozen_hash,
        "origins": restored.metadata["origins"] if restored else loaded.summary(),
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
    only_prompt = state.flatten(begun.trainable).keys() <= {PROMPT_PATH}
    identity = Identity(base_hash=frozen_hash if only_prompt else None, told=told)
    if restored is not None:
        _check_same_run(stage, restored, identity.metadata(data, restored.step))
        _warn(restored, say)
        say(f"continues after step {restored.step} of {saver.directory}")
    return begun, identity


def position(data: Batches, step: int) -> dict[str, Any]:
    """Where the data stand after a step: the next batch is a function of its number alone."""
    content = json.dumps(hashing.digests(data.batch(step)), sort_keys=True)
    return {"next_batch": step, "content_hash": hashing.hex_digest(content.encode())}


def _load(
    stage: Stage,
    weights: Weights,
    partitioner: Partitioner,
    wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> Loaded:
    """Parameters from where the stage says that they come from; each process its own shards."""
    model = {path: leaf for path, leaf in wanted.items() if path != PROMPT_PATH}
    loaded = weights.read(stage.base, model, seed=stage.random_seed)
    if (leaf := wanted.get(PROMPT_PATH)) is None:
        return loaded
    table, origin = weights.prompt(stage.prompt, seed=stage.random_seed, base=stage.base)
    placed = partitioner.place(table.astype(leaf.dtype), leaf.sharding)
    return Loaded(
        arrays={**loaded.arrays, PROMPT_PATH: placed},
        origins={**loaded.origins, PROMPT_PATH: origin},
    )


def _check_same_run(stage: Stage, restored: Restored, now: Mapping[str, Any]) -> None:
    """Refuse to go on where the continuation would not be that of the run that was saved."""
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


def _warn(restored: Restored, say: Callable[[str], None]) -> None:
    for warning in restored.warnings:
        say(f"warning: {warning}")
    now, was = versions.installed(), restored.versions
    changed = [
        f"{name} {was.get(name)} -> {now[name]}" for name in now if was.get(name) != now[name]
    ]
    if changed:
        say(f"warning: other versions than before, last digits may differ: {', '.join(changed)}")
