"""Adafactor against a float64 reference, against T5X's own 20 steps, and scanned against not."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scan_helpers import scan_params, unscan_params

from promot_t5x.errors import UserError
from promot_t5x.models.loss import token_loss
from promot_t5x.network.scan import layer_axis
from promot_t5x.network.transformer import T5Config, Transformer
from promot_t5x.training.adafactor import HParamMap, adafactor

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES = {
    "encoder/layers_0/mlp/wi_0/kernel": (4, 6),
    "encoder/layers_0/mlp/wo/kernel": (6, 4),
    "encoder/layers_0/attention/query/kernel": (4, 4),
    "encoder/relpos_bias/rel_embedding": (2, 8),
    "encoder/encoder_norm/scale": (4,),
}


def flat(tree):
    return flatten_dict(tree, sep="/")


def nested(leaves):
    return unflatten_dict(leaves, sep="/")


def random_tree(seed, shapes=SHAPES, scale=1.0):
    rng = np.random.default_rng(seed)
    return nested({
        path: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
        for path, shape in shapes.items()
    })  # fmt: skip


def run(optimizer, params, gradients, state=None):
    state = optimizer.init(params) if state is None else state
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def reference_run(params, gradients, min_size, lr, start=0, offset=0, clip=1.0, beta1=None,
                  scaled=True, decay=0.8, weight_decay=0.0, least=1e-3, most=np.inf):  # fmt: skip
    """One array, float64, from the paper's formulas: V = row sums x column sums / total."""
    p = np.asarray(params, np.float64)
    v, m = np.zeros_like(p), np.zeros_like(p)
    row = np.zeros(p.shape[:1]), np.zeros(p.shape[1:])
    for t, g in enumerate(gradients, start + 1 - offset):
        g, d = np.asarray(g, np.float64), 1 - t**-decay
        square = g * g + 1e-30
        if p.ndim == 2 and min(p.shape) >= min_size:
            row = (d * row[0] + (1 - d) * square.sum(1), d * row[1] + (1 - d) * square.sum(0))
            v = np.outer(*row) / row[0].sum()
        else:
            v = d * v + (1 - d) * square
        u = g / np.sqrt(v)
        u = u / max(1, rms(u) / clip) if clip else u
        size = min(max(rms(p), least), most) if scaled else 1.0
        step = lr(t - 1 + offset) * size * u
        m = step if beta1 is None else beta1 * m + (1 - beta1) * step
        p = p - m - weight_decay * p
    return p


