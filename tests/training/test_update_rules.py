"""The update rules on small trees, against their formulas; scanned stacks as their layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.errors import UserError
from promot_t5x.training.adafactor import adafactor
from promot_t5x.training.update_rules import half_fine_tuning, l2_sp, mofo

RATE = 0.1
PATHS = [
    *(
        f"encoder/layers_{i}/{part}"
        for i in range(4)
        for part in ("mlp/wi/kernel", "mlp/wo/kernel")
    ),
    "encoder/layers_0/pre_mlp_layer_norm/scale",
    "token_embedder/embedding",
]


def tree(seed):
    rng = np.random.default_rng(seed)
    shape = {"scale": (5,)}
    drawn = {p: rng.normal(size=shape.get(p.split("/")[-1], (3, 5))) for p in PATHS}
    return unflatten_dict({p: jnp.asarray(a, jnp.float32) for p, a in drawn.items()}, sep="/")


def flat(params):
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}


def train(optimizer, steps, params=None, grads=tree):
    """The parameters before the first step and after each."""
    params = tree(0) if params is None else params
    state, history = optimizer.init(params), [flat(params)]
    for step in range(steps):
        updates, state = optimizer.update(grads(step + 1), state, params)
        params = optax.apply_updates(params, updates)
        history.append(flat(params))
    return history


def moved(before, after):
    return {path for path in before if (before[path] != after[path]).any()}


def test_l2_sp_is_descent_on_the_loss_with_the_distance_to_the_start():
    weight, zero = 0.5, lambda step: jax.tree.map(jnp.zeros_like, tree(0))
    pushed = train(l2_sp(RATE, optimizer=optax.sgd, weight=weight), 3)
    start = position = flat(tree(0))
    for step in range(3):
        gradient = flat(tree(step + 1))
        position = {
            p: x - RATE * (gradient[p] + 2 * weight * (x - start[p])) for p, x in position.items()
        }
        for path, wanted in position.items():
            np.testing.assert_allclose(pushed[step + 1][path], wanted, rtol=1e-5, atol=1e-6)
    # Without a gradient the start is where it stays.
    rests = train(l2_sp(RATE, optimizer=optax.sgd, weight=weight), 2, grads=zero)
    assert moved(rests[0], rests[-1]) == set()


def test_mofo_updates_the_share_of_each_array_with_the_largest_momentum():
    beta = 0.9
    history = train(mofo(RATE, optimizer=optax.sgd, share=0.2, beta1=beta), 3)
    momentum = {path: np.zeros_like(a) for path, a in history[0].items()}
    for step in range(3):
        gradient = flat(tree(step + 1))
        for path, array in momentum.items():
            momentum[path] = beta * array + (1 - beta) * gradient[path]
            size = np.abs(momentum[path])
            chosen = size >= np.sort(size, axis=None)[-int(np.ceil(0.2 * size.size))]
            before, after = history[step][path], history[step + 1][path]
            assert ((before != after) == chosen).all()
            assert chosen.sum() == np.ceil(0.2 * size.size)
            wanted = (before - RATE * gradient[path])[chosen]
            np.testing.assert_allclose(after[chosen], wanted, rtol=1e-5)


def test_half_fine_tuning_lets_half_of_the_matrices_stand_still_each_round():
    history = train(half_fine_tuning(RATE, optimizer=optax.sgd, round_steps=2), 6)
    others = {p for p in PATHS if not p.endswith("kernel")}
    rounds = []
    for first in (0, 2, 4):
        once, again = (moved(history[n], history[n + 1]) for n in (first, first + 1))
        assert once == again
        assert others < once
        assert len(once - others) == 4
        rounds.append(frozenset(once))
    assert len(set(rounds)) > 1
    kept = train(half_fine_tuning(RATE, optimizer=optax.sgd), 4)
    assert moved(kept[0], kept[-1]) == moved(kept[0], kept[1]) == rounds[0]
    other = train(half_fine_tuning(RATE, optimizer=optax.sgd, seed=3), 1)
    assert moved(*other) != rounds[0]
    # What trains moves as it would if everything did.
    plain = train(adafactor(RATE), 1)[-1]
    halved = train(half_fine_tuning(RATE), 1)
    for path, array in halved[-1].items():
        np.testing.assert_array_equal(array, (plain if path in rounds[0] else halved[0])[path])


@pytest.mark.parametrize("rule", [mofo, half_fine_tuning])
def test_each_layer_of_a_scanned_stack_is_a_matrix_of_its_own(rule):
    def stacked(seed):
        layers = flat(tree(seed))
        return unflatten_dict({
            f"encoder/encoder/mlp/{name}/kernel": jnp.stack(
                [layers[f"encoder/layers_{i}/mlp/{name}/kernel"] for i in range(4)], axis=1
            )
            for name in ("wi", "wo")
        }, sep="/")  # fmt: skip

    history = train(rule(RATE, optimizer=optax.sgd), 2, stacked(0), stacked)
    changes = {path: np.moveaxis(history[0][path] != history[1][path], 1, 0) for path in history[0]}
    if rule is half_fine_tuning:
        layers = [change for stack in changes.values() for change in stack]
        assert all(layer.all() or not layer.any() for layer in layers)
        assert sum(layer.any() for layer in layers) == 4
    else:
        plain = train(mofo(RATE, optimizer=optax.sgd), 1)
        for path, stack in changes.items():
            for i, layer in enumerate(stack):
                own = path.replace("encoder/encoder", f"encoder/layers_{i}")
                np.testing.assert_array_equal(layer, plain[0][own] != plain[1][own])


@pytest.mark.parametrize(
    "rule", [lambda rate: l2_sp(rate, weight=0.0), lambda rate: mofo(rate, share=1.0)]
)
def test_off_is_the_optimizer_itself_bit_for_bit(rule):
    found, wanted = train(rule(RATE), 3), train(adafactor(RATE), 3)
    assert moved(found[-1], wanted[-1]) == set()


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match=r"mofo.share is 1.5"):
        mofo(RATE, share=1.5)
    with pytest.raises(UserError, match=r"l2_sp.weight must be a finite number"):
        l2_sp(RATE, weight=-1.0)
    with pytest.raises(UserError, match="none of them trains"):
        half_fine_tuning(RATE).init({"encoder": {"prompt": {"prompt": jnp.zeros((1, 2, 3))}}})
