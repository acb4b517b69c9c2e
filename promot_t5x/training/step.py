"""The training step: gradients of the trainable tree, one update, the step's metrics.

Every step also says whether its numbers are finite, array by array, at the price of no pass over
the arrays that it does not make anyway.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Shaped

from promot_t5x.models import loss
from promot_t5x.models.model import Batch, Model
from promot_t5x.models.objectives import Objective
from promot_t5x.training.state import TrainState, merge

Metrics = dict[str, Float[Array, ""]]


class Finite(NamedTuple):
    """Whether the numbers of a step are finite: arrays on the devices, or numpy's once fetched.

    **Attributes:**

    - `loss`: of the batch.
    - `gradients`: whether each trainable array's gradient has a finite norm, in the order of
      `array_names`.
    - `parameters`: whether all numbers of each trainable array are finite after the update; None
      where such steps are not skipped. A parameter that is not finite then shows in the loss of
      the next step, and no save takes it.
    """

    loss: Bool[Array, ""]
    gradients: Bool[Array, " arrays"]
    parameters: Bool[Array, " arrays"] | None = None

    def arrays(self) -> Bool[Array | np.ndarray, " arrays"]:
        """Whether all that is known of each trainable array is finite."""
        return self.gradients if self.parameters is None else self.gradients & self.parameters

    def everywhere(self) -> Bool[ArrayLike, ""]:
        """Whether all of them are."""
        return self.loss & self.arrays().all()


Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics, Finite]]


def summed_gradients(
    model: Model,
    trainable: Any,
    frozen: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    objective: Objective | None = None,
    base: Any | None = None,
) -> tuple[Any, loss.LossSums]:
    """Return the gradients of the summed loss with respect to `trainable`, and the loss's sums.

    **Arguments:**

    - `objective`, `base`: as `Model.loss_sums` has them.
    """

    def total(tree: Any) -> tuple[Float[Array, ""], loss.LossSums]:
        sums = model.loss_sums(merge(tree, frozen), batch, dropout_key, objective, base)
        return sums.total, sums

    (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(trainable)
    return gradients, sums


def accumulated_gradients(
    model: Model,
    trainable: Any,
    frozen: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    microbatches: int,
    objective: Objective | None = None,
    base: Any | None = None,
) -> tuple[Any, loss.LossSums]:
    """As `summed_gradients`, a part of the batch at a time.

    Sums are added and divided once by the whole batch's normalizer, so that every target token
    weighs the same whichever microbatch it falls in.
    """

    def summed(part: Batch, key: jax.Array | None) -> tuple[Any, loss.LossSums]:
        return summed_gradients(model, trainable, frozen, part, key, objective, base)

    if microbatches == 1:
        return summed(batch, dropout_key)
    # Rows m, m + M, m + 2M, … form microbatch m: each device then slices its own rows.
    parts = {k: v.reshape(-1, microbatches, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

    def add(carry: Any, indexed: Any) -> tuple[Any, None]:
        index, part = indexed
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        return jax.tree.map(jnp.add, carry, summed(part, key)), None

    shapes = jax.eval_shape(
        lambda part: summed(part, dropout_key),
        {k: v[0] for k, v in parts.items()},
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total: tuple[Any, loss.LossSums]
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), parts))
    return total


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Any], Any],
    *,
    microbatches: int = 1,
    optimizer_step: int = 0,
    skip_non_finite: bool = False,
    total_target_tokens: int | None = None,
    objective: Objective | None = None,
) -> Step:
    """Build the step `(state, batch) -> (state, metrics, finite)`; the caller compiles it.

    **Arguments:**

    - `learning_rate`: the schedule that `optimizer` already follows; read for the metrics.
    - `microbatches`: parts that the batch is taken in, to bound activation memory.
    - `optimizer_step`: what the optimizer's own count began at, for the metrics.
    - `skip_non_finite`: leave parameters and slots as they are where a number of the step is not
      finite. Old and new parameters then exist at the same time; without it the update takes the
      place of the parameters, and it is for the caller not to use such a state.
    - `total_target_tokens`: padding included, of the batch as if it were unpacked; None takes
      those that are there.
    - `objective`: in place of cross-entropy and z-loss. One that needs the base compares with the
      parameters that have the state's `base` in place of `trainable`.

    **Returns:** the step. Its metrics are the step's own, named in `step_metrics`.
    """
    uses_dropout = model.config.dropout_rate > 0

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, Finite]:
        factor, weights = loss.normalizer(
            model.loss_normalizing_factor,
            batch["decoder_loss_weights"],
            batch.get("decoder_segment_ids"),
            total_target_tokens,
        )
        batch = {**batch, "decoder_loss_weights": weights}
        dropout_key = None
        if uses_dropout:
            dropout_key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        gradients, sums = accumulated_gradients(
            model,
            state.trainable,
            state.frozen,
            batch,
            dropout_key,
            microbatches,
            objective,
            merge(state.base, state.frozen),
        )
        gradients = jax.tree.map(lambda g: g / factor, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        squares = _of_each(lambda g: jnp.sum(jnp.square(g)), gradients)
        finite = Finite(loss=jnp.isfinite(sums.total), gradients=jnp.isfinite(squares))
        if skip_non_finite:
            # Asked of every step, this would take memory for an array more (docs/log.md).
            parameters = _of_each(lambda p: jnp.all(jnp.isfinite(p)), trainable)
            finite = finite._replace(parameters=parameters)
            kept = _where(finite.everywhere(), (trainable, opt_state), state)
            trainable, opt_state = kept
        new_state = state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
        metrics = {
            **step_metrics(sums, factor),
            "grad_norm": jnp.sqrt(jnp.sum(squares)),
            "learning_rate": jnp.asarray(learning_rate(state.step + optimizer_step), jnp.float32),
        }
        return new_state, metrics, finite

    return train_step


def array_names(trainable: Mapping[str, Any]) -> list[str]:
    """Return the paths of a tree's arrays, in the order in which `Finite` speaks of them."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(trainable)
    return ["/".join(str(entry.key) for entry in path) for path, _ in leaves]