SETTINGS = {
    "plain": ({}, {}),
    "unfactored": ({"factored": False}, {"min_size": 99}),
    "unscaled": ({"multiply_by_parameter_scale": False}, {"scaled": False}),
    "momentum": ({"beta1": 0.9}, {"beta1": 0.9}),
    "decay": ({"decay_rate": 0.6, "clipping_threshold": None}, {"decay": 0.6, "clip": None}),
    "clip": ({"clipping_threshold": 0.3}, {"clip": 0.3}),
    "weights": ({"weight_decay_rate": 0.01}, {"weight_decay": 0.01}),
    "exponent": ({"weight_decay_rate_lr_exponent": 2.0}, {"weight_decay": 0.05**2}),
    "both": (
        {"weight_decay_rate_lr_exponent": 2.0, "weight_decay_rate": 3.0},
        {"weight_decay": 3 * 0.05**2},
    ),
    "sizes": ({"epsilon2": 0.9, "max_parameter_scale": 1.1}, {"least": 0.9, "most": 1.1}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_a_float64_reference(name):
    settings, changed = SETTINGS[name]
    params, gradients = random_tree(0), [random_tree(i, scale=i) for i in range(1, 8)]
    optimizer = adafactor(0.05, **({"min_dim_size_to_factor": 4} | settings))
    final, _ = run(optimizer, params, gradients)
    columns = [flat(tree) for tree in gradients]
    for path, start in flat(params).items():
        arguments = {"min_size": 4, "lr": lambda t: 0.05} | changed
        expected = reference_run(start, [g[path] for g in columns], **arguments)
        np.testing.assert_allclose(flat(final)[path], expected, rtol=2e-6, atol=2e-6, err_msg=path)


def test_schedule_is_evaluated_at_the_count_and_offset_moves_only_the_decay():
    params, gradients = random_tree(0), [random_tree(i, scale=i) for i in range(1, 6)]
    columns = [flat(tree) for tree in gradients]
    for offset in (0, 1000):
        optimizer = adafactor(
            learning_rate=lambda t: 0.1 / (t - 998), min_dim_size_to_factor=4, step_offset=offset
        )
        state = optimizer.init(params)._replace(count=jnp.int32(1000))
        final, state = run(optimizer, params, gradients, state)
        assert state.count == 1005
        for path, start in flat(params).items():
            expected = reference_run(
                start, [g[path] for g in columns], min_size=4, lr=lambda t: 0.1 / (t - 998),
                start=1000, offset=offset,
            )  # fmt: skip
            np.testing.assert_allclose(flat(final)[path], expected, rtol=3e-6, atol=3e-6)


def test_a_late_start_without_offset_clips_every_update():
    """The docstring's "Starting late": RMS of every step is the learning rate, whatever comes."""
    params = {"encoder": {"prompt": {"prompt": jnp.zeros((1, 10, 8))}}}
    rng = np.random.default_rng(0)
    shrinking = [
        jax.tree.map(lambda p, s=s: jnp.asarray(s * rng.normal(size=p.shape), jnp.float32), params)
        for s in 0.5 ** np.arange(6)
    ]

    def step_sizes(offset):
        optimizer = adafactor(0.3, multiply_by_parameter_scale=False, step_offset=offset)
        state = optimizer.init(params)._replace(count=jnp.int32(1_100_000))
        sizes = []
        for gradient in shrinking:
            updates, state = optimizer.update(gradient, state, params)
            sizes.append(rms(jax.tree.leaves(updates)[0]))
        return np.array(sizes)

    np.testing.assert_allclose(step_sizes(0), 0.3, rtol=1e-4)
    assert step_sizes(1_100_000)[-1] < 0.1


def test_global_norm_clipping_is_over_the_whole_tree():
    params, gradient = random_tree(0), random_tree(1, scale=10)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    # Large epsilon1 makes Adafactor's own step depend on the gradient's scale.
    settings = {"epsilon1": 1.0, "clipping_threshold": None, "min_dim_size_to_factor": 4}
    clipped, _ = run(adafactor(0.1, global_norm_clip_threshold=2.0, **settings), params, [gradient])
    by_hand = jax.tree.map(lambda g: g * 2 / norm, gradient)
    expected, _ = run(adafactor(0.1, **settings), params, [by_hand])
    loose, _ = run(adafactor(0.1, global_norm_clip_threshold=1e9, **settings), params, [gradient])
    untouched, _ = run(adafactor(0.1, **settings), params, [gradient])
    for a, b in ((clipped, expected), (loose, untouched)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)
    assert not np.allclose(jax.tree.leaves(clipped)[0], jax.tree.leaves(untouched)[0], atol=1e-4)


def test_skip_nan_updates_keeps_what_would_become_nan():
    params, gradient = random_tree(0), random_tree(1)
    bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), gradient)
    optimizer = adafactor(0.1, skip_nan_updates=True)
    once, state = run(optimizer, params, [gradient])
    after, after_state = run(optimizer, once, [bad], state)
    jax.tree.map(np.testing.assert_array_equal, after, once)
    jax.tree.map(np.testing.assert_array_equal, after_state[1:], state[1:])
    plain, _ = run(adafactor(0.1), once, [bad])
    assert np.isnan(jax.tree.leaves(plain)[0]).all()


SLOTS = {
    "token_embedder/embedding": ((384, 128), {"v_row": (128,), "v_col": (384,)}),
    "decoder/logits_dense/kernel": ((128, 384), {"v_row": (128,), "v_col": (384,)}),
    "encoder/layers_0/attention/query/kernel": ((128, 128), {"v_row": (128,), "v_col": (128,)}),
    "encoder/layers_0/mlp/wi/kernel": ((127, 256), {"v": (127, 256)}),
    "encoder/encoder_norm/scale": ((768,), {"v": (768,)}),
    "encoder/encoder/mlp/wi_0/kernel": (
        (768, 12, 2048),
        {"v_row": (768, 12), "v_col": (12, 2048)},
    ),
    "encoder/encoder/mlp/wo/kernel": (
        (2048, 12, 768),
        {"v_row": (12, 768), "v_col": (2048, 12)},
    ),
    "decoder/decoder/self_attention/key/kernel": (
        (512, 8, 6, 64),
        {"v_row": (512, 8), "v_col": (8, 6, 64)},
    ),
    "decoder/decoder/self_attention/out/kernel": (
        (6, 8, 64, 512),
        {"v_row": (8, 512), "v_col": (6, 8, 64)},
    ),
    "encoder/encoder/pre_mlp_layer_norm/scale": ((768, 12), {"v": (768, 12)}),
    "encoder/prompt/prompt": ((3, 200, 512), {"v": (3, 200, 512)}),
}


