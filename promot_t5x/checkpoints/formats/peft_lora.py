"""LoRA adapters of Hugging Face's `peft`, written and read.

peft keeps A as [rank, in] and B as [out, rank], under transformers' names of the modules:

    base_model.model.encoder.block.0.layer.0.SelfAttention.q.lora_A.weight
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from promot_t5x.checkpoints.formats import hf_decoder_only, hf_t5gemma, safetensors
from promot_t5x.checkpoints.formats.hugging_face import tensor_name
from promot_t5x.checkpoints.formats.peft import CONFIG_FILE, WEIGHTS_FILE, open_adapter_files
from promot_t5x.checkpoints.formats.reading import reading
from promot_t5x.errors import UserError, listed
from promot_t5x.files import write_json
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.gemma import DecoderOnlyConfig, T5GemmaConfig
from promot_t5x.network.lora import LoRA, kernel_of, parts_of
from promot_t5x.network.parameters import param_shapes
from promot_t5x.paths import user_path

KIND = "LORA"
_PREFIX = "base_model.model."
_SUFFIXES = (".lora_A.weight", ".lora_B.weight")
_LAYER = re.compile(r"(encoder|decoder)/layers_\d+/(.+)")
# What changes the numbers and has no counterpart here, and the value with which it does nothing.
_MUST_BE = {
    "use_dora": (None, False),
    "bias": (None, "none"),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "fan_in_fan_out": (None, False),
    "lora_bias": (None, False),
    "use_qalora": (None, False),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Said:
    """What an adapter's configuration says of its modules' ranks and scales."""

    config: Mapping[str, Any]

    def rank(self, module: str) -> int:
        return int(self._of(module, "rank_pattern", "r"))

    def scale(self, module: str) -> float:
        rank = self.rank(module)
        divisor = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return float(self._of(module, "alpha_pattern", "lora_alpha")) / divisor

    def _of(self, module: str, pattern: str, name: str) -> Any:
        for end, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({end})$", module):
                return value
        return self.config[name]


def load(directory: epath.Path, config: NetworkConfig) -> tuple[LoRA, dict[str, np.ndarray]]:
    """Read an adapter.

    peft may adapt some layers only, or give modules ranks and alphas of their own. Here all have
    one rank and one alpha: matrices are filled up with zeros, and B carries what is left of a
    scale, which changes no product.

    **Arguments:**

    - `config`: the network that takes it, not scanned.

    **Returns:** which kernels are adapted, and the matrices by path, float32.

    **Raises:** `UserError` where the adapter is of another method or variant, or of other modules
    than the network has.
    """
    said, tensors = open_adapter_files(directory, KIND, "adapters of kernels")
    for name, neutral in _MUST_BE.items():
        if (value := said.get(name)) not in neutral:
            raise UserError(
                f"{directory / CONFIG_FILE} has {name} = {value!r}; adapters of kernels have no "
                f"such thing here. Train it with {neutral[1]!r}."
            )
    kernels = _modules(config)
    pairs: dict[str, tuple[Any, Any]] = {}
    for name in list(tensors):
        module = name.removeprefix(_PREFIX).removesuffix(_SUFFIXES[0])
        other = f"{_PREFIX}{module}{_SUFFIXES[1]}"
        if module in kernels and other in tensors:
            pairs[module] = (tensors.pop(name), tensors.pop(other))
    if tensors or not pairs:
        raise UserError(
            f"{directory / WEIGHTS_FILE} holds {listed(sorted(tensors))}, which belong to no "
            f"kernel of this model ({len(kernels)} modules such as {next(iter(kernels))})."
        )
    known = _Said(config=said)
    with reading(directory):
        read = {
            kernels[module]: (_transposed(a), _transposed(b), known.scale(module))
            for module, (a, b) in pairs.items()
        }
    return _evened(read, config, float(said.get("lora_dropout") or 0.0))


def save(
    directory: str | os.PathLike[str],
    lora: LoRA,
    arrays: Mapping[str, np.ndarray],
    *,
    config: NetworkConfig,
    base_model: str | None = None,
) -> None:
    """Write an adapter that `peft.PeftModel.from_pretrained` puts on the Hugging Face model.

    **Arguments:**

    - `directory`: local; created if need be.
    - `arrays`: the matrices by path, one layer after the other.
    - `config`: of the network, whose family has its own names of modules.
    - `base_model`: the Hugging Face model that it belongs to, for the adapter's record.

    **Raises:** `UserError` where there is an adapter already.
    """
    place = user_path(directory, "an adapter's directory")
    if (place / CONFIG_FILE).exists():
        raise UserError(f"{place} holds an adapter already; name another directory.")
    place.mkdir(parents=True, exist_ok=True)
    kind = _model_type(config)
    modules = {kernel: _module(kernel, kind) for kernel in sorted({*map(kernel_of, arrays)})}
    named = {
        f"{_PREFIX}{module}{suffix}": np.ascontiguousarray(arrays[part].T)
        for kernel, module in modules.items()
        for part, suffix in zip(parts_of(kernel), _SUFFIXES, strict=True)
    }
    writer = safetensors.FileWriter(place / WEIGHTS_FILE, named)
    for name, array in named.items():
        writer.add(name, array)
    writer.close()
    causal = isinstance(config, DecoderOnlyConfig)
    settings = {
        "peft_type": KIND,
        "task_type": "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.scale * lora.rank,
        "lora_dropout": lora.dropout_rate,
        "target_modules": list(modules.values()),
        "bias": "none",
        "fan_in_fan_out": False,
    }
    write_json(place / CONFIG_FILE, settings)


def _model_type(config: NetworkConfig) -> str:
    if isinstance(config, DecoderOnlyConfig):
        return hf_decoder_only.model_type(config)
    return hf_t5gemma.MODEL_TYPE if isinstance(config, T5GemmaConfig) else "t5"


def _module(kernel: str, kind: str) -> str:
    """Return transformers' name of the module that a kernel is the weight of."""
    return tensor_name(kernel, kind)[0].removesuffix(".weight")


