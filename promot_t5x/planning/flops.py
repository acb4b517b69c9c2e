"""Floating-point operations of a step, counted from the shapes of the network.

A product of activations with a weight costs two operations an element and token forwards, as much
again for the gradient of its input, and as much again for the weight's own gradient where that
trains. The two products of attention have no weight and two gradients. Everything else (norms,
softmax, the optimizer) is left out, as in the usual definition of model FLOPs utilisation.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.models.model import Model
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.lora import is_adapter
from promot_t5x.training.state import flatten, split

_OF_ENCODED = re.compile(r"encoder/|.*encoder_decoder_attention/(key|value)/")
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
    with_base: bool = False,
) -> Flops:
    """One training step.

    **Arguments:**

    - `trainable`: as a `Stage` has it.
    - `batch`, `lengths`: of the global batch; padding counts as much as text.
    - `with_base`: whether the objective asks the base too, forward only.
    """
    config, shapes = model.config, model.param_shapes()
    encoded, decoded = batch * lengths["inputs"], batch * lengths["targets"]
    weights = _per_weight(config, shapes, encoded, decoded)
    trains = flatten(split(shapes, trainable)[0])
    attention = _attention(config, batch, lengths["inputs"], lengths["targets"])
    forward = sum(weights.values()) + attention
    gradients = sum(cost for path, cost in weights.items() if path in trains)
    logits = weights[_head(weights)]
    again = 0.0
    if decoded // microbatches > model.loss_chunk_tokens:
        again += (1 + with_base) * logits
    if config.remat_policy == "minimal":
        again += attention
    elif config.remat_policy == "full":
        # A layer's last product feeds no gradient but that of its weight's successor.
        last = sum(cost for path, cost in weights.items() if path.endswith("mlp/wo/kernel"))
        again += forward - logits - last
    return Flops(
        forward=(1 + with_base) * forward,
        backward=sum(weights.values()) + gradients + 2 * attention,
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
    attention = _attention(config, batch, inputs, outputs, rows)
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
        attention -= 4.0 * batch * inputs**2 * config.num_heads * config.head_dim
    return Flops(forward=sum(weights.values()) + attention - unused)


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


def _attention(
    config: NetworkConfig, batch: int, inputs: int, outputs: int, rows: int | None = None
) -> float:
    """Both products of attention, forwards, over all layers; masked keys cost as much as others.

    **Arguments:**

    - `rows`: of the decoder, where an example has several.
    """
    own = config.of_decoder()
    depth, asked = config.num_encoder_layers, inputs**2
    if not config.has_encoder:
        depth = config.num_decoder_layers
        # One mask for the whole sequence, where nothing is cached.
        asked += inputs * outputs if rows is None else 0
    encoder = batch * depth * asked * config.num_heads * config.head_dim
    seen = outputs * (outputs + inputs)
    decoder = (rows or batch) * config.num_decoder_layers * seen * own.num_heads * own.head_dim
    return 4.0 * (encoder + decoder)