@pytest.mark.parametrize("path", SLOTS)
def test_slots_have_the_shapes_of_t5x(path):
    shape, slots = SLOTS[path]
    params = nested({path: jnp.zeros(shape)})
    state = jax.eval_shape(adafactor(0.1, beta1=0.9).init, params)
    expected = {"v": (1,), "v_row": (1,), "v_col": (1,), "m": shape} | slots
    actual = {name: flat(getattr(state, name))[path] for name in expected}
    assert {name: slot.shape for name, slot in actual.items()} == expected
    assert {slot.dtype for slot in actual.values()} == {jnp.dtype("float32")}
    plain = adafactor(0.1).init(params)
    assert flat(plain.m)[path].shape == (1,)
    assert plain.count.dtype == jnp.int32


def test_step_keeps_every_shape_and_type_of_the_state():
    params = nested({
        "encoder/encoder/mlp/wi_0/kernel": jnp.ones((4, 2, 6), jnp.bfloat16),
        "encoder/encoder_norm/scale": jnp.ones(4),
    })  # fmt: skip
    optimizer = adafactor(0.1, min_dim_size_to_factor=2)
    new_params, state = run(optimizer, params, [params])
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), *(
        (new_params, state), (params, optimizer.init(params))
    ))  # fmt: skip
    assert all(jax.tree.leaves(same))


STACKED = {
    "mlp/wi_0/kernel": ((4, 6), 1),
    "mlp/wo/kernel": ((6, 4), 1),
    "attention/query/kernel": ((4, 5), 1),
    "attention/out/kernel": ((5, 4), 1),
    "pre_mlp_layer_norm/scale": ((4,), 1),
}


@pytest.mark.parametrize("minimum", [2, 5, 128])
def test_stacked_layers_are_updated_one_by_one(minimum):
    """Layers of very different sizes: any mean across them would show."""
    layers, settings = (
        3,
        {"min_dim_size_to_factor": minimum, "beta1": 0.5, "clipping_threshold": 0.5},
    )

    def trees(seed):
        rng = np.random.default_rng(seed)
        single, stacked = {}, {}
        for name, (shape, axis) in STACKED.items():
            arrays = [10.0**i * rng.normal(size=shape).astype(np.float32) for i in range(layers)]
            single |= {f"decoder/layers_{i}/{name}": jnp.asarray(a) for i, a in enumerate(arrays)}
            stacked[f"decoder/decoder/{name}"] = jnp.asarray(np.stack(arrays, axis))
        return nested(single), nested(stacked)

    (single, stacked), *gradients = (trees(seed) for seed in range(6))
    optimizer = adafactor(0.1, **settings)
    one_by_one, _ = run(optimizer, single, [g[0] for g in gradients])
    together, _ = run(optimizer, stacked, [g[1] for g in gradients])
    for name, (_, axis) in STACKED.items():
        expected = np.stack(
            [flat(one_by_one)[f"decoder/layers_{i}/{name}"] for i in range(layers)], axis
        )
        actual = flat(together)[f"decoder/decoder/{name}"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5, err_msg=name)
        assert layer_axis(f"decoder/decoder/{name}") == axis


def test_prompts_of_different_tasks_do_not_touch():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(3, 5, 4)) * [[[1.0]], [[100.0]], [[0.01]]], jnp.float32)
    gradients = [jnp.asarray(rng.normal(size=(3, 5, 4)) * 10.0**i, jnp.float32) for i in range(4)]

    def prompt(x):
        return {"encoder": {"prompt": {"prompt": x}}}

    optimizer = adafactor(0.1, min_dim_size_to_factor=2)
    together, state = run(optimizer, prompt(table), map(prompt, gradients))
    for k in range(3):
        alone, _ = run(
            optimizer, prompt(table[k : k + 1]), [prompt(g[k : k + 1]) for g in gradients]
        )
        a, b = (flat(tree)["encoder/prompt/prompt"] for tree in (together, alone))
        np.testing.assert_array_equal(a[k], b[0])
    # prompt-tuning's own [length, embed] prompt: one prompt, not factored either.
    single, state = run(optimizer, {"prompt": table[0]}, [{"prompt": g[0]} for g in gradients])
    np.testing.assert_allclose(
        single["prompt"], flat(together)["encoder/prompt/prompt"][0], rtol=1e-6
    )
    assert state.v["prompt"].shape == (5, 4)


def test_scale_rules_are_searched_in_order():
    params, gradient = random_tree(0, scale=5.0), random_tree(1)
    rules = [("mlp/w.*kernel", False), ("layers_0", True), (".*", False)]
    scaled, _ = run(adafactor(0.1), params, [gradient])
    unscaled, _ = run(adafactor(0.1, multiply_by_parameter_scale=False), params, [gradient])
    for given in (rules, HParamMap(rules)):
        mixed, _ = run(adafactor(0.1, multiply_by_parameter_scale=given), params, [gradient])
        for path, value in flat(mixed).items():
            source = scaled if path.endswith("query/kernel") else unscaled
            np.testing.assert_array_equal(value, flat(source)[path])
    assert not np.allclose(jax.tree.leaves(scaled)[0], jax.tree.leaves(unscaled)[0])


