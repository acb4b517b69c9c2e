"""Each objective against its formula in float64, chunked and whole, with its gradient."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.errors import UserError
from promot_t5x.models.loss import Base, token_loss
from promot_t5x.models.objectives import (
    DFT,
    EAFT,
    TALR,
    Divergence,
    KLToBase,
    SelectiveTokenMasking,
)

BATCH, LENGTH, EMBED, VOCAB = 3, 7, 5, 23
Z, SMOOTHING = 1e-3, 0.1
RNG = np.random.default_rng(0)
HIDDEN, BASE_HIDDEN = RNG.normal(size=(2, BATCH, LENGTH, EMBED)).astype(np.float32)
KERNEL, BASE_KERNEL = RNG.normal(size=(2, EMBED, VOCAB)).astype(np.float32)
TARGETS = RNG.integers(0, VOCAB, (BATCH, LENGTH)).astype(np.int32)
WEIGHTS = (np.arange(LENGTH) < np.array([7, 4, 1])[:, None]).astype(np.float32)


def log_softmax(hidden, kernel):
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True)), logits


LOG_P, LOGITS = log_softmax(HIDDEN, KERNEL)
LOG_BASE, _ = log_softmax(BASE_HIDDEN, BASE_KERNEL)
LOG_Y = np.take_along_axis(LOG_P, TARGETS[..., None], -1)[..., 0]
LOG_BASE_Y = np.take_along_axis(LOG_BASE, TARGETS[..., None], -1)[..., 0]


def plain_loss():
    """T5X's loss of each token, by hand."""
    off = SMOOTHING / (VOCAB - 1)
    entropy = -((1 - SMOOTHING) * np.log(1 - SMOOTHING) + SMOOTHING * np.log(off))
    cross_entropy = -(1 - SMOOTHING - off) * LOG_Y - off * LOG_P.sum(-1) - entropy
    return cross_entropy + Z * np.log(np.exp(LOGITS).sum(-1)) ** 2


# Perplexities of the targets under the base, two of which lie on either side of the threshold.
THRESHOLD = float(np.median(np.exp(-LOG_BASE_Y)))


def talr():
    """Softmax of -loss / temperature over the 12 targets, times 12; the median of three rows."""
    losses, counted = -LOG_Y, WEIGHTS > 0
    means = [losses[row][counted[row]].mean() for row in range(BATCH)]
    weights = np.exp(-losses / sorted(means)[1]) * counted
    return weights / weights.sum() * counted.sum()


FACTORS = {
    TALR(): talr(),
    DFT(): np.exp(LOG_Y),
    EAFT(): -(np.exp(LOG_P) * LOG_P).sum(-1) / np.log(VOCAB),
    SelectiveTokenMasking(threshold=THRESHOLD): np.exp(-LOG_BASE_Y) <= THRESHOLD,
    KLToBase(weight=0.3): np.ones_like(LOG_Y),
    Divergence(): np.zeros_like(LOG_Y),
}
BETA = {KLToBase(weight=0.3): 0.3, Divergence(): 1.0}  # what the divergence is multiplied by
DIVERGENCE = (np.exp(LOG_BASE) * (LOG_BASE - LOG_P)).sum(-1)


def sums(hidden, kernel, objective, chunk=10**9, base=True):
    return token_loss(
        lambda h: h @ kernel,
        hidden,
        jnp.asarray(TARGETS),
        jnp.asarray(WEIGHTS),
        z_loss=Z,
        label_smoothing=SMOOTHING,
        chunk_tokens=chunk,
        objective=objective,
        base=Base(lambda h: h @ BASE_KERNEL, jnp.asarray(BASE_HIDDEN)) if base else None,
    )


@pytest.mark.parametrize("objective", FACTORS, ids=lambda each: type(each).__name__)
def test_values_and_gradients_are_those_of_the_formula(objective):
    factor = FACTORS[objective] * WEIGHTS
    beta = BETA.get(objective, 0.0)
    addition = beta * DIVERGENCE * WEIGHTS
    whole = sums(jnp.asarray(HIDDEN), KERNEL, objective, base=objective.needs_base).total
    total, gradient = jax.value_and_grad(
        lambda hidden: sums(hidden, KERNEL, objective, 6, objective.needs_base).total
    )(jnp.asarray(HIDDEN))
    for found in (whole, total):
        np.testing.assert_allclose(found, (factor * plain_loss() + addition).sum(), rtol=1e-5)

    # The factors are constants: the gradient is that of the plain loss, scaled token by token,
    # and d KL(base over p) / d logits = p - base.
    plain = jax.grad(lambda hidden: sums(hidden, KERNEL, None, base=False).total)(
        jnp.asarray(HIDDEN)
    )
    scale = np.divide(factor, WEIGHTS, out=np.zeros_like(factor), where=WEIGHTS > 0)
    wanted = np.asarray(plain, np.float64) * scale[..., None]
    d_logits = beta * (np.exp(LOG_P) - np.exp(LOG_BASE)) * WEIGHTS[..., None]
    wanted += d_logits @ KERNEL.T.astype(np.float64)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", FACTORS, ids=lambda each: type(each).__name__)
