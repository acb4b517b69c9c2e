"""FLOPs against the products that a gradient is traced to, against the compiler, and by hand."""

import math

import jax
import numpy as np
import pytest
from engine_helpers import (
    ALL_BUT_PROMPT,
    EVERYTHING,
    LENGTHS,
    ONLY_PROMPT,
    PROMPT,
    QUICKLY,
    model_of,
    tiny_config,
)

from promot_t5x.decoding.decoder import Decoder
from promot_t5x.models.objectives import TALR, KLToBase
from promot_t5x.network import DecoderOnlyConfig, T5GemmaConfig
from promot_t5x.network.lora import LoRA
from promot_t5x.planning import flops
from promot_t5x.training import state, step

pytestmark = pytest.mark.slow

LONG = {"inputs": 192, "targets": 64}
BATCH = 4
QUERY_VALUE, EVERY_KERNEL = LoRA(rank=64), LoRA(rank=64, kernels=[".*/kernel"])


def wide_config(**changes):
    """Wide enough that products are nearly all of the work; layers one by one."""
    wide = {"vocab_size": 4096, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 1024}
    shallow = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    return tiny_config(**{**wide, **shallow, **changes})


def wide_causal_config(**changes):
    """A decoder-only network with grouped heads."""
    wide = {"vocab_size": 4096, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 1024}
    causal = {"num_kv_heads": 2, "num_decoder_layers": 2, "mlp_activations": ("gelu", "linear")}
    return DecoderOnlyConfig(**{**wide, **causal, "dropout_rate": 0.0, **changes})


def gemma_config(**changes):
    """T5Gemma with a narrower decoder, whose heads of keys serve two queries each."""
    wide = {"vocab_size": 4096, "emb_dim": 512, "num_heads": 8, "head_dim": 64, "mlp_dim": 1024}
    narrow = {"decoder_emb_dim": 256, "decoder_num_heads": 4, "decoder_num_kv_heads": 2}
    return T5GemmaConfig(
        **wide, **narrow, num_kv_heads=4, query_scale=64.0, dropout_rate=0.0,
        mlp_activations=("gelu", "linear"), **changes,
    )  # fmt: skip


def compiler_count(lowered):
    return lowered.compile(QUICKLY).cost_analysis()["flops"]


def traced_count(model, trainable, objective):
    """Operations of all matrix products of a step's loss and gradient; loops multiplied out."""
    trains, frozen = state.split(model.param_shapes(), trainable)
    features = {"encoder_input_tokens": "inputs"} | dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"), "targets"
    )
    batch = {k: jax.ShapeDtypeStruct((BATCH, LONG[v]), np.int32) for k, v in features.items()}

    def gradients(trains, frozen, batch):
        base = state.merge(trains, frozen)
        return step.summed_gradients(model, trains, frozen, batch, None, objective, base)

    # Compilers drop what no result needs; so does this, by the same rule.
    traced = jax.make_jaxpr(gradients)(trains, frozen, batch).jaxpr
    used, _ = jax.interpreters.partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    return products(used)