def test_mistakes_are_user_errors():
    params = random_tree(0)
    with pytest.raises(UserError, match=r"'encoder/encoder_norm/scale'.*'kernel.rel'"):
        adafactor(0.1, multiply_by_parameter_scale=[("kernel|rel", True)]).init(
            {"encoder": {"encoder_norm": {"scale": jnp.ones(3)}}}
        )
    with pytest.raises(UserError, match="not a regular expression"):
        adafactor(0.1, multiply_by_parameter_scale=[("*", True)])
    three = {"attention": {"kernel": jnp.ones((4, 2, 3))}}
    with pytest.raises(UserError, match="'attention/kernel'.*factored=False"):
        adafactor(0.1).init(three)
    adafactor(0.1, factored=False).init(three)
    with pytest.raises(ValueError, match="needs the parameters"):
        adafactor(0.1).update(params, adafactor(0.1).init(params))


def test_works_inside_optax_chains_and_masks():
    params, gradient = random_tree(0), random_tree(1)
    mask = nested({path: "mlp" in path for path in SHAPES})
    final, _ = run(optax.masked(optax.chain(adafactor(0.1)), mask), params, [gradient])
    expected, _ = run(adafactor(0.1), params, [gradient])
    for path, value in flat(final).items():
        want = flat(expected)[path] if "mlp" in path else flat(params)[path] + flat(gradient)[path]
        np.testing.assert_array_equal(value, want)
    empty = adafactor(0.1).init({})
    assert adafactor(0.1).update({}, empty, {})[0] == {}


def golden(name):
    arrays = np.load(GOLDEN / f"{name}.npz")
    described = json.loads((GOLDEN / f"{name}.json").read_text())

    def tree(prefix):
        return nested({
            key.removeprefix(prefix): jnp.asarray(arrays[key])
            for key in arrays.files if key.startswith(prefix)
        })  # fmt: skip

    config = described["config"] | {
        "mlp_activations": tuple(described["config"]["mlp_activations"])
    }
    return described, T5Config(**config), tree, arrays["train/losses"]


def train_20_steps(config, params, batch, described, chunk_tokens):
    model = Transformer(config=config)

    def loss(params):
        def project(hidden):
            return model.apply({"params": params}, hidden, method=model.logits)

        hidden = model.apply(
            {"params": params}, batch["encoder_input_tokens"], batch["decoder_input_tokens"],
            batch["decoder_target_tokens"], enable_dropout=False, method=model.hidden,
        )  # fmt: skip
        sums = token_loss(
            project, hidden, batch["decoder_target_tokens"], batch["decoder_loss_weights"],
            z_loss=described["z_loss"], label_smoothing=described["label_smoothing"],
            chunk_tokens=chunk_tokens,
        )  # fmt: skip
        return sums.total

    optimizer = adafactor(**described["adafactor"])

    @jax.jit
    def step(params, state):
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(20):
        params, state, value = step(params, state)
        losses.append(float(value))
    return params, losses


def worst_deviation(actual, expected):
    actual, expected = flat(actual), flat(expected)
    assert actual.keys() == expected.keys()
    return max(
        np.abs(actual[path] - value).max() / np.abs(value).max() for path, value in expected.items()
    )


@pytest.mark.parametrize("name", ["t5x_t5_1_1", "t5x_t5_1_0"])
def test_twenty_steps_equal_those_of_t5x(name):
    described, config, tree, golden_losses = golden(name)
    params, batch = tree("params/"), tree("batch/unpacked/")
    final, losses = train_20_steps(config, params, batch, described, chunk_tokens=20)
    np.testing.assert_allclose(losses, golden_losses, rtol=1e-5)
    assert worst_deviation(final, tree("train/params20/")) < 1e-5
    assert worst_deviation(params, tree("train/params20/")) > 1e-3  # they did move


def test_twenty_scanned_steps_equal_those_of_t5x():
    described, config, tree, golden_losses = golden("t5x_t5_1_1")
    config = config.replace(scan_layers=True)
    params = scan_params(tree("params/"))
    assert any(layer_axis(path) == 1 for path in flat(params))
    final, losses = train_20_steps(
        config, params, tree("batch/unpacked/"), described, chunk_tokens=10**6
    )
    np.testing.assert_allclose(losses, golden_losses, rtol=1e-5)
    assert worst_deviation(unscan_params(final), tree("train/params20/")) < 1e-5
