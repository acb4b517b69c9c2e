"""Gemma, Llama and Qwen as `transformers` has them: `config.json` and names of tensors."""

import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints.formats.shape import EMBEDDING, LOGITS, DecoderOnlyShape
from promot_t5x.errors import UserError
from promot_t5x.network.gemma import DecoderOnlyConfig

MODEL_TYPES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
TABLE = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
# Those that transformers gives windows, soft caps and norms after each part.
_LATER_GEMMAS = ("gemma2", "gemma3_text")
_SLIDES, _FULL = "sliding_attention", "full_attention"
_WIDTHS = {
    "vocab_size": "vocab_size",
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "num_decoder_layers": "num_hidden_layers",
    "norm_epsilon": "rms_norm_eps",
}
# transformers computes Gemma's 'gelu', which its first files say, by tanh as well.
_GELU = ("gelu_pytorch_tanh", "gelu", None)
_MODULES = {
    "attention": "self_attn",
    "mlp": "mlp",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "wi_0": "gate_proj",
    "wi_1": "up_proj",
    "wo": "down_proj",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_NORMS = {
    "pre_attention": "input_layernorm",
    "post_attention": "post_attention_layernorm",
    "pre_mlp": "pre_feedforward_layernorm",
    "post_mlp": "post_feedforward_layernorm",
}
# Of a model without norms after each part, the one before the MLP bears another's name.
_FEW_NORMS = {"pre_attention": "input_layernorm", "pre_mlp": "post_attention_layernorm"}
_LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")


def tensor_name(path: str, model_type: str) -> tuple[str, bool]:
    """Return transformers' name of a parameter, and whether it is transposed there.

    **Raises:** `KeyError` for a path that has none.
    """
    if path == EMBEDDING:
        return TABLE, False
    if path == LOGITS:
        return HEAD, True
    if path == "decoder/decoder_norm/scale":
        return "model.norm.weight", False
    if (layer := _LAYER.fullmatch(path)) is None:
        raise KeyError(path)
    start = f"model.layers.{layer[1]}"
    *modules, leaf = layer[2].split("/")
    if modules[0].endswith("_layer_norm"):
        norms = _NORMS if model_type in _LATER_GEMMAS else _FEW_NORMS
        return f"{start}.{norms[modules[0].removesuffix('_layer_norm')]}.weight", False
    names = ".".join(_MODULES[module] for module in modules)
    return f"{start}.{names}.{_LEAVES[leaf]}", leaf == "kernel"


def read(path: epath.Path, raw: Mapping[str, Any]) -> DecoderOnlyShape:
    """Return the shape that a `config.json` gives.

    **Raises:** `UserError` where it does not say all of it, or is of another network than this
    project's.
    """
    kind = raw["model_type"]
    gemma, later = kind.startswith("gemma"), kind in _LATER_GEMMAS
    for name in ("attention_bias", "mlp_bias", "use_bidirectional_attention", "use_sliding_window"):
        if raw.get(name):
            raise UserError(f"{path}: {name} is {raw[name]!r}; this network has none of it.")
    if kind == "gemma3_text" and raw.get("attn_logit_softcapping"):
        raise UserError(
            f"{path}: attn_logit_softcapping is {raw['attn_logit_softcapping']!r}, which "
            "transformers does not apply in a gemma3_text; write null, as the released models have."
        )
    try:
        activation = raw.get("hidden_activation", raw.get("hidden_act"))
        if activation not in (_GELU if gemma else ("silu",)):
            raise UserError(
                f"{path}: the MLP's activation is {activation!r}; here a {kind} has "
                f"{'gelu_pytorch_tanh' if gemma else 'silu'}."
            )
        heads = raw["num_attention_heads"]
        head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
        window = raw["sliding_window"] if later else 0
        theta, factor, sliding_theta = _rope(path, raw)
        return DecoderOnlyShape(
            **{ours: raw[theirs] for ours, theirs in _WIDTHS.items()},
            num_kv_heads=raw.get("num_key_value_heads") or heads,
            head_dim=head_dim,
            mlp_activations=("gelu" if gemma else "silu", "linear"),
            query_scale=raw["query_pre_attn_scalar"] if later else head_dim,
            attention_soft_cap=float((raw["attn_logit_softcapping"] if later else 0) or 0),
            logits_soft_cap=float((raw["final_logit_softcapping"] if later else 0) or 0),
            sliding_window=window or 0,
            full_attention_period=_period(path, raw) if window else 1,
            rope_theta=theta,
            rope_factor=factor,
            sliding_rope_theta=sliding_theta,
            norm_plus_one=gemma,
            qk_norm=kind in ("gemma3_text", "qwen3"),
            qkv_bias=kind == "qwen2",
            post_norms=later,
            scaled_embeddings=gemma,
            logits_via_embedding=raw.get("tie_word_embeddings", gemma),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say {error}") from None


def _rope(path: epath.Path, raw: Mapping[str, Any]) -> tuple[float, float, float | None]:
    """Return theta and factor of the layers that see everything, and theta of those that slide.

    Transformers 5 writes them elsewhere than 4.
    """
    written = raw.get("rope_parameters") or {}
    full = written.get(_FULL, written) or raw.get("rope_scaling") or {}
    slides = written.get(_SLIDES, {})
    kind = full.get("rope_type", full.get("type", "default"))
    if kind not in ("default", "linear") or slides.get("rope_type", "default") != "default":
        raise UserError(
            f"{path}: positions are scaled by {dict(written or full)!r}; this network knows a "
            "factor ('linear') in the layers that see everything, and no other scaling."
        )
    theta = full["rope_theta"] if "rope_theta" in full else raw["rope_theta"]
    near = slides["rope_theta"] if slides else raw.get("rope_local_base_freq")
    factor = float(full["factor"]) if kind == "linear" else 1.0
    if near is None and factor != 1 and raw["model_type"] in _LATER_GEMMAS:
        raise UserError(f"{path}: positions are scaled in layers that slide; here they are not.")
    return float(theta), factor, None if near is None else float(near)


def _period(path: epath.Path, raw: Mapping[str, Any]) -> int:
    """Return how many layers there are to one that sees everything."""
    default = 2 if raw["model_type"] == "gemma2" else 6
    kinds = raw.get("layer_types")
    if kinds is None:
        return int(raw.get("sliding_window_pattern", default))
    # Where all slide the period is longer than the stack; the model's own, if it can be.
    all_slide = default if default > len(kinds) else len(kinds) + 1
    period = kinds.index(_FULL) + 1 if _FULL in kinds else all_slide
    if kinds != _layer_types(len(kinds), period):
        raise UserError(
            f"{path}: layer_types is {kinds}; here every {period}. layer sees everything and the "
            "others slide."
        )
    return period


def _layer_types(depth: int, period: int) -> list[str]:
    return [_SLIDES if (layer + 1) % period else _FULL for layer in range(depth)]


def model_type(shape: DecoderOnlyShape | DecoderOnlyConfig) -> str:
    """Return transformers' type of the model that a network is, or is nearest to."""
    if shape.norm_plus_one:
        return ("gemma3_text" if shape.qk_norm else "gemma2") if shape.post_norms else "gemma"
    if shape.qkv_bias:
        return "qwen2"
    return "qwen3" if shape.qk_norm else "llama"


def write(shape: DecoderOnlyShape, dtype: str, other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` that transformers reads as this network.

    **Arguments:**

    - `dtype`: of the arrays.
    - `other`: another `config.json` of the model, whose settings that are not the network's are
      kept. Without one the special tokens are Gemma's, and of another model none are written.

    **Raises:** `UserError` where transformers has no such model.
    """
    kind = model_type(shape)
    gemma, later = shape.norm_plus_one, kind in _LATER_GEMMAS
    full = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_factor != 1:
        full |= {"rope_type": "linear", "factor": shape.rope_factor}
    activation = "gelu_pytorch_tanh" if gemma else "silu"
    settings: dict[str, Any] = {
        **({"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2} if gemma else {}),
        "attention_dropout": 0.0,
        **other,
        **{theirs: getattr(shape, ours) for ours, theirs in _WIDTHS.items()},
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": activation,
        "rope_parameters": full,
        # Version 4 of transformers looks for them here.
        "rope_theta": shape.rope_theta,
        "rope_scaling": full if shape.rope_factor != 1 else None,
        "tie_word_embeddings": shape.logits_via_embedding,
        "architectures": [MODEL_TYPES[kind]],
        "model_type": kind,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if later:
        depth, period = shape.num_decoder_layers, shape.full_attention_period
        settings |= {
            "hidden_activation": activation,
            "query_pre_attn_scalar": shape.query_scale,
            "attn_logit_softcapping": shape.attention_soft_cap or None,
            "final_logit_softcapping": shape.logits_soft_cap or None,
            "sliding_window": shape.sliding_window or None,
            "layer_types": _layer_types(depth, period if shape.sliding_window else 1),
        }
    if kind == "gemma3_text":
        near = shape.sliding_rope_theta or shape.rope_theta
        slides = {"rope_type": "default", "rope_theta": near}
        settings |= {
            "rope_parameters": {_FULL: full, _SLIDES: slides},
            "rope_local_base_freq": near,
            "sliding_window_pattern": period,
        }
    settings.pop("transformers_version", None)
    if read(epath.Path("config.json"), settings) != shape:
        raise UserError(f"transformers has no model like this one; {kind} comes nearest: {shape}.")
    return settings