def test_what_is_reported_beside_the_loss_stays_the_plain_one(objective):
    hidden = jnp.asarray(HIDDEN)
    found = sums(hidden, KERNEL, objective, base=objective.needs_base)
    plain = sums(hidden, KERNEL, None, base=False)
    assert found._replace(total=plain.total) == plain
    assert found.total != plain.total


def test_a_model_that_is_the_base_has_no_divergence_and_no_gradient_of_it():
    def total(hidden, weight):
        return token_loss(
            lambda h: h @ KERNEL, hidden, jnp.asarray(TARGETS), jnp.asarray(WEIGHTS), z_loss=0.0,
            label_smoothing=0.0, chunk_tokens=6, objective=KLToBase(weight=weight),
            base=Base(lambda h: h @ KERNEL, jnp.asarray(HIDDEN)),
        ).total  # fmt: skip

    for weight in (0.0, 100.0):
        value, gradient = jax.value_and_grad(total)(jnp.asarray(HIDDEN), weight)
        plain = -(LOG_Y * WEIGHTS).sum()
        np.testing.assert_allclose(value, plain, rtol=1e-5)
        one_hot = np.eye(VOCAB)[TARGETS]
        d_logits = (np.exp(LOG_P) - one_hot) * WEIGHTS[..., None]
        np.testing.assert_allclose(gradient, d_logits @ KERNEL.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("chunk", [6, 10**9])
@pytest.mark.parametrize(
    "objective", [KLToBase(weight=0.0), SelectiveTokenMasking(threshold=math.inf)]
)
def test_off_is_the_plain_loss_and_gradient_bit_for_bit(objective, chunk):
    """DFT, EAFT and TALR have no strength: a stage without them is off."""

    def both(objective, base):
        total = lambda *a: sums(*a, objective, chunk, base=base).total  # noqa: E731
        value = jax.value_and_grad(total, (0, 1))(jnp.asarray(HIDDEN), jnp.asarray(KERNEL))
        return jax.tree.leaves(value)

    found = both(objective, objective.needs_base)
    for one, other in zip(found, both(None, False), strict=True):
        np.testing.assert_array_equal(one, other)


def test_talr_weighs_equal_losses_alike_and_a_hard_token_less():
    counted = jnp.asarray([[True] * 4])
    sequences = jnp.zeros((1, 4), jnp.int32)
    equal = TALR().factors(jnp.full((1, 4), 0.7), counted, sequences)
    np.testing.assert_array_equal(equal, np.ones((1, 4)))
    # The temperature is the mean, 1, so that the loss that is larger by 2 weighs e^-2 as much.
    found = TALR().factors(jnp.asarray([[0.5, 0.5, 0.5, 2.5]]), counted, sequences)
    odd = math.exp(-2.0)
    wanted = np.array([[1, 1, 1, odd]]) * 4 / (3 + odd)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_talr_sees_the_sequences_of_a_packed_row():
    """Three sequences in one row weigh what they weigh in rows of their own."""
    lengths = [7, 4, 1]
    losses = jnp.asarray(-LOG_Y, jnp.float32)
    counted = jnp.asarray(WEIGHTS > 0)
    alone = TALR().factors(losses, counted, jnp.zeros((BATCH, LENGTH), jnp.int32))
    packed = jnp.concatenate([losses[n, :k] for n, k in enumerate(lengths)] + [jnp.zeros(2)])[None]
    segments = jnp.asarray([[1] * 7 + [2] * 4 + [3] + [0] * 2], jnp.int32)
    together = TALR().factors(packed, segments > 0, segments)
    wanted = np.concatenate([alone[n, :k] for n, k in enumerate(lengths)] + [np.zeros(2)])
    np.testing.assert_allclose(together[0], wanted, rtol=1e-6)
    nothing = TALR().factors(packed, segments > 9, segments)
    np.testing.assert_array_equal(nothing, np.zeros_like(packed))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match=r"threshold is 0.5.*1 or more"):
        SelectiveTokenMasking(threshold=0.5)
    with pytest.raises(UserError, match=r"KLToBase.weight must be a finite number"):
        KLToBase(weight=-1.0)
    assert dataclasses.asdict(SelectiveTokenMasking()) == {"threshold": 2.5}
