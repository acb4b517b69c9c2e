"""T5Gemma as `transformers` has it: its `config.json` and its names of tensors."""

import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from promot_t5x.checkpoints.formats.shape import (
    DECODER_EMBEDDING,
    EMBEDDING,
    T5GemmaShape,
)
from promot_t5x.errors import UserError

MODEL_TYPE = "t5gemma"
# The decoder's embedding once more, where a file stores it twice.
HEADS = ("lm_head.out_proj.weight",)
_ACTIVATION = "gelu_pytorch_tanh"
_SLIDES, _FULL = "sliding_attention", "full_attention"
_WIDTHS = {
    "emb_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
}
# What both stacks have alike here; transformers lets them differ.
_SHARED = {
    "vocab_size": "vocab_size",
    "query_scale": "query_pre_attn_scalar",
    "attention_soft_cap": "attn_logit_softcapping",
    "logits_soft_cap": "final_logit_softcapping",
    "sliding_window": "sliding_window",
    "norm_epsilon": "rms_norm_eps",
}
# Part of a layer here -> there, but for the norms before and after it.
_PARTS = {
    "attention": "self_attn",
    "self_attention": "self_attn",
    "encoder_decoder_attention": "cross_attn",
    "cross_attention": "cross_attn",
    "mlp": "mlp",
}
_KERNELS = {
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "o_proj",
    "wi_0": "gate_proj",
    "wi_1": "up_proj",
    "wo": "down_proj",
}
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_NORM = re.compile(r"(pre|post)_(.+)_layer_norm/scale")


def tensor_name(path: str) -> tuple[str, bool]:
    """Return transformers' name of a parameter, and whether it is transposed there.

    **Raises:** `KeyError` for a path that has none.
    """
    if path in (EMBEDDING, DECODER_EMBEDDING):
        return f"model.{'encoder' if path == EMBEDDING else 'decoder'}.embed_tokens.weight", False
    if last := re.fullmatch(r"(encoder|decoder)/\1_norm/scale", path):
        return f"model.{last[1]}.norm.weight", False
    if (layer := _LAYER.fullmatch(path)) is None:
        raise KeyError(path)
    stack, number, rest = layer.groups()
    start = f"model.{stack}.layers.{number}"
    if norm := _NORM.fullmatch(rest):
        part = "feedforward" if norm[2] == "mlp" else _PARTS[norm[2]]
        return f"{start}.{norm[1]}_{part}_layernorm.weight", False
    part, kernel, _ = rest.split("/")
    return f"{start}.{_PARTS[part]}.{_KERNELS[kernel]}.weight", True


def read(path: epath.Path, raw: Mapping[str, Any]) -> T5GemmaShape:
    """Return the shape that a `config.json` gives.

    **Raises:** `UserError` where it does not say all of it, or is of another network than this
    project's.
    """
    try:
        stacks: dict[str, Any] = {side: raw[side] for side in ("encoder", "decoder")}
        for side, stack in stacks.items():
            _check(path, side, stack)
        first, second = stacks.values()
        shared = {ours: first[theirs] or 0 for ours, theirs in _SHARED.items()}
        for theirs in _SHARED.values():
            if first[theirs] != second[theirs]:
                raise UserError(
                    f"{path}: {theirs} is {first[theirs]!r} in the encoder and "
                    f"{second[theirs]!r} in the decoder; this network has one for both."
                )
        thetas = [_theta(path, stack) for stack in stacks.values()]
        if thetas[0] != thetas[1]:
            raise UserError(f"{path}: the stacks' rope_theta are {thetas}; here they are one.")
        return T5GemmaShape(
            **shared,
            **{ours: first[theirs] for ours, theirs in _WIDTHS.items()},
            **{f"decoder_{ours}": second[theirs] for ours, theirs in _WIDTHS.items()},
            num_encoder_layers=first["num_hidden_layers"],
            num_decoder_layers=second["num_hidden_layers"],
            mlp_activations=("gelu", "linear"),
            full_attention_period=_period(path, stacks),
            rope_theta=thetas[0],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not say {error}") from None


def _check(path: epath.Path, side: str, stack: Mapping[str, Any]) -> None:
    fixed = {
        "hidden_activation": _ACTIVATION,
        "attention_bias": False,
        "tie_word_embeddings": True,
    }
    for name, value in fixed.items():
        if stack.get(name, value) != value:
            raise UserError(f"{path}: {side}.{name} is {stack[name]!r}; here it is {value!r}.")


def _theta(path: epath.Path, stack: Mapping[str, Any]) -> float:
    """Return the base of the wavelengths, which transformers 5 writes elsewhere than 4."""
    rope = stack.get("rope_parameters") or stack.get("rope_scaling") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"{path}: positions are scaled by {rope!r}; this network does not.")
    return float(rope["rope_theta"] if "rope_theta" in rope else stack["rope_theta"])


def _period(path: epath.Path, stacks: Mapping[str, Any]) -> int:
    """Return how many layers there are to one that sees everything."""
    kinds = [stack["layer_types"] for stack in stacks.values()]
    longest = max(kinds, key=len)
    period = longest.index(_FULL) + 1 if _FULL in longest else len(longest) + 1
    for side, found in zip(stacks, kinds, strict=True):
        if found != _layer_types(len(found), period):
            raise UserError(
                f"{path}: {side}.layer_types is {found}; here every {period}. layer of a stack "
                "sees everything and the others slide."
            )
    return period


def _layer_types(depth: int, period: int) -> list[str]:
    return [_SLIDES if (layer + 1) % period else _FULL for layer in range(depth)]


def write(shape: T5GemmaShape, dtype: str, other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a `config.json` that transformers reads as this network.

    **Arguments:**

    - `dtype`: of the arrays.
    - `other`: another `config.json` of the model, whose settings that are not the network's are
      kept. Without one the special tokens are those of T5Gemma's own vocabulary.
    """
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    stacks = {}
    for side, start in (("encoder", ""), ("decoder", "decoder_")):
        depth: int = getattr(shape, f"num_{side}_layers")
        stacks[side] = {
            **ids,
            "attention_dropout": 0.0,
            "dropout_rate": 0.0,
            **other.get(side, {}),
            **{theirs: getattr(shape, ours) for ours, theirs in _SHARED.items()},
            **{theirs: getattr(shape, f"{start}{ours}") for ours, theirs in _WIDTHS.items()},
            "attn_logit_softcapping": shape.attention_soft_cap or None,
            "final_logit_softcapping": shape.logits_soft_cap or None,
            "num_hidden_layers": depth,
            "layer_types": _layer_types(depth, shape.full_attention_period),
            "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
            # Version 4 of transformers looks for it here.
            "rope_theta": shape.rope_theta,
            "hidden_activation": _ACTIVATION,
            "attention_bias": False,
            "is_decoder": side == "decoder",
            "model_type": "t5_gemma_module",
            "tie_word_embeddings": True,
        }
    stacks["decoder"]["cross_attention_hidden_size"] = shape.emb_dim
    settings = {
        **ids,
        "dropout_rate": 0.0,
        **other,
        **stacks,
        "architectures": ["T5GemmaForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "vocab_size": shape.vocab_size,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    settings.pop("transformers_version", None)
    return settings
