"""Floating-point operations of a step, counted from the shapes of the network.

A product of activations with a weight costs two operations an element and token forwards, as much
again for the gradient of its input where that has one (`gradients`), and as much again for the
weight's own gradient where that trains. The two products of attention have no weight and up to two
gradients each. Everything else (norms, softmax, the optimizer) is left out, as in the usual
definition of model FLOPs utilisation.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.models.model import Model
from promot_t5x.models.objectives import BatchObjective, Objective
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.lora import LORA_B, is_adapter, kernel_of, parts_of
from promot_t5x.network.scan import layer_axis
from promot_t5x.planning.gradients import Gradients
from promot_t5x.training.state import flatten, split

_OF_ENCODED = re.compile(r"encoder/|.*encoder_decoder_attention/(key|value)/")
_QUERY = "/query/kernel"
_LAST = ("mlp/wo/kernel", f"mlp/wo/{LORA_B}")
_HEADS = (
    "decoder/logits_dense/kernel",
    "decoder/token_embedder/embedding",
    "token_embedder/embedding",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
    """Operations of one step over the whole batch.

    **Attributes:**

    - `forward`, `backward`: what the step's mathematics needs.
    - `recomputed`: what is done a second time to save memory.
    """

    forward: float
    backward: float = 0.0
    recomputed: float = 0.0

    @property
    def model(self) -> float:
        """What utilisation is measured by."""
        return self.forward + self.backward

    @property
    def executed(self) -> float:
        """What the hardware does: the model's operations and those done again."""
        return self.model + self.recomputed


def training(
    model: Model,
    trainable: Sequence[str],
    *,
    batch: int,
    lengths: Mapping[str, int],
    microbatches: int = 1,
    objective: Objective | None = None,
) -> Flops:
    """One training step.

    **Arguments:**

    - `trainable`: as a `Stage` has it.
    - `batch`, `lengths`: of the global batch; padding counts as much as text.
    - `objective`: as a `Stage` has it. One may ask the base too, forward only, or project every
      token once more.
    """
    config, shapes = model.config, model.param_shapes()
    flat = flatten(shapes)
    encoded, decoded = batch * lengths["inputs"], batch * lengths["targets"]
    weights = _per_weight(config, shapes, encoded, decoded)
    attention = _per_attention(config, shapes, batch, lengths["inputs"], lengths["targets"])
    head = _head(weights)
    logits = sum(cost for path, cost in weights.items() if kernel_of(path) == head)
    trains = flatten(split(shapes, trainable)[0])
    has = Gradients(flat, trains)
    forward = sum(weights.values()) + 2 * sum(attention.values())

    backward = sum(cost for path, cost in weights.items() if path in trains)
    backward += weights[head] * has.of_head
    backward += sum(c for path, c in weights.items() if path != head and has.of_input(path))
    for path, cost in attention.items():
        operands = [has.of_output(f"{path}/{name}/kernel") for name in ("query", "key", "value")]
        backward += cost * (sum(operands) + has.of_scores(path))

    with_base = objective is not None and objective.needs_base
    again = 0.0
    if decoded // microbatches > model.loss_chunk_tokens:
        again += (1 + with_base) * logits
    if config.remat_policy == "full":
        # A layer's last product feeds nothing that the backward pass needs, but a norm behind it.
        last = () if any("post_mlp_layer_norm" in path for path in flat) else _LAST
        again += sum(
            cost for path, cost in weights.items() if has.in_layer(path) and not path.endswith(last)
        )
        again += 2 * sum(cost for path, cost in attention.items() if has.in_layer(path))
    elif config.remat_policy == "minimal":
        for path, cost in attention.items():
            scores = has.of_scores(path) or has.of_output(f"{path}/value/kernel")
            # What attention mixes feeds nothing but the gradients of the weights behind it.
            out, low = f"{path}/out/kernel", parts_of(f"{path}/out/kernel")[0]
            again += cost * (scores + (out in trains or low in trains))
    return Flops(
        forward=(1 + with_base) * forward + isinstance(objective, BatchObjective) * logits,
        backward=backward,
        recomputed=again,
    )


def decoding(
    config: NetworkConfig,
    shapes: Mapping[str, Any],
    *,
    batch: int,
    inputs: int,
    outputs: int,
    hypotheses: int,
) -> Flops:
    """Count encoding a batch once and decoding `outputs` tokens of every hypothesis."""
    rows = batch * hypotheses
    weights = _per_weight(config, shapes, batch * inputs, rows * outputs)
    # Every step attends to the whole cache and to all of the inputs.
    attention = _per_attention(config, shapes, batch, inputs, outputs, hypotheses)
    unused = 0.0
    if not config.has_encoder and not config.scan_layers:
        # Of the last layer inputs leave keys and values, and the compiler drops the rest.
        last = f"decoder/layers_{config.num_decoder_layers - 1}/"
        needed = _per_weight(config, shapes, batch * inputs, 0)
        kept = ("attention/key/kernel", "attention/value/kernel")
        unused = sum(
            cost
            for path, cost in needed.items()
            if path.startswith(last) and not path.endswith(kept)
        )
        unused += 4.0 * batch * inputs**2 * config.num_heads * config.head_dim
    return Flops(forward=sum(weights.values()) + 2 * sum(attention.values()) - unused)


def _per_weight(
    config: NetworkConfig, shapes: Mapping[str, Any], encoded: int, decoded: int
) -> dict[str, float]:
    """Forward operations of each weight's product: two an element and token it is applied to."""
    flat = flatten(shapes)
    head = _head(flat)
    costs = {}
    for path, leaf in flat.items():
        if path == head:
            tokens = decoded
        elif not path.endswith("/kernel") and not is_adapter(path):
            continue
        elif not config.has_encoder:
            tokens = encoded + decoded
        else:
            tokens = encoded if _OF_ENCODED.match(path) else decoded
        costs[path] = 2.0 * tokens * math.prod(leaf.shape)
    return costs


def _head(paths: Mapping[str, Any]) -> str:
    """Path of what projects to logits: a kernel, or where there is none an embedding."""
    return next(path for path in _HEADS if path in paths)


def _per_attention(
    config: NetworkConfig,
    shapes: Mapping[str, Any],
    batch: int,
    inputs: int,
    outputs: int,
    hypotheses: int | None = None,
) -> dict[str, float]:
    """Forward operations of each of the two products of every attention, by its path.

    Masked keys cost as much as others.

    **Arguments:**

    - `hypotheses`: of an example, where outputs are decoded one by one; None where a model trains.
    """
    costs = {}
    for path, leaf in flatten(shapes).items():
        if not path.endswith(_QUERY):
            continue
        pairs = (hypotheses or 1) * outputs * outputs
        if path.startswith("encoder/"):
            pairs = inputs**2
        elif "encoder_decoder" in path:
            pairs = (hypotheses or 1) * outputs * inputs
        elif not config.has_encoder:
            # One mask for the whole sequence, where nothing is cached.
            pairs += inputs**2 + inputs * outputs * (2 if hypotheses is None else hypotheses)
        axis = layer_axis(path)
        layers = 1 if axis is None else leaf.shape[axis]
        costs[path.removesuffix(_QUERY)] = 2.0 * batch * pairs * leaf.shape[-1] * layers
    return costs
