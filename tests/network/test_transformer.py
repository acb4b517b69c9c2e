"""The network against T5X's numbers, and every way of running it against the plain one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from scan_helpers import scan_params, unscan_params

from promot_t5x.errors import UserError
from promot_t5x.network.attention import Attention
from promot_t5x.network.layers import OffsetBiasInit, RelativePositionBias, relative_position_bucket
from promot_t5x.network.parameters import initial_params, param_axes, param_shapes
from promot_t5x.network.transformer import T5Config, Transformer

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 2e-5
PROJECTIONS = ("cross_key_values", "logits")


def relative_error(actual, expected):
    """Largest difference over the largest magnitude."""
    expected = np.asarray(expected)
    return np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max()


def assert_trees_close(actual, expected, tolerance):
    actual, expected = flatten_dict(actual, sep="/"), flatten_dict(expected, sep="/")
    assert actual.keys() == expected.keys()
    errors = {path: relative_error(actual[path], leaf) for path, leaf in expected.items()}
    worst = max(errors, key=errors.get)
    assert errors[worst] <= tolerance, f"{worst} is off by {errors[worst]:.2g}"


def summed_loss(logits, targets, weights):
    """T5X's training loss: cross-entropy with z-loss, summed over tokens."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jnp.sum((log_z - chosen + 1e-4 * log_z**2) * weights)


def value_and_grads(config, params, batch, weights):
    """((loss, logits), gradients), compiled."""
    module = Transformer(config)

    def loss(params):
        logits = module.apply({"params": params}, **batch, enable_dropout=False)
        return summed_loss(logits, batch["decoder_target_tokens"], weights), logits

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def run(config, params, method, *arrays, **options):
    """One method of the network, compiled, without dropout unless the options say otherwise."""
    options = {"enable_dropout": False, **options} if method not in PROJECTIONS else options

    @jax.jit
    def call(params, arrays):
        return Transformer(config).apply(
            {"params": params}, *arrays, method=getattr(Transformer, method), **options
        )

    return call(params, arrays)


class Golden:
    """One golden file: its config, its parameters, its batches and what upstream made of them."""

    def __init__(self, name):
        described = json.loads((GOLDEN / f"{name}.json").read_text())
        self.config = T5Config(**described["config"])
        self.axes = described["param_axes"]
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)
        self.params = self.tree("params/")

    def tree(self, prefix):
        return unflatten_dict(
            {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)},
            sep="/",
        )

    def batch(self, kind):
        """(features of the network, loss weights)."""
        batch = self.tree(f"batch/{kind}/")
        weights = batch.pop("decoder_loss_weights")
        return batch, weights


@pytest.fixture(scope="module", params=["t5x_t5_1_1", "t5x_t5_1_0"])
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope="module")
def t5_1_1():
    return Golden("t5x_t5_1_1")


@pytest.fixture(scope="module")
def plain(t5_1_1):
    """Loss, logits and gradients of the plain network on the packed batch."""
    return value_and_grads(t5_1_1.config, t5_1_1.params, *t5_1_1.batch("packed"))


@pytest.mark.parametrize("kind", ["unpacked", "packed"])
def test_logits_loss_and_gradients_are_upstreams(golden, kind):
    (loss, logits), grads = value_and_grads(golden.config, golden.params, *golden.batch(kind))
    assert relative_error(logits, golden.arrays[f"logits/{kind}"]) <= TOLERANCE
    assert relative_error(loss, golden.arrays[f"loss/{kind}"]) <= TOLERANCE
    assert_trees_close(grads, golden.tree(f"grads/{kind}/"), TOLERANCE)


