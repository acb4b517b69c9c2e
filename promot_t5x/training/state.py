"""The state of a run: the trainable part of the model, the frozen part, the optimizer's slots.

Gradients, norms and optimizer slots exist for the trainable tree only, so that a frozen model
costs neither weight gradients nor their memory.
"""

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.layout import Format
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.distributed.partitioning import Partitioner
from promot_t5x.errors import UserError
from promot_t5x.network import quantization
from promot_t5x.network.lora import LORA_A, LORA_B
from promot_t5x.network.prompt import PROMPT_PATH

Tree = dict[str, Any]

# What trains, by name; everything else is a pattern.
PARTS = {
    "prompt": r"encoder/prompt/.*",
    "adapter": rf".*/({LORA_A}|{LORA_B})",
    "model": rf"(?!encoder/prompt/)(?!.*/({LORA_A}|{LORA_B})$).*",
    "all": r".*",
}


class TrainState(flax.struct.PyTreeNode):
    """`params` = `trainable` and `frozen` together; `step` counts this run's own updates.

    `base` is `trainable` as the stage began, where something compares with that, and empty
    elsewhere. It is read again where a run goes on, so no checkpoint holds it.

    `step` and `seed` (of dropout) are int32 scalars, and Any because trees of shardings have the
    form of a state too. The seed is an input of the step, so that runs that differ in nothing
    else share one compiled program.
    """

    step: Any
    seed: Any
    trainable: Tree
    frozen: Tree
    opt_state: Any
    base: Tree = flax.struct.field(default_factory=dict)

    @property
    def params(self) -> Tree:
        """All parameters, nested."""
        return merge(self.trainable, self.frozen)


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dict -> {'a/b/c': leaf}."""
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(tree, sep="/")
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """{'a/b/c': leaf} -> nested dict."""
    tree: Tree = flax.traverse_util.unflatten_dict(flat, sep="/")
    return tree


def split(params: Mapping[str, Any], patterns: Sequence[str]) -> tuple[Tree, Tree]:
    """Part a tree into (trainable, frozen).

    **Arguments:**

    - `patterns`: names of `PARTS` or regular expressions; a parameter trains if one of them matches
      the whole of its path, such as `encoder/prompt/prompt`.

    **Raises:** `UserError` for a pattern that matches nothing.
    """
    flat = flatten(params)
    for given in patterns:
        pattern = PARTS.get(given, given)
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"stages.Stage.trainable has {given!r}, which is no regular expression: {error}."
            ) from error
        if not any(re.fullmatch(pattern, path) for path in flat):
            # A pattern is nearest to the paths that look like it without its special characters.
            plain = re.sub(r"\(\?.*?\)|\.\*|[\\^$()]", "", pattern).rstrip("/")
            shorter = {part: path for path in flat for part in path.split("/")}
            shorter |= {path[: len(plain)]: path for path in flat}
            near = difflib.get_close_matches(plain, [*shorter, *flat], n=1, cutoff=0.0)
            hint = f" The nearest is {shorter.get(near[0], near[0])!r}." if near else ""
            adapter = " Adapters exist only where the stage has some (stages.Stage.adapter)."
            known = {
                "prompt": " A prompt exists only where PROMPT_LENGTH and NUM_PROMPTS are above 0.",
                "adapter": adapter,
                "lora": adapter,
            }
            raise UserError(
                f"stages.Stage.trainable has {given!r}, which matches none of the model's "
                f"{len(flat)} parameters; a pattern must match the whole path.{hint}"
                + next((said for word, said in known.items() if word in given), "")
            )
    chosen = set(trained_paths(flat, patterns))
    return (
        unflatten({p: a for p, a in flat.items() if p in chosen}),
        unflatten({p: a for p, a in flat.items() if p not in chosen}),
    )


def trained_paths(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return those of the paths that names of `PARTS` or patterns let train.

    The scales of what is held in int8 go with it.
    """
    found = [re.compile(PARTS.get(given, given)) for given in patterns]
    return [p for p in paths if any(one.fullmatch(quantization.owner(p)) for one in found)]


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Tree:
    """Join what `split` parted."""
    return unflatten({**flatten(frozen), **flatten(trainable)})


def only(params: Mapping[str, Any], model: Mapping[str, Any]) -> Tree:
    """Return the parameters that a model of these parameters has too, with their scales."""
    wanted = flatten(model)
    return unflatten({p: a for p, a in flatten(params).items() if quantization.owner(p) in wanted})


def with_prompt(params: Mapping[str, Any], table: Any) -> Tree:
    """Return the parameters with a prompt table [prompts, length, embed] among them."""
    return unflatten({**flatten(params), PROMPT_PATH: table})