def _of_each(function: Callable[[Any], Any], tree: Any) -> Shaped[Array, " arrays"]:
    return jnp.stack([function(leaf) for leaf in jax.tree.leaves(tree)])


def _where(
    applied: Bool[ArrayLike, ""], new: tuple[Any, Any], state: TrainState
) -> tuple[Any, Any]:
    """Return the new parameters and slots, or the old ones; counts, which are integers, go on."""

    def choose(one: Any, other: Any) -> Any:
        is_count = jnp.issubdtype(one.dtype, jnp.integer)
        return one if is_count else jnp.where(applied, one, other)

    chosen: tuple[Any, Any] = jax.tree.map(choose, new, (state.trainable, state.opt_state))
    return chosen


def step_metrics(sums: loss.LossSums, factor: Float[Array, ""]) -> Metrics:
    """Return a step's metrics from the sums over the batch's target tokens.

    `loss` is a mean over target tokens, whatever the model's normalizing factor: `cross_ent_loss` +
    `z_loss`, or what the stage's objective makes of them. `loss_per_nonpadding_target_token` is
    T5X's name of it. `loss_sum` is what the gradient is taken of, the sum divided by the factor;
    T5X calls this one `loss`.

    **Arguments:**

    - `sums`: of the whole batch.
    - `factor`: what `loss.normalizer` returned.
    """
    tokens = jnp.maximum(sums.weight_sum, 1.0)
    mean = sums.total / tokens
    return {
        "loss": mean,
        "loss_sum": sums.total / factor,
        "cross_ent_loss": sums.cross_entropy / tokens,
        "z_loss": sums.z_loss / tokens,
        "loss_per_nonpadding_target_token": mean,
        "accuracy": sums.correct / tokens,
    }
