"""The loss against float64 formulas, chunked against whole, and what it keeps in memory."""

import math
import re

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from promot_t5x.errors import UserError
from promot_t5x.models.loss import LossSums, cross_entropy_with_logits, normalizer, token_loss

pytestmark = pytest.mark.slow

BATCH, LENGTH, EMBED, VOCAB = 4, 11, 6, 97


def problem(seed=0, vocab=VOCAB):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(BATCH, LENGTH, EMBED)).astype(np.float32)
    kernel = (2 * rng.normal(size=(EMBED, vocab))).astype(np.float32)
    targets = rng.integers(0, vocab, (BATCH, LENGTH)).astype(np.int32)
    lengths = np.array([11, 7, 3, 9])
    weights = (np.arange(LENGTH) < lengths[:, None]).astype(np.int32)
    return tuple(map(jnp.asarray, (hidden, kernel, targets, weights)))


def sums_of(hidden, kernel, targets, weights, chunk=10**9, z=1e-4, smoothing=0.0) -> LossSums:
    return token_loss(
        lambda h: h @ kernel, hidden, targets, weights,
        z_loss=z, label_smoothing=smoothing, chunk_tokens=chunk,
    )  # fmt: skip


def total_and_gradients(*arguments, **settings):
    return jax.jit(jax.value_and_grad(lambda *a: sums_of(*a, **settings).total, (0, 1)))(*arguments)


def reference(hidden, kernel, targets, weights, z, smoothing):
    """Everything in float64 with explicit target distributions, gradients by hand."""
    hidden, kernel, weights = (np.asarray(x, np.float64) for x in (hidden, kernel, weights))
    logits = hidden @ kernel
    vocab = logits.shape[-1]
    log_z = np.log(np.exp(logits).sum(-1))
    soft = np.full(logits.shape, smoothing / (vocab - 1))
    np.put_along_axis(soft, np.asarray(targets)[..., None], 1 - smoothing, axis=-1)
    log_probs = logits - log_z[..., None]
    entropy = -(soft[0, 0] * np.log(np.maximum(soft[0, 0], 1e-300))).sum()
    cross_entropy = -(soft * log_probs).sum(-1) - entropy
    sums = LossSums(
        total=((cross_entropy + z * log_z**2) * weights).sum(),
        cross_entropy=(cross_entropy * weights).sum(),
        z_loss=(z * log_z**2 * weights).sum(),
        weight_sum=weights.sum(),
        correct=((logits.argmax(-1) == np.asarray(targets)) * weights).sum(),
    )
    d_logits = ((1 + 2 * z * log_z)[..., None] * np.exp(log_probs) - soft) * weights[..., None]
    return sums, (d_logits @ kernel.T, np.einsum("ble,blv->ev", hidden, d_logits))