def test_parameter_tree_and_axes_are_upstreams(golden):
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), param_shapes(golden.config))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), golden.params)
    flat = flatten_dict(param_axes(golden.config), sep="/")
    assert {f"{path}_axes": list(names) for path, names in flat.items()} == golden.axes
    # Collections as upstream's training loop reads them.
    tokens = jax.ShapeDtypeStruct((2, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda ids: Transformer(golden.config).init(jax.random.key(0), ids, ids, ids), tokens
    )
    assert set(variables) == {"params", "params_axes"}
    named = flatten_dict(variables["params_axes"], sep="/")
    assert {path: list(axes.names) for path, axes in named.items()} == golden.axes


def test_initial_values_have_t5s_scales():
    config = T5Config(
        vocab_size=400, emb_dim=256, num_heads=8, head_dim=16, mlp_dim=512, num_encoder_layers=1,
        num_decoder_layers=1,
    )  # fmt: skip
    params, _ = initial_params(config, jax.random.key(1))
    flat = flatten_dict(params, sep="/")
    expected = {
        "token_embedder/embedding": 1.0,
        "encoder/layers_0/attention/query/kernel": 1 / np.sqrt(256 * 16),
        "encoder/layers_0/attention/key/kernel": 1 / np.sqrt(256),
        "decoder/layers_0/encoder_decoder_attention/out/kernel": 1 / np.sqrt(128),
        "decoder/layers_0/mlp/wo/kernel": 1 / np.sqrt(512),
        "decoder/logits_dense/kernel": 1 / np.sqrt(256),
        "encoder/relpos_bias/rel_embedding": 1 / np.sqrt((8 + 32) / 2),
    }
    for path, deviation in expected.items():
        assert np.std(flat[path]) == pytest.approx(deviation, rel=0.1), path
    assert (flat["encoder/encoder_norm/scale"] == 1).all()


@pytest.mark.parametrize(
    ("scan", "policy"),
    [(True, "none"), (True, "minimal"), (True, "full"), (False, "minimal"), (False, "full")],
)
def test_scanning_and_recomputing_change_no_number(t5_1_1, plain, scan, policy):
    config = t5_1_1.config.replace(scan_layers=scan, remat_policy=policy)
    params = scan_params(t5_1_1.params) if scan else t5_1_1.params
    (loss, logits), grads = value_and_grads(config, params, *t5_1_1.batch("packed"))
    (plain_loss, plain_logits), plain_grads = plain
    assert relative_error(logits, plain_logits) <= 1e-6
    assert relative_error(loss, plain_loss) <= 1e-6
    assert_trees_close(unscan_params(grads) if scan else grads, plain_grads, 2e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_recomputing_keeps_less(t5_1_1, scan):
    """The policies differ in what a forward pass keeps for the backward pass."""
    batch, _ = t5_1_1.batch("unpacked")
    kept = {}
    for policy in ("none", "minimal", "full"):
        config = t5_1_1.config.replace(scan_layers=scan, remat_policy=policy)
        params = scan_params(t5_1_1.params) if scan else t5_1_1.params

        def forward(params, config=config):
            return Transformer(config).apply({"params": params}, **batch, enable_dropout=False)

        residuals = jax.eval_shape(lambda p, f=forward: jax.vjp(f, p)[1], params)
        kept[policy] = sum(leaf.size for leaf in jax.tree.leaves(residuals))
    assert kept["none"] > kept["minimal"] > kept["full"]


def test_scanned_parameters_have_a_layers_axis(t5_1_1):
    config = t5_1_1.config.replace(scan_layers=True)
    params, axes = initial_params(config, jax.random.key(0))
    flat, names = flatten_dict(params, sep="/"), flatten_dict(axes, sep="/")
    assert flat.keys() == names.keys()
    assert all(flat[path].ndim == len(names[path]) for path in flat)
    query = "encoder/encoder/attention/query/kernel"
    assert (flat[query].shape, names[query]) == ((32, 2, 32), ("embed", "layers", "joined_kv"))
    scale = "decoder/decoder/pre_mlp_layer_norm/scale"
    assert (flat[scale].shape, names[scale]) == ((32, 2), ("embed", "layers"))
    bias = "encoder/relpos_bias/rel_embedding"
    assert (flat[bias].shape, names[bias]) == ((4, 32), ("heads", "relpos_buckets"))
    # Layers are drawn independently.
    assert not np.array_equal(flat[query][:, 0], flat[query][:, 1])


def encode_and_make_cache(module, params, batch):
    """Upstream's preparation of decoding: (encoded, cache)."""
    ones = jnp.ones_like(batch["decoder_input_tokens"])

    @jax.jit
    def prepare(params, sources):
        encoded = module.apply(
            {"params": params}, sources, enable_dropout=False, method=module.encode
        )
        _, made = module.apply(
            {"params": params},
            encoder_input_tokens=jnp.ones_like(sources),
            decoder_input_tokens=ones,
            decoder_target_tokens=ones,
            mutable=["cache"],
            decode=True,
            enable_dropout=False,
        )
        return encoded, made["cache"]

    return prepare(params, batch["encoder_input_tokens"])


def decode_by_steps(module, params, cache, encoded, sources, ids, **options):
    """Logits of ids given one at a time, as upstream's decoding calls the module."""
    length = ids.shape[1]

    @jax.jit
    def step(cache, token):
        logits, changed = module.apply(
            {"params": params, "cache": cache},
            encoded,
            sources,
            token,
            token,
            enable_dropout=False,
            decode=True,
            max_decode_length=length,
            mutable=["cache"],
            method=module.decode,
            **options,
        )
        return changed["cache"], logits

    steps = []
    for i in range(length):
        cache, logits = step(cache, ids[:, i : i + 1])
        steps.append(logits)
    return jnp.concatenate(steps, axis=1), cache


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_by_steps_equals_the_full_pass(t5_1_1, scan):
    config = t5_1_1.config.replace(scan_layers=scan)
    params = scan_params(t5_1_1.params) if scan else t5_1_1.params
    module = Transformer(config)
    assert module.scan_layers is scan
    batch, _ = t5_1_1.batch("unpacked")
    # No padding among the targets: a full pass masks what follows one.
    ids = np.maximum(batch["decoder_input_tokens"], 3)
    encoded, cache = encode_and_make_cache(module, params, batch)
    sources = batch["encoder_input_tokens"]
    logits, cache = decode_by_steps(module, params, cache, encoded, sources, ids)
    full = run(config, params, "__call__", sources, ids, ids)
    assert relative_error(logits, full) <= 2e-6
    path = "decoder/decoder" if scan else "decoder/layers_1"
    layers = (2,) if scan else ()
    flat = flatten_dict(cache, sep="/")
    assert flat[f"{path}/self_attention/cached_key"].shape == (*layers, 4, 4, 8, 12)
    assert flat[f"{path}/self_attention/cached_value"].shape == (*layers, 4, 4, 8, 12)
    index = flat[f"{path}/self_attention/cache_index"]
    assert (index.shape, index.dtype) == (layers, jnp.int32)
    assert (np.asarray(index) == 12).all()
    assert len(flat) == (3 if scan else 6)


def per_layer(golden, repeated=True):
    """umT5's network with the golden parameters: each layer has the stack's bias, or another."""
    config = golden.config.replace(relative_bias_per_layer=True)
    flat = flatten_dict(golden.params, sep="/")
    for stack in ("encoder", "decoder"):
        shared = flat.pop(f"{stack}/relpos_bias/rel_embedding")
        for i in range(2):
            own = shared if repeated else shared * (i - 0.5)
            flat[f"{stack}/layers_{i}/relpos_bias/rel_embedding"] = own
    return config, unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("scan", [False, True])
def test_a_bias_in_every_layer(t5_1_1, plain, scan):
    """Equal ones are the shared one, in the loss and in what they sum up to in its gradient."""
    config, params = per_layer(t5_1_1)
    config = config.replace(scan_layers=scan)
    shapes = jax.tree.map(lambda leaf: leaf.shape, param_shapes(config))
    params = scan_params(params) if scan else params
    assert jax.tree.map(np.shape, params) == shapes
    if scan:
        path = ("decoder", "decoder", "relpos_bias", "rel_embedding")
        assert flatten_dict(shapes)[path] == (4, 2, 32)
        assert flatten_dict(param_axes(config))[path] == ("heads", "layers", "relpos_buckets")
    (loss, logits), grads = value_and_grads(config, params, *t5_1_1.batch("packed"))
    (plain_loss, plain_logits), plain_grads = plain
    assert relative_error(loss, plain_loss) <= 1e-6
    assert relative_error(logits, plain_logits) <= 1e-6
    flat = flatten_dict(unscan_params(grads) if scan else grads, sep="/")
    for stack in ("encoder", "decoder"):
        parts = [flat.pop(f"{stack}/layers_{i}/relpos_bias/rel_embedding") for i in range(2)]
        assert relative_error(parts[0], parts[1]) > 0.1
        flat[f"{stack}/relpos_bias/rel_embedding"] = sum(parts)
    assert_trees_close(unflatten_dict(flat, sep="/"), plain_grads, 2e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_with_a_bias_in_every_layer(t5_1_1, scan):
    config, params = per_layer(t5_1_1, repeated=False)
    config = config.replace(scan_layers=scan)
    params = scan_params(params) if scan else params
    batch, _ = t5_1_1.batch("unpacked")
    sources, ids = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    targets = np.where(ids == 0, 7, ids)  # no padding: a decoding step never sees any
    taught = run(config, params, "__call__", sources, ids, targets)
    module = Transformer(config)
    encoded, cache = encode_and_make_cache(module, params, batch)
    stepped, _ = decode_by_steps(module, params, cache, encoded, sources, ids)
    assert relative_error(stepped, taught) <= 1e-6
    assert relative_error(taught, t5_1_1.arrays["logits/unpacked"]) > 0.01


@pytest.mark.parametrize(("scan", "beams"), [(False, 1), (False, 3), (True, 3)])
def test_beams_share_keys_and_values(t5_1_1, scan, beams):
    config = t5_1_1.config.replace(scan_layers=scan)
    params = scan_params(t5_1_1.params) if scan else t5_1_1.params
    module = Transformer(config)
    batch, _ = t5_1_1.batch("unpacked")
    sources = batch["encoder_input_tokens"][:2]
    encoded = run(config, params, "encode", sources)
    cross = run(config, params, "cross_key_values", encoded)
    shapes = {leaf.shape for leaf in jax.tree.leaves(cross)}
    assert shapes == {(2, 2, 4, 8, 24) if scan else (2, 4, 8, 24)}

    # Every beam has tokens of its own. Upstream repeats the inputs and projects in each step.
    ids = np.random.default_rng(0).integers(3, 384, (2 * beams, 12), np.int32)
    repeated = {
        "encoder_input_tokens": np.repeat(sources, beams, axis=0),
        "decoder_input_tokens": ids,
    }
    many_encoded, cache = encode_and_make_cache(module, params, repeated)
    many_sources = repeated["encoder_input_tokens"]
    plain, _ = decode_by_steps(module, params, cache, many_encoded, many_sources, ids)
    shared, _ = decode_by_steps(module, params, cache, None, sources, ids, cross_key_values=cross)
    assert relative_error(shared, plain) <= 1e-6

    # With teacher forcing, padding included, as in scoring several targets of one input.
    ids[:, 9:] = 0
    plain = run(config, params, "__call__", many_sources, ids, ids)
    shared = run(config, params, "decode", None, sources, ids, ids, cross_key_values=cross)
    assert relative_error(shared, plain) <= 1e-6


def test_hidden_and_logits_are_the_call_in_two(golden):
    batch, _ = golden.batch("packed")
    hidden = run(golden.config, golden.params, "hidden", **batch)
    assert hidden.shape == (4, 12, 32)
    parts = [
        run(golden.config, golden.params, "logits", chunk)
        for chunk in (hidden[:, :6], hidden[:, 6:])
    ]
    logits = np.concatenate(parts, axis=1)
    assert relative_error(logits, golden.arrays["logits/packed"]) <= TOLERANCE


@pytest.mark.parametrize("scan", [False, True])
def test_bfloat16_activations(t5_1_1, scan):
    config = t5_1_1.config.replace(dtype="bfloat16", scan_layers=scan, remat_policy="minimal")
    params = scan_params(t5_1_1.params) if scan else t5_1_1.params
    batch, weights = t5_1_1.batch("packed")
    (_, logits), grads = value_and_grads(config, params, batch, weights)
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    assert relative_error(logits, t5_1_1.arrays["logits/packed"]) <= 0.05
    encoded, cache = encode_and_make_cache(Transformer(config), params, batch)
    assert encoded.dtype == jnp.bfloat16
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(cache)} == {"bfloat16", "int32"}


def test_weights_stored_in_bfloat16(golden):
    batch, _ = golden.batch("packed")
    config = golden.config.replace(dtype="bfloat16")
    halves = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), golden.params)
    logits = run(config, halves, "__call__", **batch)
    assert logits.dtype == jnp.float32
    assert relative_error(logits, golden.arrays["logits/packed"]) <= 0.05