def products(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, made = (each.aval.shape for each in (equation.invars[0], equation.outvars[0]))
            total += 2 * math.prod(made) * math.prod(left[axis] for axis in contracted)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += times * products(inner)
    return total


@pytest.mark.parametrize(
    ("trainable", "settings"),
    [
        (ONLY_PROMPT, PROMPT),
        (ALL_BUT_PROMPT, {"scan_layers": True, "remat_policy": "minimal", **PROMPT}),
        (EVERYTHING, {"remat_policy": "full", "objective": KLToBase(), "chunk": 128}),
        (EVERYTHING, {"make": gemma_config, "remat_policy": "full"}),
        (["adapter"], {"lora": QUERY_VALUE}),
        (["adapter"], {"lora": QUERY_VALUE, "make": gemma_config, "remat_policy": "minimal"}),
        (["adapter"], {"lora": EVERY_KERNEL, "scan_layers": True, "remat_policy": "full"}),
        (["adapter"], {"lora": EVERY_KERNEL, "chunk": 128, "objective": TALR()}),
        (EVERYTHING, {"make": wide_causal_config}),
        (ONLY_PROMPT, {"make": wide_causal_config, "remat_policy": "full", **PROMPT}),
        (["adapter"], {"make": wide_causal_config, "lora": QUERY_VALUE}),
        ([".*relpos_bias/.*"], {"relative_bias_per_layer": True, "remat_policy": "minimal"}),
    ],
)
def test_training_flops_are_those_of_the_traced_products(trainable, settings):
    own = {"make": wide_config, "objective": None, "chunk": 4096, **settings}
    make, objective, chunk = (own.pop(name) for name in ("make", "objective", "chunk"))
    depths = {"num_encoder_layers": 2 * (make is not wide_causal_config), "num_decoder_layers": 2}
    model = model_of(make(**{**depths, **own}), loss_chunk_tokens=chunk)
    counted = flops.training(model, trainable, batch=BATCH, lengths=LONG, objective=objective)
    # What is left out is a bias's product with 32 buckets.
    assert counted.executed == pytest.approx(traced_count(model, trainable, objective), rel=2e-4)
    assert (counted.recomputed > 0) == ("remat_policy" in settings or chunk < BATCH * 64)


# Two operations an element of a weight and token: 512 x 512 of the encoder's 768 tokens and of the
# decoder's 256, the parts of an adapter of rank 64, and one product of each kind of attention.
N, D = 2 * 768 * 512 * 512, 2 * 256 * 512 * 512
A, B = 2 * 768 * 512 * 64, 2 * 256 * 512 * 64
OWN, CAUSAL, CROSS = (2 * 4 * pairs * 512 for pairs in (192 * 192, 64 * 64, 64 * 192))
HEAD, MLP = 8, 6  # times 512 x 512: 4096 logits, and three kernels of 1024


def test_adapters_of_queries_and_values_alone_by_hand():
    model = model_of(wide_config(lora=QUERY_VALUE), loss_chunk_tokens=4096)
    alone = flops.training(model, ["adapter"], batch=BATCH, lengths=LONG)
    forward = (4 + MLP) * N + 4 * A + 2 * OWN  # the encoder: two adapters of two parts
    forward += (4 + MLP) * D + 4 * B + 2 * CAUSAL  # the decoder's own attention and MLP
    forward += 2 * D + 2 * N + 2 * B + 2 * A + 2 * CROSS  # keys and values are of the encoder
    forward += HEAD * D
    # No kernel trains. Nothing trains before the first layers' queries, keys and values, which
    # have no gradient of their input: of an adapter there remain A, B and what is between them, of
    # attention the queries, the weights and the values, but not the keys.
    first = MLP * N + N + 6 * A + 3 * OWN + MLP * D + D + 6 * B + 3 * CAUSAL
    cross = 2 * D + 2 * N + 4 * B + 4 * A + 4 * CROSS
    assert alone.forward == forward
    assert alone.backward == first + cross + HEAD * D
    assert alone.recomputed == 0

    # In a scanned stack the first layer is as the others: its input has a gradient.
    model = model_of(wide_config(lora=QUERY_VALUE, scan_layers=True), loss_chunk_tokens=4096)
    scanned = flops.training(model, ["adapter"], batch=BATCH, lengths=LONG)
    assert scanned.forward == forward
    assert scanned.backward - alone.backward == 3 * N + 2 * A + OWN + 3 * D + 2 * B + CAUSAL

    # Behind a prompt all of the encoder has gradients, the decoder's own first attention none.
    prompted = model_of(wide_config(**PROMPT), loss_chunk_tokens=4096)
    one = flops.training(prompted, ONLY_PROMPT, batch=BATCH, lengths=LONG)
    encoder = (4 + MLP) * N + 4 * OWN
    cross = D + 2 * N + 3 * CROSS  # without the queries
    assert one.backward == encoder + cross + MLP * D + HEAD * D


def test_talr_projects_every_token_once_more():
    model = model_of(wide_config(), loss_chunk_tokens=64)
    plain, talr = (
        flops.training(model, EVERYTHING, batch=BATCH, lengths=LONG, objective=objective)
        for objective in (None, TALR())
    )
    assert talr.forward - plain.forward == HEAD * D
    assert (talr.backward, talr.recomputed) == (plain.backward, plain.recomputed)


@pytest.mark.parametrize("make", [wide_config, wide_causal_config])
def test_decoding_flops_are_those_that_the_compiler_counts(make):
    """Of one step: the compiler counts a loop's body once."""
    model = model_of(make())
    decoder = Decoder(model.module, batch_size=8, start_id=model.start_id)
    params = model.param_shapes()
    counted = flops.decoding(model.config, params, batch=8, inputs=128, outputs=1, hypotheses=1)
    actual = compiler_count(decoder.lower(params, 128, 1))
    assert counted.forward == pytest.approx(actual, rel=0.05)


def test_microbatches_and_chunks_decide_whether_logits_are_computed_twice():
    model = model_of(wide_config(), loss_chunk_tokens=64)
    one = flops.training(model, EVERYTHING, batch=8, lengths=LENGTHS)
    four = flops.training(model, EVERYTHING, batch=8, lengths=LENGTHS, microbatches=4)
    logits = 2 * 8 * LENGTHS["targets"] * 512 * 4096
    assert one.recomputed == logits
    assert four.recomputed == 0
    assert one.model == four.model
