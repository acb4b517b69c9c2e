"""The step of a stage that trains adapters: packed, scanned, on a mesh, and what it never holds."""

import functools

import jax
import numpy as np
import pytest
from engine_helpers import (
    PROMPT,
    Run,
    losses,
    random_params,
    tiny_model,
    training_batches,
    worst_error,
)
from flax.traverse_util import flatten_dict
from scan_helpers import scan_params

from promot_t5x.distributed.partitioning import AXES, Partitioner
from promot_t5x.network.lora import LoRA, is_adapter
from promot_t5x.training import state, step

pytestmark = pytest.mark.slow

ADAPTERS = ("adapter",)
# The widths of the kernels (32, 40, 48) are those of nothing else here.
WIDTHS = {"head_dim": 5, "mlp_dim": 48, "num_encoder_layers": 1, "num_decoder_layers": 1}
SETTINGS = LoRA(rank=2, kernels=[".*attention/.*/kernel", ".*mlp/wo/kernel"])


def adapted(**changes):
    return tiny_model(lora=SETTINGS, **{**WIDTHS, **changes})


@pytest.fixture(scope="module")
def one_device():
    """Three steps of adapters behind a prompt on one device: (batches, losses, parameters)."""
    model = adapted(**PROMPT)
    batches = training_batches(model.config, 3, pack=True)
    run = Run(model, random_params(model), batches[0], trainable=ADAPTERS)
    return batches, losses(run.train(batches)), run.params


def test_adapters_alone_move(one_device):
    _, _, params = one_device
    before = flatten_dict(random_params(adapted(**PROMPT)), sep="/")
    moved = {path for path in before if before[path].tobytes() != params[path].tobytes()}
    assert moved == {path for path in before if is_adapter(path)}


def test_steps_on_a_mesh_and_in_a_scanned_stack_are_those_on_one_device(one_device):
    batches, expected, params = one_device
    plain = adapted(**PROMPT)
    mesh = Partitioner(mesh_shape=dict(zip(AXES, (2, 2, 2), strict=True)))
    run = Run(plain, random_params(plain), batches[0], trainable=ADAPTERS, partitioner=mesh)
    np.testing.assert_allclose(losses(run.train(batches)), expected, rtol=1e-5)
    worst, path = worst_error(run.params, params)
    assert worst < 1e-5, path
    b = run.state.trainable["encoder"]["layers_0"]["attention"]["query"]["lora_b"]
    assert b.sharding.shard_shape(b.shape) == (2, 40 // 2)

    scanned = adapted(scan_layers=True, remat_policy="full", **PROMPT)
    run = Run(scanned, scan_params(random_params(plain)), batches[0], trainable=ADAPTERS)
    np.testing.assert_allclose(losses(run.train(batches)), expected, rtol=1e-5)


def test_a_step_makes_nothing_of_a_kernels_size():
    """Neither a kernel's gradient nor the product of an adapter's matrices."""
    model = adapted()
    batch = training_batches(model.config, 1)[0]

    def made(patterns):
        traced = jax.make_jaxpr(functools.partial(step.summed_gradients, model, dropout_key=None))
        trainable, frozen = state.split(model.param_shapes(), patterns)
        return products(traced(trainable, frozen, batch=batch).jaxpr)

    _, frozen = state.split(model.param_shapes(), ADAPTERS)
    kernels = {
        tuple(leaf.shape)
        for path, leaf in flatten_dict(frozen, sep="/").items()
        if path.endswith("/kernel") and "logits" not in path
    }
    assert kernels == {(32, 40), (40, 32), (32, 48), (48, 32)}
    assert not kernels & made(ADAPTERS)
    assert kernels <= made(["all"])  # what the search finds where kernels train


def products(jaxpr):
    """Shapes of two axes of all matrix products, their operands' axes merged as kernels' are."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            shape = equation.outvars[0].aval.shape
            for cut in range(1, len(shape)):
                sides = int(np.prod(shape[:cut])), int(np.prod(shape[cut:]))
                found |= {sides, sides[::-1]}
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found |= products(inner)
    return found
