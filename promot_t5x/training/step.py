"""The training step: gradients of the trainable tree, one update, the step's metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from promot_t5x.models import loss
from promot_t5x.models.encoder_decoder import Batch, EncoderDecoderModel
from promot_t5x.training.state import TrainState, merge

Metrics = dict[str, Float[Array, ""]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def summed_gradients(
    model: EncoderDecoderModel,
    trainable: Any,
    frozen: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
) -> tuple[Any, loss.LossSums]:
    """Gradients of the summed loss with respect to `trainable`, and the loss's sums."""

    def total(tree: Any) -> tuple[Float[Array, ""], loss.LossSums]:
        sums = model.loss_sums(merge(tree, frozen), batch, dropout_key)
        return sums.total, sums

    (_, sums), gradients = jax.value_and_grad(total, has_aux=True)(trainable)
    return gradients, sums


def accumulated_gradients(
    model: EncoderDecoderModel,
    trainable: Any,
    frozen: Any,
    batch: Batch,
    dropout_key: jax.Array | None,
    microbatches: int,
) -> tuple[Any, loss.LossSums]:
    """As `summed_gradients`, a part of the batch at a time.

    Sums are added and divided once by the whole batch's normaliser, so that every target token
    weighs the same whichever microbatch it falls in.
    """
    if microbatches == 1:
        return summed_gradients(model, trainable, frozen, batch, dropout_key)
    # Rows m, m + M, m + 2M, … form microbatch m: each device then slices its own rows.
    parts = {k: v.reshape(-1, microbatches, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

    def add(carry: Any, indexed: Any) -> tuple[Any, None]:
        index, part = indexed
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
        new = summed_gradients(model, trainable, frozen, part, key)
        return jax.tree.map(jnp.add, carry, new), None

    shapes = jax.eval_shape(
        lambda part: summed_gradients(model, trainable, frozen, part, dropout_key),
        {k: v[0] for k, v in parts.items()},
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (jnp.arange(microbatches), parts))
    return total


def make_train_step(
    model: EncoderDecoderModel,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Any], Any],
    *,
    microbatches: int = 1,
    optimizer_step: int = 0,
) -> Step:
    """Build the step `(state, batch) -> (state, metrics)`; the caller compiles it.

    **Arguments:**

    - `learning_rate`: the schedule that `optimizer` already follows; read for the metrics.
    - `microbatches`: parts that the batch is taken in, to bound activation memory.
    - `optimizer_step`: what the optimiser's own count began at, for the metrics.

    The returned metrics are the step's own, under T5X's names.
    """
    uses_dropout = model.config.dropout_rate > 0

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        factor, weights = loss.normalizer(
            model.loss_normalizing_factor,
            batch["decoder_loss_weights"],
            batch.get("decoder_segment_ids"),
        )
        batch = {**batch, "decoder_loss_weights": weights}
        dropout_key = None
        if uses_dropout:
            dropout_key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        gradients, sums = accumulated_gradients(
            model, state.trainable, state.frozen, batch, dropout_key, microbatches
        )
        gradients = jax.tree.map(lambda g: g / factor, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        new_state = state.replace(
            step=state.step + 1,
            trainable=optax.apply_updates(state.trainable, updates),
            opt_state=opt_state,
        )
        metrics = {
            **step_metrics(sums, factor),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": jnp.asarray(learning_rate(state.step + optimizer_step), jnp.float32),
        }
        return new_state, metrics

    return train_step


def step_metrics(sums: loss.LossSums, factor: Any) -> Metrics:
    """T5X's per-step metrics from the sums over the batch's target tokens."""
    tokens = jnp.maximum(sums.weight_sum, 1.0)
    return {
        "loss": sums.total / factor,
        "cross_ent_loss": sums.cross_entropy / factor,
        "z_loss": sums.z_loss / factor,
        "loss_per_nonpadding_target_token": sums.total / tokens,
        "accuracy": sums.correct / tokens,
    }
