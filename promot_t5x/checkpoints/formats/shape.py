"""The shape of a network as its parameters tell it: what must agree with a configuration."""

import dataclasses
import functools
import re
from typing import Any

import jax
from flax import traverse_util

from promot_t5x.checkpoints.formats.layouts import BIAS
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.errors import UserError, listed
from promot_t5x.network import transformer
from promot_t5x.network.config import T5Config
from promot_t5x.network.prompt import PROMPT_PATH

EMBEDDING = "token_embedder/embedding"
LOGITS = "decoder/logits_dense/kernel"
MACROS = {
    "vocab_size": "NUM_EMBEDDINGS",
    "emb_dim": "EMBED_DIM",
    "num_heads": "NUM_HEADS",
    "head_dim": "HEAD_DIM",
    "mlp_dim": "MLP_DIM",
    "num_encoder_layers": "NUM_ENCODER_LAYERS",
    "num_decoder_layers": "NUM_DECODER_LAYERS",
    "mlp_activations": "MLP_ACTIVATIONS",
    "logits_via_embedding": "LOGITS_VIA_EMBEDDING",
    "relative_bias_per_layer": "RELATIVE_BIAS_PER_LAYER",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What of a `T5Config` a checkpoint must agree with; the fields have the same names there."""

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...]
    logits_via_embedding: bool
    relative_bias_per_layer: bool

    def macros(self) -> str:
        """Return the shape as lines of a gin file."""
        values = dataclasses.asdict(self)
        return "".join(f"{macro} = {values[name]!r}\n" for name, macro in MACROS.items())

    def check(self, config: T5Config, source: Any) -> None:
        """Compare with the network that is to take the weights.

        **Raises:** `UserError` with the differences.

        Whether the bias is per layer is not one: `layouts` changes that where it can be changed.
        """
        wrong = {
            macro: (getattr(config, name), getattr(self, name))
            for name, macro in MACROS.items()
            if name != "relative_bias_per_layer" and getattr(config, name) != getattr(self, name)
        }
        if wrong:
            differences = "; ".join(
                f"{m} is {ours!r}, there {theirs!r}" for m, (ours, theirs) in wrong.items()
            )
            fix = ", ".join(f"{macro} = {theirs!r}" for macro, (_, theirs) in wrong.items())
            raise UserError(
                f"{source} is of another model than the configuration's: {differences}. Choose the "
                f"model file that the weights are of, or set {fix}."
            )


def parameters(shape: NetworkShape) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {'/'-joined path: shape} of a network's parameters, one layer after the other."""
    depths = {"encoder": shape.num_encoder_layers, "decoder": shape.num_decoder_layers}
    one = dataclasses.replace(shape, num_encoder_layers=1, num_decoder_layers=1)
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for path, leaf in _traced(T5Config(**dataclasses.asdict(one))).items():
        stack, mark, rest = path.partition("/layers_0/")
        layers = [f"{stack}/layers_{i}/{rest}" for i in range(depths[stack])] if mark else [path]
        found |= dict.fromkeys(layers, leaf)
    return found


@functools.cache
def _traced(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
    # Layers are alike, and tracing 48 of them takes seconds.
    shapes: dict[str, jax.ShapeDtypeStruct] = traverse_util.flatten_dict(
        transformer.param_shapes(config), sep="/"
    )
    return shapes


def infer(shapes: Shapes, *, source: Any, activation: str | None = None) -> NetworkShape:
    """Return the shape of the network that parameters belong to.

    **Arguments:**

    - `shapes`: {'/'-joined path: anything with a shape}, one layer after the other; a prompt is
      ignored.
    - `source`: what messages call the parameters.
    - `activation`: of the MLP, which arrays do not tell; None for GELU where it is gated (T5 1.1
      and later) and ReLU where it is not (T5 1.0).

    **Raises:** `UserError` where they are not those of a T5-family network.
    """
    found = {p: tuple(s.shape) for p, s in shapes.items() if p != PROMPT_PATH}
    try:
        per_layer = f"encoder/{BIAS}" not in found
        gated = "encoder/layers_0/mlp/wi_0/kernel" in found
        wi = "encoder/layers_0/mlp/" + ("wi_0" if gated else "wi") + "/kernel"
        vocab_size, emb_dim = found[EMBEDDING]
        heads = found[f"encoder/layers_0/{BIAS}" if per_layer else f"encoder/{BIAS}"][0]
        shape = NetworkShape(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=heads,
            head_dim=found["encoder/layers_0/attention/query/kernel"][1] // heads,
            mlp_dim=found[wi][1],
            num_encoder_layers=_depth("encoder", found),
            num_decoder_layers=_depth("decoder", found),
            mlp_activations=(activation or "gelu", "linear") if gated else (activation or "relu",),
            logits_via_embedding=LOGITS not in found,
            relative_bias_per_layer=per_layer,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"{source} is not a T5-family model: no {error}") from error
    expected = {path: tuple(leaf.shape) for path, leaf in parameters(shape).items()}
    problems = [
        f"{len(paths)} arrays {what} ({listed(sorted(paths))})"
        for what, paths in (
            ("are missing", expected.keys() - found.keys()),
            ("are no part of it", found.keys() - expected.keys()),
            ("have another shape", {p for p in found if expected.get(p, found[p]) != found[p]}),
        )
        if paths
    ]
    if problems:
        raise UserError(f"{source} is not a T5-family model: {'; '.join(problems)}.")
    return shape


def _depth(stack: str, paths: Any) -> int:
    matches = (re.match(rf"{stack}/layers_(\d+)/", path) for path in paths)
    return 1 + max(int(m[1]) for m in matches if m)