def assert_close(actual, expected, tolerance):
    """Relative to the largest magnitude of each array."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


@pytest.mark.parametrize("chunk", [10**9, 12])
@pytest.mark.parametrize(("z", "smoothing"), [(0.0, 0.0), (1e-4, 0.0), (1e-4, 0.1), (0.01, 0.1)])
def test_values_and_gradients_equal_the_float64_formulas(z, smoothing, chunk):
    hidden, kernel, targets, weights = problem()
    # Some tokens must be right, or `correct` could be anything that is 0.
    targets = targets.at[:, ::2].set(jnp.argmax(hidden @ kernel, -1)[:, ::2].astype(jnp.int32))
    arguments = (hidden, kernel, targets, weights)
    sums, gradients = reference(*arguments, z, smoothing)
    assert 10 < sums.correct < sums.weight_sum
    assert_close(sums_of(*arguments, chunk, z, smoothing), sums, 1e-6)
    total, actual = total_and_gradients(*arguments, chunk=chunk, z=z, smoothing=smoothing)
    assert_close(total, sums.total, 1e-6)
    assert_close(actual, gradients, 1e-6)


@pytest.mark.parametrize("chunk", [1, 12, 23, 40])
def test_chunked_equals_whole_with_ragged_tails(chunk):
    arguments = problem(seed=1)
    whole, chunked = (sums_of(*arguments, c, smoothing=0.1) for c in (10**9, chunk))
    assert_close(chunked, whole, 1e-6)
    whole, chunked = (
        total_and_gradients(*arguments, chunk=c, smoothing=0.1) for c in (10**9, chunk)
    )
    assert_close(chunked, whole, 1e-6)


def test_extreme_logits_stay_finite_and_exact():
    logits = jnp.array([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]])
    targets = jnp.array([0, 0])

    def total(logits):
        return cross_entropy_with_logits(logits, targets, label_smoothing=0.0)[0].sum()

    value, gradient = jax.value_and_grad(total)(logits)
    assert value == 2e4
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [-1, 1, 0]])


def test_a_perfect_prediction_of_smoothed_targets_has_cross_entropy_zero():
    probabilities = np.array([0.9, 0.05, 0.05])
    loss, _ = cross_entropy_with_logits(
        jnp.log(probabilities)[None], jnp.array([0]), label_smoothing=0.1
    )
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)


def test_logits_of_lower_precision_are_computed_with_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)), jnp.bfloat16)
    low = cross_entropy_with_logits(logits, jnp.array([1, 2, 3]), z_loss=1e-4)
    high = cross_entropy_with_logits(logits.astype(jnp.float32), jnp.array([1, 2, 3]), z_loss=1e-4)
    for a, b in zip(low, high, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("chunk", [10**9, 8])
def test_tokens_of_weight_zero_contribute_nothing(chunk):
    hidden, kernel, targets, weights = problem()
    noise = jnp.where(weights[..., None] == 0, 100.0, 0.0)
    other_targets = jnp.where(weights == 0, 5, targets)
    before = total_and_gradients(hidden, kernel, targets, weights, chunk=chunk)
    after = total_and_gradients(hidden + noise, kernel, other_targets, weights, chunk=chunk)
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1][1], after[1][1])
    assert not np.any(np.asarray(after[1][0])[np.asarray(weights) == 0])
    nothing = sums_of(hidden, kernel, targets, jnp.zeros_like(weights), chunk)
    assert all(value == 0 for value in nothing)


def array_sizes(jaxpr) -> list[int]:
    """Elements of every array with a vocabulary axis, in the program and what it calls."""
    sizes = []
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            shape = getattr(variable.aval, "shape", ())
            if VOCAB in shape:
                sizes.append(math.prod(shape))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            sizes.extend(array_sizes(inner))
    return sizes


def compiled_sizes(text: str) -> list[int]:
    shapes = (list(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", text))
    return [math.prod(shape) for shape in shapes if VOCAB in shape]


@pytest.mark.parametrize(("chunk", "tokens"), [(12, 12), (10**9, BATCH * LENGTH)])
def test_chunked_program_holds_no_more_logits_than_asked(chunk, tokens):
    """Unchunked is the control: there the same search does find [batch, length, vocab]."""
    step = jax.jit(lambda *a: total_and_gradients(*a, chunk=chunk, smoothing=0.1))
    traced = step.trace(*problem())
    assert max(array_sizes(traced.jaxpr.jaxpr)) == tokens * VOCAB
    assert max(compiled_sizes(traced.lower().compile().as_text())) == tokens * VOCAB


def test_backward_recomputes_only_when_chunked():
    def products(chunk):
        text = str(jax.make_jaxpr(lambda *a: total_and_gradients(*a, chunk=chunk))(*problem()))
        return text.count("dot_general"), "scan" in text

    # Forward, two for the gradients; chunked, one more to make the logits again.
    assert products(BATCH * LENGTH) == (3, False)
    assert products(BATCH * LENGTH - 1) == (4, True)


@pytest.mark.parametrize("chunk", [10**9, 16])
def test_sharded_vocabulary_gives_the_same(chunk):
    vocab = 96
    arguments = problem(seed=2, vocab=vocab)
    expected = total_and_gradients(*arguments, chunk=chunk, smoothing=0.1)
    correct = sums_of(*arguments, chunk).correct
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    rules = (("batch", "data"), ("vocab", "model"), ("length", None))
    specs = (("data",), (None, "model"), ("data",), ("data",))
    placed = [
        jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
        for x, spec in zip(arguments, specs, strict=True)
    ]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        step = jax.jit(lambda *a: total_and_gradients(*a, chunk=chunk, smoothing=0.1))
        compiled = step.lower(*placed).compile()
        actual = compiled(*placed)
        sharded_correct = jax.jit(lambda *a: sums_of(*a, chunk).correct)(*placed)
    assert_close(actual, expected, 1e-6)
    assert sharded_correct == correct
    # Each device makes its rows and its part of the vocabulary, and nobody gathers the parts.
    positions = LENGTH if chunk > 16 else 4
    text = compiled.as_text()
    assert f"f32[{BATCH // 2},{positions},{vocab // 4}]" in text
    assert not re.search(rf"f32\[\d+,\d+,{vocab}\]", text)


def test_settings_out_of_range_are_user_errors():
    arguments = problem()
    with pytest.raises(UserError, match="label_smoothing is 1.0"):
        sums_of(*arguments, smoothing=1.0)
    with pytest.raises(UserError, match="chunk_tokens is 0"):
        sums_of(*arguments, chunk=0)


WEIGHTS = jnp.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
SEGMENTS = jnp.array([[1, 1, 1, 2, 0, 0], [1, 2, 2, 3, 3, 0], [0, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (None, 1),
        (114, 114),
        (0.5, 0.5),
        ("NUM_REAL_TARGET_TOKENS", 9),
        ("num_total_target_tokens", 18),
    ],
)
def test_normalizers_that_keep_the_weights(kind, factor):
    actual, weights = normalizer(kind, WEIGHTS)
    assert actual == factor
    assert actual.dtype == jnp.float32
    np.testing.assert_array_equal(weights, WEIGHTS)


def test_average_per_sequence_weighs_sequences_equally():
    factor, weights = normalizer("AVERAGE_PER_SEQUENCE", WEIGHTS)
    np.testing.assert_allclose(weights.sum(-1), [1, 1, 0], rtol=1e-6)
    assert factor == pytest.approx(2)
    np.testing.assert_allclose(weights[0], [0.25] * 4 + [0] * 2)


def test_average_per_sequence_of_packed_rows_counts_segments():
    packed_weights = WEIGHTS.at[0, 0].set(0)  # a segment whose first token carries no loss
    factor, weights = jax.jit(lambda w, s: normalizer("AVERAGE_PER_SEQUENCE", w, s))(
        packed_weights, SEGMENTS
    )
    assert factor == pytest.approx(5)
    expected = [[0, 1 / 2, 1 / 2, 1, 0, 0], [1, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 0], [0] * 6]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_average_per_sequence_of_packed_equals_unpacked():
    rng = np.random.default_rng(3)
    losses = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    factor, weights = normalizer("AVERAGE_PER_SEQUENCE", WEIGHTS, SEGMENTS)
    packed = (losses * weights).sum() / factor
    rows = np.asarray(losses), np.asarray(SEGMENTS)
    means = [
        row[ids == segment].mean()
        for row, ids in zip(*rows, strict=True)
        for segment in range(1, ids.max() + 1)
    ]
    np.testing.assert_allclose(packed, np.mean(means), rtol=1e-5)


@pytest.mark.parametrize("kind", ["NUM_REAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"])
def test_a_batch_without_targets_does_not_divide_by_zero(kind):
    factor, weights = normalizer(kind, jnp.zeros((2, 3), jnp.int32))
    assert factor == 1
    assert not np.any(weights)


def test_unknown_normalizer_is_a_user_error():
    with pytest.raises(UserError, match="Did you mean 'NUM_REAL_TARGET_TOKENS'"):
        normalizer("NUM_REAL_TOKENS", WEIGHTS)
    with pytest.raises(UserError, match="above 0"):
        normalizer(0, WEIGHTS)
