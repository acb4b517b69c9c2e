"""Hugging Face's `config.json` of models, and this project's shape of a network.

What transformers computes from the same file has changed between its versions; where they
disagree, the version that wrote the file counts.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints.formats import hf_decoder_only, hf_t5gemma
from promot_t5x.checkpoints.formats.reading import (
    DamagedCheckpointError,
    NotACheckpointError,
    refuse_stand_in,
)
from promot_t5x.checkpoints.formats.shape import (
    DecoderOnlyShape,
    NetworkShape,
    T5GemmaShape,
    T5Shape,
)
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.errors import UserError
from promot_t5x.network.layers import MAX_DISTANCE, NUM_BUCKETS

CONFIG_FILE = "config.json"
MODEL_TYPES = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
    hf_t5gemma.MODEL_TYPE: "T5GemmaForConditionalGeneration",
    **hf_decoder_only.MODEL_TYPES,
}
MT5_ROWS = 250112
# transformers' name of the MLP -> ours. Its 'gelu' is exact, flax's the approximation by tanh,
# which it calls 'gelu_new' and, for T5, also 'gated-gelu'.
_ACTIVATIONS = {
    "relu": ("relu",),
    "gelu_new": ("gelu",),
    "silu": ("silu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-gelu_new": ("gelu", "linear"),
    "gated-relu": ("relu", "linear"),
    "gated-silu": ("silu", "linear"),
}
_FIXED = {
    "relative_attention_num_buckets": NUM_BUCKETS,
    "relative_attention_max_distance": MAX_DISTANCE,
    "layer_norm_epsilon": 1e-6,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig:
    """What a `config.json` says of a network.

    **Attributes:**

    - `model_type`: one of `MODEL_TYPES`.
    - `shape`: of the network.
    - `scaled`: whether the decoder's output is divided by sqrt(emb_dim) before the logits (T5 1.0).
    - `raw`: the file.
    """

    model_type: str
    shape: NetworkShape
    scaled: bool
    raw: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """Transformers' name of the model's class."""
        return ", ".join(self.raw.get("architectures") or ["of no class"])


def read(directory: epath.Path) -> HuggingFaceConfig:
    """Read `config.json`.

    **Raises:** `UserError` where it is of no model that is known here, or of one that this
    project's network is not.
    """
    path = directory / CONFIG_FILE
    refuse_stand_in(path)
    try:
        raw = json.loads(path.read_text())
        kind = raw["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{path} is not a model's configuration: {error}") from error
    if kind not in MODEL_TYPES:
        raise NotACheckpointError(
            f"{path} is of a model of type {kind!r}; those of {', '.join(MODEL_TYPES)} can be read."
        )
    if kind == hf_t5gemma.MODEL_TYPE:
        shape: NetworkShape = hf_t5gemma.read(path, raw)
        return HuggingFaceConfig(model_type=kind, shape=shape, scaled=False, raw=raw)
    if kind in hf_decoder_only.MODEL_TYPES:
        shape = hf_decoder_only.read(path, raw)
        return HuggingFaceConfig(model_type=kind, shape=shape, scaled=False, raw=raw)
    for name, value in _FIXED.items():
        if raw.get(name, value) != value:
            raise UserError(f"{path}: {name} is {raw[name]!r}; this network has {value!r}.")
    activation = raw.get("feed_forward_proj", "relu" if kind == "t5" else "gated-gelu")
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{path}: feed_forward_proj is {activation!r}; there are {', '.join(_ACTIVATIONS)}."
        )
    _check_activation(path, raw, activation)
    try:
        scaled = _scaled(kind, raw)
        shape = T5Shape(
            vocab_size=raw["vocab_size"],
            emb_dim=raw["d_model"],
            num_heads=raw["num_heads"],
            head_dim=raw["d_kv"],
            mlp_dim=raw["d_ff"],
            num_encoder_layers=raw["num_layers"],
            num_decoder_layers=raw.get("num_decoder_layers") or raw["num_layers"],
            mlp_activations=_ACTIVATIONS[activation],
            logits_via_embedding=scaled,
            relative_bias_per_layer=kind == "umt5",
        )
    except KeyError as error:
        raise UserError(f"{path} does not say {error}") from None
    return HuggingFaceConfig(model_type=kind, shape=shape, scaled=scaled, raw=raw)


def _check_activation(path: epath.Path, raw: Mapping[str, Any], activation: str) -> None:
    """Refuse a file whose settings of the MLP contradict each other: each version takes another."""
    for name, value in _activation_settings(activation).items():
        if raw.get(name, value) != value:
            raise UserError(
                f"{path}: {name} is {raw[name]!r} and feed_forward_proj {activation!r}, with which "
                f"it is {value!r}. Put right the one that the model was not trained with."
            )


def _activation_settings(activation: str) -> dict[str, Any]:
    """Return what transformers derives from `feed_forward_proj` and writes beside it."""
    function = activation.rpartition("-")[2]
    return {
        "dense_act_fn": "gelu_new" if activation == "gated-gelu" else function,
        "is_gated_act": activation.startswith("gated-"),
    }


def _scaled(kind: str, raw: Mapping[str, Any]) -> bool:
    """Whether the version of transformers that wrote the file scales the decoder's output."""
    if "scale_decoder_outputs" in raw:
        return bool(raw["scale_decoder_outputs"])
    tied = raw.get("tie_word_embeddings")
    if kind == "mt5":
        # Version 4 scales where the embeddings are tied; version 5 never does.
        before_5 = str(raw.get("transformers_version", "5")).split(".")[0] < "5"
        return tied is True and before_5
    return tied is not False


