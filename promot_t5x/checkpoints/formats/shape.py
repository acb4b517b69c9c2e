"""The shape of a network as its parameters tell it: what must agree with a configuration."""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import jax
from flax import traverse_util

from promot_t5x.checkpoints.formats.layouts import BIAS
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.errors import UserError, listed
from promot_t5x.network.config import NetworkConfig, T5Config
from promot_t5x.network.gemma.config import DecoderOnlyConfig, T5GemmaConfig
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.prompt import PROMPT_PATH

EMBEDDING = "token_embedder/embedding"
LOGITS = "decoder/logits_dense/kernel"
DECODER_EMBEDDING = "decoder/token_embedder/embedding"
# Of the fields that all families have.
MACROS = {
    "vocab_size": "NUM_EMBEDDINGS",
    "emb_dim": "EMBED_DIM",
    "num_heads": "NUM_HEADS",
    "head_dim": "HEAD_DIM",
    "mlp_dim": "MLP_DIM",
    "num_encoder_layers": "NUM_ENCODER_LAYERS",
    "num_decoder_layers": "NUM_DECODER_LAYERS",
    "mlp_activations": "MLP_ACTIVATIONS",
}
# Of the fields of networks with grouped queries.
GROUPED_MACROS = {
    "num_kv_heads": "NUM_KV_HEADS",
    "query_scale": "QUERY_SCALE",
    "attention_soft_cap": "ATTENTION_SOFT_CAP",
    "logits_soft_cap": "LOGITS_SOFT_CAP",
    "sliding_window": "SLIDING_WINDOW",
    "full_attention_period": "FULL_ATTENTION_PERIOD",
    "rope_theta": "ROPE_THETA",
    "norm_epsilon": "NORM_EPSILON",
}
# Of the widths that T5Gemma's decoder has for itself.
WIDTH_MACROS = {
    "emb_dim": "EMBED_DIM",
    "num_heads": "NUM_HEADS",
    "num_kv_heads": "NUM_KV_HEADS",
    "head_dim": "HEAD_DIM",
    "mlp_dim": "MLP_DIM",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """What of a network's configuration a checkpoint must agree with, in fields of the same names.

    A family's shape says as class variables what it is called, its configuration's class and the
    macro of each field.
    """

    family: ClassVar[str]
    network: ClassVar[type[NetworkConfig]]
    field_macros: ClassVar[Mapping[str, str]]
    # Fields that may differ, because `layouts` changes the arrays where they can be changed.
    convertible: ClassVar[tuple[str, ...]] = ()

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: tuple[str, ...]

    def config(self) -> NetworkConfig:
        """Return a configuration of this shape."""
        return self.network(**dataclasses.asdict(self))

    def macros(self) -> str:
        """Return the shape as lines of a gin file."""
        values = dataclasses.asdict(self)
        return "".join(f"{macro} = {values[name]!r}\n" for name, macro in self.field_macros.items())

    def check(self, config: NetworkConfig, source: Any) -> None:
        """Compare with the network that is to take the weights.

        **Raises:** `UserError` with the differences.
        """
        if not isinstance(config, self.network):
            raise UserError(
                f"{source} is of another model than the configuration's: it is a {self.family}, "
                f"and the configuration a {type(config).__name__}. Choose the model file that the "
                "weights are of."
            )
        wrong = {
            macro: (getattr(config, name), getattr(self, name))
            for name, macro in self.field_macros.items()
            if name not in self.convertible and getattr(config, name) != getattr(self, name)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Shape(NetworkShape):
    """What of a `T5Config` a checkpoint must agree with."""

    family = "T5-family model"
    network = T5Config
    field_macros: ClassVar[Mapping[str, str]] = {
        **MACROS,
        "logits_via_embedding": "LOGITS_VIA_EMBEDDING",
        "relative_bias_per_layer": "RELATIVE_BIAS_PER_LAYER",
    }
    convertible = ("relative_bias_per_layer",)

    logits_via_embedding: bool
    relative_bias_per_layer: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupedQueryShape(NetworkShape):
    """What of a `GroupedQueryConfig` a checkpoint must agree with; no array tells most of it."""

    num_kv_heads: int
    query_scale: float
    attention_soft_cap: float
    logits_soft_cap: float
    sliding_window: int
    full_attention_period: int
    rope_theta: float
    norm_epsilon: float

    @classmethod
    def of_macros(cls, text: str, *, source: Any) -> Self:
        """Read the shape from the lines of a configuration, as `macros` writes them.

        **Raises:** `UserError` where they do not say everything.
        """
        found = {}
        for name, macro in cls.field_macros.items():
            value = f"%{macro}"
            while value.startswith("%"):  # one may be another's
                line = re.search(rf"^{value[1:]} = (.+(?:\n +.+)*)", text, re.MULTILINE)
                if line is None:
                    raise UserError(
                        f"{source} does not record {value[1:]}, which no array of a {cls.family} "
                        "tells: convert a checkpoint that a run of this project saved, or the "
                        "Hugging Face one."
                    )
                value = line[1]
            found[name] = ast.literal_eval(value)
        for name in WIDTH_MACROS:
            if found.get(f"decoder_{name}", 0) is None:
                found[f"decoder_{name}"] = found[name]
        return cls(**found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5GemmaShape(GroupedQueryShape):
    """What of a `T5GemmaConfig` a checkpoint must agree with; no array tells most of it."""

    family = "T5Gemma"
    network = T5GemmaConfig
    field_macros: ClassVar[Mapping[str, str]] = {
        **MACROS,
        "num_kv_heads": "NUM_KV_HEADS",
        **{f"decoder_{name}": f"DECODER_{macro}" for name, macro in WIDTH_MACROS.items()},
        **GROUPED_MACROS,
    }

    decoder_emb_dim: int
    decoder_num_heads: int
    decoder_num_kv_heads: int
    decoder_head_dim: int
    decoder_mlp_dim: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderOnlyShape(GroupedQueryShape):
    """What of a `DecoderOnlyConfig` a checkpoint must agree with; no array tells most of it."""

    family = "decoder-only model"
    network = DecoderOnlyConfig
    field_macros: ClassVar[Mapping[str, str]] = {
        **{name: macro for name, macro in MACROS.items() if name != "num_encoder_layers"},
        **GROUPED_MACROS,
        "norm_plus_one": "NORM_PLUS_ONE",
        "qk_norm": "QK_NORM",
        "qkv_bias": "QKV_BIAS",
        "sliding_rope_theta": "SLIDING_ROPE_THETA",
        "rope_factor": "ROPE_FACTOR",
        "post_norms": "POST_NORMS",
        "scaled_embeddings": "SCALED_EMBEDDINGS",
        "logits_via_embedding": "LOGITS_VIA_EMBEDDING",
    }

    num_encoder_layers: int = 0
    norm_plus_one: bool
    qk_norm: bool
    qkv_bias: bool
    sliding_rope_theta: float | None
    rope_factor: float
    post_norms: bool
    scaled_embeddings: bool
    logits_via_embedding: bool


def parameters(shape: NetworkShape) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {'/'-joined path: shape} of a network's parameters, one layer after the other."""
    depths = {"encoder": shape.num_encoder_layers, "decoder": shape.num_decoder_layers}
    one = dataclasses.replace(
        shape, num_encoder_layers=min(shape.num_encoder_layers, 1), num_decoder_layers=1
    )
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for path, leaf in _traced(one.config()).items():
        stack, mark, rest = path.partition("/layers_0/")
        layers = [f"{stack}/layers_{i}/{rest}" for i in range(depths[stack])] if mark else [path]
        found |= dict.fromkeys(layers, leaf)
    return found


@functools.cache
def _traced(config: NetworkConfig) -> dict[str, jax.ShapeDtypeStruct]:
    # Layers are alike, and tracing 48 of them takes seconds.
    shapes: dict[str, jax.ShapeDtypeStruct] = traverse_util.flatten_dict(
        param_shapes(config), sep="/"
    )
    return shapes


def infer(shapes: Shapes, *, source: Any, described: str = "") -> NetworkShape:
    """Return the shape of the network that parameters belong to.

    **Arguments:**

    - `shapes`: {'/'-joined path: anything with a shape}, one layer after the other; a prompt is
      ignored.
    - `source`: what messages call the parameters.
    - `described`: the configuration that was recorded beside them, for what arrays do not tell: of
      T5 the MLP's activation (else GELU where it is gated, ReLU where it is not), of the others
      most.

    **Raises:** `UserError` where they are not those of a network that is known here.
    """
    found = {p: tuple(s.shape) for p, s in shapes.items() if p != PROMPT_PATH}
    if DECODER_EMBEDDING in found:
        shape: NetworkShape = T5GemmaShape.of_macros(described, source=source)
    elif _is_decoder_only(found):
        shape = DecoderOnlyShape.of_macros(described, source=source)
    else:
        shape = _t5(found, source, activation_of(described))
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
        raise UserError(f"{source} is not a {shape.family}: {'; '.join(problems)}.")
    return shape


def beyond_t5x(paths: Iterable[str]) -> str | None:
    """Return what a model with these parameters is called; None where it is one of T5's."""
    found = set(paths)
    if DECODER_EMBEDDING in found:
        return T5GemmaShape.family
    return DecoderOnlyShape.family if _is_decoder_only(found) else None


def _is_decoder_only(paths: Iterable[str]) -> bool:
    """Whether decoder layers attend to nothing but themselves; all of ours are named so."""
    mark = re.compile(r"decoder/(layers_0|decoder)/attention/query/kernel")
    return any(mark.fullmatch(path) for path in paths)


def activation_of(described: str) -> str | None:
    """Return the MLP's first activation as a configuration binds it, if it does."""
    found = re.search(r"^MLP_ACTIVATIONS = \(\s*'(\w+)'", described, re.MULTILINE)
    return found[1] if found else None


def _t5(found: Mapping[str, tuple[int, ...]], source: Any, activation: str | None) -> NetworkShape:
    try:
        per_layer = f"encoder/{BIAS}" not in found
        gated = "encoder/layers_0/mlp/wi_0/kernel" in found
        wi = "encoder/layers_0/mlp/" + ("wi_0" if gated else "wi") + "/kernel"
        vocab_size, emb_dim = found[EMBEDDING]
        heads = found[f"encoder/layers_0/{BIAS}" if per_layer else f"encoder/{BIAS}"][0]
        return T5Shape(
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


def _depth(stack: str, paths: Any) -> int:
    matches = (re.match(rf"{stack}/layers_(\d+)/", path) for path in paths)
    return 1 + max(int(m[1]) for m in matches if m)
