"""Trained prompts as prompt-tuning adapters of Hugging Face's `peft`, written and read."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from promot_t5x.checkpoints.formats import safetensors
from promot_t5x.checkpoints.formats.reading import read_json, reading, refuse_stand_in
from promot_t5x.errors import UserError, listed
from promot_t5x.files import write_json
from promot_t5x.paths import user_path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_KIND = "PROMPT_TUNING"
_VECTORS = "prompt_embeddings"


def open_adapter_files(
    directory: epath.Path, kind: str, are: str
) -> tuple[dict[str, Any], dict[str, safetensors.Tensor]]:
    """Read an adapter's configuration, and open its tensors.

    **Arguments:**

    - `kind`: peft's name of its method.
    - `are`: what adapters of that method are, for the message.

    **Raises:** `UserError` where it is of another method, or has no file of tensors.
    """
    config = read_json(directory / CONFIG_FILE)
    found = config.get("peft_type") if isinstance(config, dict) else None
    if found != kind:
        raise UserError(
            f"{directory} is an adapter of type {found!r}; only {kind} adapters are {are}."
        )
    if not (directory / WEIGHTS_FILE).exists():
        refuse_stand_in(directory / WEIGHTS_FILE)
        raise UserError(
            f"{directory} has no {WEIGHTS_FILE}. Save the adapter with save_pretrained(..., "
            "safe_serialization=True)."
        )
    return config, safetensors.open_file(directory / WEIGHTS_FILE)


def save_adapters(
    directory: str | os.PathLike[str],
    prompts: Float[np.ndarray, "tasks length embed"],
    names: Sequence[str],
    *,
    base_model: str | None = None,
    causal: bool = False,
) -> list[epath.Path]:
    """Write prompts as adapters: one to `directory`, several to `directory/<name>`.

    **Arguments:**

    - `directory`: local; created if need be.
    - `prompts`: float32.
    - `names`: one for each prompt.
    - `base_model`: the Hugging Face model that they belong to, for the adapters' record.
    - `causal`: whether that is a decoder-only model, and no encoder-decoder.

    **Returns:** the adapters' directories.

    **Raises:** `UserError` where one of them holds an adapter already, or two names are the same.
    """
    place = user_path(directory, "an adapter's directory")
    places = [place] if len(prompts) == 1 else [place / name for name in names]
    if len(set(places)) < len(prompts):
        raise UserError(f"{directory}: the tasks {list(names)} are not all different.")
    for path in places:
        if (path / CONFIG_FILE).exists():
            raise UserError(f"{path} holds an adapter already; name another directory.")
    for path, prompt in zip(places, prompts, strict=True):
        _save_adapter(path, np.asarray(prompt, np.float32), base_model, causal=causal)
    return places


def load_adapter(directory: epath.Path) -> Float[np.ndarray, "length embed"]:
    """Read the prompt of an adapter, as peft puts it in front of the encoder's inputs.

    **Raises:** `UserError` where the adapter is of another method, or holds no such prompt.
    """
    config, tensors = open_adapter_files(directory, _KIND, "soft prompts")
    if _VECTORS not in tensors:
        raise UserError(
            f"{directory / WEIGHTS_FILE} lacks {_VECTORS}; it holds {listed(sorted(tensors))}."
        )
    with reading(directory):
        vectors = tensors[_VECTORS][...].astype(np.float32)
    length = config.get("num_virtual_tokens", len(vectors))
    if vectors.ndim != 2 or not 0 < length <= len(vectors):
        raise UserError(
            f"{directory}: {_VECTORS} is {list(vectors.shape)}, and {CONFIG_FILE} says "
            f"num_virtual_tokens = {length!r}."
        )
    # What follows is for the decoder, and peft does not use it either.
    return vectors[:length]


def _save_adapter(
    directory: epath.Path,
    prompt: Float[np.ndarray, "length embed"],
    base_model: str | None,
    *,
    causal: bool,
) -> None:
    """Write one prompt as an adapter that `peft.PeftModel.from_pretrained` puts on a model.

    peft puts the vectors in front of the embedded inputs, as they were trained here. For T5, by
    default it would expect as many again for the decoder, which it then never uses:
    `num_transformer_submodules` = 1 says that there are none.
    """
    length, embed = prompt.shape
    directory.mkdir(parents=True, exist_ok=True)
    writer = safetensors.FileWriter(directory / WEIGHTS_FILE, {_VECTORS: prompt})
    writer.add(_VECTORS, prompt)
    writer.close()
    config = {
        "peft_type": _KIND,
        "task_type": "CAUSAL_LM" if causal else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": embed,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    write_json(directory / CONFIG_FILE, config)