@pytest.mark.parametrize("precise", [False, True])
def test_attention_logits_in_float32(precise):
    config = T5Config(
        vocab_size=8, num_heads=1, head_dim=2, dtype="bfloat16", float32_attention_logits=precise
    )
    query = jnp.asarray([16.0, 1.0], jnp.bfloat16).reshape(1, 1, 1, 2)
    # Logits of 257 and 256, which bfloat16 cannot tell apart.
    key = jnp.asarray([[16.0, 16.0], [1.0, 0.0]], jnp.bfloat16).reshape(1, 1, 2, 2)
    weights = Attention(config).apply({}, query, key, None, None, method="_weights")
    assert weights.dtype == jnp.bfloat16
    expected = 1 / (1 + np.exp(-1)) if precise else 0.5
    assert float(weights[0, 0, 0, 0]) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("scan", [False, True])
def test_dropout_is_drawn_from_its_rng_alone(t5_1_1, scan):
    config = t5_1_1.config.replace(dropout_rate=0.3, scan_layers=scan, remat_policy="full")
    params = scan_params(t5_1_1.params) if scan else t5_1_1.params
    batch, _ = t5_1_1.batch("unpacked")

    @jax.jit
    def logits(rng):
        return Transformer(config).apply({"params": params}, **batch, rngs={"dropout": rng})

    first = logits(jax.random.key(0))
    np.testing.assert_array_equal(first, logits(jax.random.key(0)))
    assert relative_error(logits(jax.random.key(1)), first) > 0.01
    off = run(config, params, "__call__", **batch)
    assert relative_error(off, t5_1_1.arrays["logits/unpacked"]) <= TOLERANCE


