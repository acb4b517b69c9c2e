"""Update rules against forgetting, around any optax optimizer.

Each is called as an optimizer is, with the learning rate, and takes the one that it goes around.
With Θ what trains and θ0 the values that it had when the optimizer's state was made:

| rule               | what it does                                                  | source     |
|--------------------|---------------------------------------------------------------|------------|
| `l2_sp`            | gradient + 2 λ (θ − θ0): of the loss + λ ‖θ − θ0‖²            | 1802.01483 |
| `mofo`             | of each matrix, updates the share with the largest momentum   | 2407.20999 |
| `half_fine_tuning` | each round, a random half of the layers' matrices stands still | 2404.18466 |

In a scanned stack every layer counts as a matrix of its own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from promot_t5x.config import validation
from promot_t5x.errors import UserError
from promot_t5x.network.scan import layer_axis
from promot_t5x.training import adafactor

Optimizer = Callable[..., optax.GradientTransformation]


class L2SPState(NamedTuple):
    """The inner optimizer's state and θ0, which costs a copy of what trains."""

    inner: Any
    start: PyTree


def l2_sp(
    learning_rate: Any, *, optimizer: Optimizer = adafactor.adafactor, weight: float = 0.01
) -> optax.GradientTransformation:
    """Pull what trains back to where it began, as if λ ‖θ − θ0‖² were part of the loss.

    **Arguments:**

    - `learning_rate`: a number or a schedule, for `optimizer`.
    - `optimizer`: gets the gradient of the sum; called as `optimizer(learning_rate=…)`.
    - `weight`: λ; 0 leaves `optimizer` as it is.

    **Raises:** `UserError` for a weight below 0.
    """
    validation.check_rate("l2_sp.weight", weight)
    inner = optimizer(learning_rate=learning_rate)

    def init(params: PyTree) -> L2SPState:
        return L2SPState(inner.init(params), jax.tree.map(jnp.copy, params))

    def update(
        grads: PyTree, state: L2SPState, params: PyTree | None = None
    ) -> tuple[PyTree, L2SPState]:
        if weight:
            pulled: Callable[..., Array] = lambda g, p, p0: g + 2.0 * weight * (p - p0)  # noqa: E731
            grads = jax.tree.map(pulled, grads, params, state.start)
        updates, kept = inner.update(grads, state.inner, params)
        return updates, state._replace(inner=kept)

    return optax.GradientTransformation(init, update)


class MoFOState(NamedTuple):
    """The inner optimizer's state and the momentum, which costs a copy of what trains."""

    inner: Any
    momentum: PyTree


def mofo(
    learning_rate: Any,
    *,
    optimizer: Optimizer = adafactor.adafactor,
    share: float = 0.15,
    beta1: float = 0.9,
) -> optax.GradientTransformation:
    """Update only the parameters whose momentum is largest within their matrix.

    The paper filters Adam; any optimizer can be.

    **Arguments:**

    - `learning_rate`: a number or a schedule, for `optimizer`.
    - `optimizer`: proposes the updates; called as `optimizer(learning_rate=…)`.
    - `share`: of each matrix, or other array, that is updated, rounded up; in (0, 1].
    - `beta1`: decay of the momentum m = β₁ m + (1 − β₁) g.

    **Raises:** `UserError` for a share outside of (0, 1].
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"mofo.share is {share}: give a share in (0, 1]; the paper has 0.1 to 0.2.")
    inner = optimizer(learning_rate=learning_rate)

    def init(params: PyTree) -> MoFOState:
        return MoFOState(inner.init(params), jax.tree.map(jnp.zeros_like, params))

    def update(
        grads: PyTree, state: MoFOState, params: PyTree | None = None
    ) -> tuple[PyTree, MoFOState]:
        updates, kept = inner.update(grads, state.inner, params)
        momentum = jax.tree.map(lambda m, g: beta1 * m + (1.0 - beta1) * g, state.momentum, grads)
        chosen = jax.tree_util.tree_map_with_path(
            lambda key, u, m: jnp.where(_largest(m, layer_axis(_name(key)), share), u, 0.0),
            updates,
            momentum,
        )
        return chosen, MoFOState(kept, momentum)

    return optax.GradientTransformation(init, update)


def _largest(
    array: Float[Array, "*shape"], layers: int | None, share: float
) -> Bool[Array, "*shape"]:
    """Return where an array, or each layer of a stack, has its numbers of largest magnitude."""
    size = jnp.abs(array)
    flat = size.reshape(1, -1) if layers is None else jnp.moveaxis(size, layers, 0)
    flat = jnp.sort(flat.reshape(flat.shape[0], -1), axis=-1)
    kept = math.ceil(share * flat.shape[1])
    least = flat[:, flat.shape[1] - kept]
    return size >= _along(least, layers, array.ndim)


class HalfFineTuningState(NamedTuple):
    """The inner optimizer's state and the steps taken, which say which round it is."""

    inner: Any
    count: Int[Array, ""]  # type: ignore[assignment]  # optax's name; hides tuple.count