def _modules(config: NetworkConfig) -> dict[str, str]:
    """Return the network's kernels by transformers' names of their modules."""
    kind = _model_type(config)
    paths = flatten_dict(param_shapes(config), sep="/")
    return {_module(p, kind): p for p in paths if p.endswith("/kernel")}


def _evened(
    read: Mapping[str, tuple[np.ndarray, np.ndarray, float]],
    config: NetworkConfig,
    dropout_rate: float,
) -> tuple[LoRA, dict[str, np.ndarray]]:
    """Give all layers of a kind, and all kernels, adapters of one rank and one scale."""
    rank = max(a.shape[1] for a, _, _ in read.values())
    scale = next(iter(read.values()))[2]
    kinds = {_LAYER.sub(r"\1/(\1|layers_\\d+)/\2", kernel) for kernel in read}
    lora = LoRA(rank=rank, alpha=scale * rank, dropout_rate=dropout_rate, kernels=sorted(kinds))
    arrays = {}
    for kernel, leaf in flatten_dict(param_shapes(config), sep="/").items():
        if not lora.adapts(kernel):
            continue
        a, b, own = read.get(kernel, _nothing(leaf))
        missing = rank - a.shape[1]
        of_a, of_b = parts_of(kernel)
        arrays[of_a] = np.pad(a, ((0, 0), (0, missing)))
        arrays[of_b] = np.pad(b if own == scale else b * (own / scale), ((0, missing), (0, 0)))
    return lora, arrays


def _transposed(tensor: safetensors.Tensor) -> np.ndarray:
    return tensor[...].astype(np.float32).T


def _nothing(kernel: jax.ShapeDtypeStruct) -> tuple[np.ndarray, np.ndarray, float]:
    """Return an adapter of rank 0."""
    rows, columns = kernel.shape
    return np.zeros((rows, 0), np.float32), np.zeros((0, columns), np.float32), 0.0