def test_dropout_is_shared_along_the_length_but_at_the_encoders_end(t5_1_1):
    config = t5_1_1.config.replace(dropout_rate=0.5)
    ids = np.full((1, 16), 5, np.int32)
    options = {"enable_dropout": True, "rngs": {"dropout": jax.random.key(0)}}
    encoded = run(config, t5_1_1.params, "encode", ids, **options)
    dropped = np.asarray(encoded)[0] == 0
    assert 0.35 < dropped.mean() < 0.65
    assert not (dropped == dropped[:1]).all()
    hidden = run(config, t5_1_1.params, "hidden", ids, ids, ids, **options)
    dropped = np.asarray(hidden)[0] == 0
    assert 0.2 < dropped.mean() < 0.8
    assert (dropped == dropped[:1]).all()


def test_misuse_of_decoding_is_refused(t5_1_1):
    module = Transformer(t5_1_1.config)
    batch, _ = t5_1_1.batch("packed")
    encoded, cache = encode_and_make_cache(module, t5_1_1.params, batch)
    sources, ids = batch["encoder_input_tokens"], batch["decoder_input_tokens"]
    segments = batch["encoder_segment_ids"]

    def decode(ids, **options):
        variables = {"params": t5_1_1.params, "cache": cache}

        def call(ids):
            return module.apply(
                variables, encoded, sources, ids, ids, enable_dropout=False,
                mutable=["cache"], method=module.decode, **options,
            )  # fmt: skip

        return jax.eval_shape(call, ids)

    with pytest.raises(ValueError, match="12 positions but max_decode_length is 9"):
        decode(ids[:, :1], decode=True, max_decode_length=9)
    with pytest.raises(ValueError, match="takes one position"):
        decode(ids, decode=True)
    with pytest.raises(ValueError, match="cannot be decoded"):
        decode(ids, decode=True, encoder_segment_ids=segments)
    with pytest.raises(ValueError, match="both the encoder and the decoder"):
        decode(ids, encoder_segment_ids=segments)
    cache = {}
    with pytest.raises(ValueError, match="3 query rows are no multiple of the 4"):
        decode(ids[:3, :1], decode=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remat_policy": "minimum"}, "'minimum'.*Did you mean 'minimal'"),
        ({"dtype": "float16"}, "'float16'.*'float32', 'bfloat16'"),
        ({"dtype": "no_such_type"}, "no_such_type"),
        ({"mlp_activations": ("gelo", "linear")}, "'gelo'.*Did you mean '.*elu'"),
        ({"mlp_activations": ()}, "empty"),
        ({"dropout_rate": 1.0}, r"\[0, 1\)"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"prompt_length": -1}, "prompt_length is -1"),
    ],
)
def test_bad_configs_are_the_users_to_mend(changes, message):
    with pytest.raises(UserError, match=message):
        T5Config(**{"vocab_size": 8, **changes})