def count(tree: Any) -> int:
    """Return the number of scalars in a tree."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def opt_state_shardings(
    optimizer: optax.GradientTransformation,
    trainable: Tree,
    shardings: Tree,
    partitioner: Partitioner,
) -> Any:
    """Shardings of the optimizer's slots, each of which lies where its parameter lies.

    A slot that has lost some of its parameter's axes, as factored rows and columns have, is split
    as the axes that it kept; T5X replicates those, and gathers them at every step. What has
    another shape, or could be either of two equal axes, is replicated. Of `shardings` that are
    formats, a slot of its parameter's shape takes over the order in memory too.
    """
    # By path: the two trees may hold their parts in different orders.
    places = flatten(shardings)
    flat = {
        tuple(path.split("/")): (leaf.shape, places[path])
        for path, leaf in flatten(trainable).items()
    }

    def slot_sharding(key_path: Any, slot: Any) -> NamedSharding | Format:
        names = tuple(str(getattr(key, "key", getattr(key, "name", ""))) for key in key_path)
        for start in range(len(names)):
            if names[start:] in flat:
                shape, where = flat[names[start:]]
                if slot.shape == shape:
                    kept: NamedSharding | Format = where
                    return kept
                sharding = getattr(where, "sharding", where)
                return _kept_axes(slot.shape, shape, sharding) or partitioner.replicated
        return partitioner.replicated

    slots = jax.eval_shape(optimizer.init, trainable)
    return jax.tree_util.tree_map_with_path(slot_sharding, slots)


def laid_out(shapes: Tree, axes: Tree, partitioner: Partitioner, dtype: str | None = None) -> Tree:
    """Parameters, or a part of them, as `jax.ShapeDtypeStruct`s with their formats.

    **Arguments:**

    - `shapes`: nested dict of arrays or `jax.ShapeDtypeStruct`s.
    - `axes`: of at least these parameters, logical axis names.
    - `dtype`: of `quantization.STORAGE`, instead of each parameter's own.
    """
    stored = unflatten(quantization.stored_shapes(flatten(shapes), dtype))
    axes = unflatten(quantization.stored_axes(flatten(axes)))
    tree: Tree = jax.tree.map(
        lambda leaf, format_: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=format_),
        stored,
        partitioner.formats(axes, stored),
    )
    return tree


def _kept_axes(
    slot: tuple[int, ...], parameter: tuple[int, ...], sharding: NamedSharding
) -> NamedSharding | None:
    """Return the sharding of the parameter's axes that a slot has, where there is one choice."""
    spec = (*sharding.spec, *(None,) * (len(parameter) - len(sharding.spec)))
    fitting = [
        axes
        for axes in itertools.combinations(range(len(parameter)), len(slot))
        if tuple(parameter[axis] for axis in axes) == slot
    ]
    if len(fitting) != 1:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*(spec[axis] for axis in fitting[0])))


def state_shapes(
    shapes: Tree,
    axes: Tree,
    patterns: Sequence[str],
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    frozen_dtype: str = "float32",
    keeps_base: bool = False,
) -> TrainState:
    """Return the state of a run as `jax.ShapeDtypeStruct`s with their formats; allocates nothing.

    **Arguments:**

    - `shapes`: nested dict of arrays or `jax.ShapeDtypeStruct`s, all of the model.
    - `axes`: the same tree of logical axis names.
    - `patterns`: what trains; see `split`.
    - `frozen_dtype`: storage type of the frozen weights, of `quantization.STORAGE`.
    - `keeps_base`: keep what trains as it was at the beginning, in its own type.
    """
    trains, rests = split(shapes, patterns)
    trainable = laid_out(trains, axes, partitioner)
    frozen = laid_out(rests, axes, partitioner, frozen_dtype)
    slots = opt_state_shardings(
        optimizer, trainable, jax.tree.map(lambda a: a.format, trainable), partitioner
    )
    return TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32, sharding=partitioner.replicated),
        seed=jax.ShapeDtypeStruct((), jnp.int32, sharding=partitioner.replicated),
        trainable=trainable,
        frozen=frozen,
        opt_state=jax.tree.map(
            lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding),
            jax.eval_shape(optimizer.init, trainable),
            slots,
        ),
        base=trainable if keeps_base else {},
    )


def create(
    params: Tree,
    axes: Tree,
    patterns: Sequence[str],
    optimizer: optax.GradientTransformation,
    partitioner: Partitioner,
    frozen_dtype: str = "float32",
    keeps_base: bool = False,
    *,
    random_seed: int = 0,
    optimizer_step: int = 0,
) -> TrainState:
    """Put the state of step 0 on the mesh, laid out as `state_shapes` says.

    **Arguments:**

    - `params`: nested dict of all of the model's parameters: host arrays, or arrays that lie on
      the mesh as they should, which the state takes over; those in int8 with their scales.
    - `random_seed`: of dropout; with the step's number it decides the masks, so that a resumed
      run draws the same ones.
    - `optimizer_step`: what the counters in the optimizer's fresh state begin at.

    The rest as `state_shapes`.
    """
    like = state_shapes(params, axes, patterns, optimizer, partitioner, frozen_dtype, keeps_base)
    trainable, frozen = split(params, patterns)
    frozen = unflatten(quantization.cast(flatten(frozen), flatten(like.frozen)))
    formats = jax.tree.map(lambda a: a.format, like)
    trainable = partitioner.place(trainable, formats.trainable)
    return TrainState(
        step=partitioner.place(np.int32(0), formats.step),
        seed=partitioner.place(np.int32(random_seed), formats.seed),
        trainable=trainable,
        frozen=partitioner.place(frozen, formats.frozen),
        opt_state=jax.jit(
            lambda tree: started_at(optimizer_step, optimizer.init(tree)),
            out_shardings=formats.opt_state,
        )(trainable),
        # A copy: the step writes its result to the memory of what trains.
        base=jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=formats.base)(
            trainable if keeps_base else {}
        ),
    )


def started_at(count: int, opt_state: Any) -> Any:
    """Return a fresh optimizer state whose counters (`count` in optax) begin elsewhere than at 0.

    **Raises:** `UserError` where there is none to set.
    """
    if count == 0:
        return opt_state
    if not optax.tree.get_all_with_path(opt_state, "count"):
        raise UserError(
            f"optimizer_step = {count}, but this optimizer keeps no count of its steps: leave it "
            "at 0."
        )
    return optax.tree.set(opt_state, count=jnp.int32(count))
