"""Which gradients a training step takes, from what trains and the order of the forward pass.

The input of a product has a gradient only where something that trains comes before it: there is
none in front of the first adapter, and none in the decoder's first self-attention where only a
prompt of the encoder trains. A scanned stack is one program for all of its layers, so that each
takes what any of them takes.
"""

import math
from collections.abc import Collection

from promot_t5x.network.lora import LORA_B, kernel_of, parts_of

Place = tuple[float, ...]
_START: Place = (-1.0,)
_HEAD: Place = (math.inf, 1.0)
_NOWHERE: Place = (math.inf, math.inf)
_ENCODER = ("encoder/encoder/", "encoder/layers_")
# The sublayers of a layer, and the parts of a sublayer, in the order of the forward pass.
_SELF, _CROSS, _MLP = 0.0, 1.0, 2.0
_BEFORE, _IN, _BIAS, _OUT, _AFTER = 0.0, 1.0, 2.0, 3.0, 4.0


class Gradients:
    """What has a gradient in the backward pass of a step.

    **Arguments:**

    - `paths`: of all parameters.
    - `trains`: of those that train.
    """

    def __init__(self, paths: Collection[str], trains: Collection[str]):
        self._trains = trains
        # The first place of each stack after which everything has a gradient.
        self._first = {"encoder": _NOWHERE, "decoder": _NOWHERE}
        scanned = {
            stack: any(path.startswith(f"{stack}/{stack}/") for path in paths)
            for stack in self._first
        }

        def begins(stack: str, place: Place) -> None:
            if scanned[stack] and place[0] == 0:
                place = place[:1]
            self._first[stack] = min(self._first[stack], place)

        for path in trains:
            begins(*_place(path))
        self._encoded = self._first["encoder"] < _NOWHERE
        if self._encoded and not any(path.startswith(_ENCODER) for path in paths):
            begins("decoder", _START)  # a decoder-only network has its prompt in front
        if "token_embedder/embedding" in trains and "decoder/token_embedder/embedding" not in paths:
            begins("decoder", _START)
        if self._encoded:
            begins("decoder", (0.0, _CROSS, _IN))

    @property
    def of_head(self) -> bool:
        """Whether what is projected to logits has a gradient."""
        return self._first["decoder"] < _HEAD

    def of_input(self, path: str) -> bool:
        """Whether what a layer's kernel, or a part of its adapter, is multiplied with has one."""
        kernel = kernel_of(path)
        if path.endswith(LORA_B) and parts_of(kernel)[0] in self._trains:
            return True
        if "encoder_decoder_attention/key/" in path or "encoder_decoder_attention/value/" in path:
            return self._encoded
        stack, place = _place(kernel)
        return self._first[stack] < place

    def of_output(self, kernel: str) -> bool:
        """Whether what a kernel and its adapter make has one."""
        own = (kernel, *parts_of(kernel))
        return self.of_input(kernel) or any(path in self._trains for path in own)

    def of_scores(self, attention: str) -> bool:
        """Whether the weights that an attention gives to its keys have one."""
        layer = attention.rpartition("/")[0]
        norms = (f"{attention}/{name}_norm/scale" for name in ("query", "key"))
        biases: tuple[str, ...] = ()
        if not attention.endswith("encoder_decoder_attention"):
            places = (layer.partition("/")[0], layer)
            biases = tuple(f"{place}/relpos_bias/rel_embedding" for place in places)
        return any(path in self._trains for path in (*norms, *biases)) or any(
            self.of_output(f"{attention}/{name}/kernel") for name in ("query", "key")
        )

    def in_layer(self, path: str) -> bool:
        """Whether a parameter is in a layer, and anything in that has one."""
        stack, place = _place(path)
        return 0 <= place[0] < math.inf and self._first[stack] < (place[0] + 1.0,)


def _place(path: str) -> tuple[str, Place]:
    """Return the stack that a parameter belongs to, and its place: layer, sublayer, part."""
    stack, _, rest = path.partition("/")
    if stack not in ("encoder", "decoder"):
        return "encoder", _START
    layer, _, inner = rest.partition("/")
    if layer in ("prompt", "token_embedder"):
        return stack, _START
    if layer == "relpos_bias":
        return stack, (0.0, _SELF, _BIAS)
    if layer != stack and not layer.startswith("layers_"):
        return stack, _HEAD if layer == "logits_dense" else (math.inf, 0.0)
    number = 0.0 if layer == stack else float(layer.removeprefix("layers_"))
    sublayer, _, name = inner.partition("/")
    which = _SELF
    if "mlp" in sublayer:
        which = _MLP
    elif "encoder_decoder" in sublayer or "cross" in sublayer:
        which = _CROSS
    if sublayer.startswith(("pre_", "post_")):
        part = _BEFORE if sublayer.startswith("pre_") else _AFTER
    elif sublayer == "relpos_bias" or "_norm/" in name:
        part = _BIAS
    else:
        part = _OUT if name.startswith(("out/", "wo/")) else _IN
    return stack, (number, which, part)