def test_configs_are_values():
    config = T5Config(vocab_size=8, dtype="bfloat16", mlp_activations=["gelu", "linear"])
    same = T5Config(vocab_size=8, dtype=jnp.bfloat16, mlp_activations=("gelu", "linear"))
    assert config == same
    assert hash(config) == hash(same)
    assert config.replace(relpos_bias_init=OffsetBiasInit(strength=2.0)) == same.replace(
        relpos_bias_init=OffsetBiasInit(strength=2.0)
    )
    assert config != same.replace(scan_layers=True)
    assert not jax.tree.leaves(config)


def test_buckets():
    offsets = np.array([-500, -128, -20, -8, -7, -1, 0, 1, 7, 8, 20, 128, 500])
    both = relative_position_bucket(offsets, bidirectional=True)
    assert both.tolist() == [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31]
    causal = relative_position_bucket(offsets, bidirectional=False)
    assert causal.tolist() == [31, 31, 17, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0]


def test_offset_bias_makes_heads_look_at_offsets(t5_1_1):
    init = OffsetBiasInit(strength=7.0, encoder_offsets=(-1, 1), decoder_offsets=[0, -1, -2])
    config = t5_1_1.config.replace(relpos_bias_init=init)

    def table_and_bias(config, bidirectional):
        layer = RelativePositionBias(config, bidirectional)
        bias, variables = layer.init_with_output(jax.random.key(0), 6)
        return np.asarray(variables["params"]["rel_embedding"]), np.asarray(bias)[0]

    _, bias = table_and_bias(config, True)
    np.testing.assert_array_equal(bias[0], 7.0 * np.eye(6, k=-1))
    np.testing.assert_array_equal(bias[1], 7.0 * np.eye(6, k=1))
    table, bias = table_and_bias(config, False)
    for head in (1, 2):
        np.testing.assert_array_equal(bias[head], 7.0 * np.eye(6, k=-head))
    # Bucket 0 is also that of later keys, which a decoder does not see.
    np.testing.assert_array_equal(np.tril(bias[0]), 7.0 * np.eye(6))
    np.testing.assert_array_equal(table[3], table_and_bias(t5_1_1.config, False)[0][3])
    # A default for eight heads does not fit four.
    with pytest.raises(UserError, match="6 offsets .* for 4 heads"):
        param_axes(config.replace(relpos_bias_init=OffsetBiasInit(strength=1.0)))