def write(shape: NetworkShape, shapes: Shapes, other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` that transformers 4 and 5 read as this network.

    **Arguments:**

    - `shape`: of the network.
    - `shapes`: of the arrays, for their type.
    - `other`: another `config.json` of the model, whose settings that are not the network's are
      kept.
    """
    types = {leaf.dtype.name for leaf in shapes.values()}
    dtype = types.pop() if len(types) == 1 else "float32"
    if isinstance(shape, T5GemmaShape):
        return hf_t5gemma.write(shape, dtype, other)
    if isinstance(shape, DecoderOnlyShape):
        return hf_decoder_only.write(shape, dtype, other)
    assert isinstance(shape, T5Shape)
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    if shape.mlp_activations not in names:
        raise UserError(f"transformers' T5 has no MLP with {shape.mlp_activations!r}.")
    activation = names[shape.mlp_activations]
    # The three compute the same; what they differ in is whether the bias is per layer, and, by the
    # version of transformers, when the output is scaled.
    kind = "t5"
    if shape.relative_bias_per_layer:
        kind = "umt5"
    elif shape.vocab_size == MT5_ROWS and not shape.logits_via_embedding:
        kind = "mt5"
    settings = {
        "dropout_rate": 0.1,
        "initializer_factor": 1.0,
        "use_cache": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        **other,
        "architectures": [MODEL_TYPES[kind]],
        "model_type": kind,
        "is_encoder_decoder": True,
        "vocab_size": shape.vocab_size,
        "d_model": shape.emb_dim,
        "d_kv": shape.head_dim,
        "d_ff": shape.mlp_dim,
        "num_heads": shape.num_heads,
        "num_layers": shape.num_encoder_layers,
        "num_decoder_layers": shape.num_decoder_layers,
        "feed_forward_proj": activation,
        **_activation_settings(activation),
        **_FIXED,
        # Version 4 scales the decoder's output where these are tied, and 5 asks the same of T5.
        "tie_word_embeddings": shape.logits_via_embedding,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    for name in ("scale_decoder_outputs", "transformers_version"):
        settings.pop(name, None)
    return settings


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `generation_config.json` beside a `config.json`: the ids that decoding needs."""
    names = ("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