def half_fine_tuning(
    learning_rate: Any,
    *,
    optimizer: Optimizer = adafactor.adafactor,
    round_steps: int | None = None,
    seed: int = 0,
) -> optax.GradientTransformation:
    """Train a random half of the layers' matrices, and what is no matrix of a layer.

    **Arguments:**

    - `learning_rate`: a number or a schedule, for `optimizer`.
    - `optimizer`: proposes the updates; called as `optimizer(learning_rate=…)`.
    - `round_steps`: steps after which another half is drawn; none keeps the first.
    - `seed`: of the draws.

    **Raises:** `UserError` where it is to train no matrices (kernels) of layers.
    """
    if round_steps is not None:
        validation.check_positive("half_fine_tuning.round_steps", round_steps)
    validation.check_seed("half_fine_tuning.seed", seed)
    inner = optimizer(learning_rate=learning_rate)

    def init(params: PyTree) -> HalfFineTuningState:
        if not _matrices(params):
            raise UserError(
                "half_fine_tuning lets half of the layers' kernels stand still, but none of them "
                "trains: give it to a stage that trains the model."
            )
        return HalfFineTuningState(inner.init(params), jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree, state: HalfFineTuningState, params: PyTree | None = None
    ) -> tuple[PyTree, HalfFineTuningState]:
        updates, kept = inner.update(grads, state.inner, params)
        counts = _matrices(updates)
        drawn = state.count * 0 if round_steps is None else state.count // round_steps
        key = jax.random.fold_in(jax.random.key(seed), drawn)
        total = sum(counts.values())
        trains = jax.random.permutation(key, total) >= total // 2
        starts = dict(zip(counts, _starts(list(counts.values())), strict=True))

        def masked(key: Any, change: Array) -> Array:
            if (path := _name(key)) not in counts:
                return change
            own = trains[starts[path] : starts[path] + counts[path]]
            return jnp.where(_along(own, layer_axis(path), change.ndim), change, 0.0)

        halved = jax.tree_util.tree_map_with_path(masked, updates)
        return halved, HalfFineTuningState(kept, optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def _matrices(tree: PyTree) -> dict[str, int]:
    """Return the paths of the layers' kernels and how many layers' each holds, in one order."""
    found = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = _name(key)
        if path.endswith("/kernel") and not path.endswith("logits_dense/kernel"):
            layers = layer_axis(path)
            found[path] = 1 if layers is None else leaf.shape[layers]
    return dict(sorted(found.items()))


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:index]) for index in range(len(counts))]


def _along(values: Array, layers: int | None, ndim: int) -> Array:
    """Return a number an array, or one a layer, in a shape that broadcasts over the array."""
    shape = [1] * ndim
    if layers is not None:
        shape[layers] = -1
    return values.reshape(shape)


def _name(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")
