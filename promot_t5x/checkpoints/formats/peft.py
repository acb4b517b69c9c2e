"""A trained prompt as a prompt-tuning adapter of Hugging Face's `peft`."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from promot_t5x.checkpoints.formats import safetensors
from promot_t5x.errors import UserError
from promot_t5x.files import write_json
from promot_t5x.paths import user_path

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_VECTORS = "prompt_embeddings"


def save_adapters(
    directory: str | os.PathLike,
    prompts: Float[np.ndarray, "tasks length embed"],
    names: Sequence[str],
    *,
    base_model: str | None = None,
) -> list[epath.Path]:
    """Write prompts as adapters: one to `directory`, several to `directory/<name>`.

    Returns:
      The adapters' directories.

    Raises:
      UserError: one of them holds an adapter already, or two names are the same.
    """
    place = user_path(directory, "an adapter's directory")
    places = [place] if len(prompts) == 1 else [place / name for name in names]
    if len(set(places)) < len(prompts):
        raise UserError(f"{directory}: the tasks {list(names)} are not all different.")
    for path in places:
        if (path / CONFIG_FILE).exists():
            raise UserError(f"{path} holds an adapter already; name another directory.")
    for path, prompt in zip(places, prompts, strict=True):
        save_peft(path, np.asarray(prompt, np.float32), base_model=base_model)
    return places


def save_peft(
    directory: str | os.PathLike,
    prompt: Float[np.ndarray, "length embed"],
    *,
    base_model: str | None = None,
) -> None:
    """Write one prompt as an adapter that `peft.PeftModel.from_pretrained` puts on a T5.

    peft puts the vectors in front of the encoder's embedded inputs, as they were trained here. By
    default it would expect as many again for the decoder, which it then never uses:
    `num_transformer_submodules` = 1 says that there are none.

    Args:
      directory: local; created if need be.
      prompt: float32, of one task.
      base_model: the Hugging Face model that it belongs to, for the adapter's record.
    """
    place = user_path(directory, "an adapter's directory")
    length, embed = prompt.shape
    place.mkdir(parents=True, exist_ok=True)
    writer = safetensors.FileWriter(place / WEIGHTS_FILE, {_VECTORS: prompt})
    writer.add(_VECTORS, prompt)
    writer.close()
    told = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "num_virtual_tokens": length,
        "token_dim": embed,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
    }
    write_json(place / CONFIG_FILE, told)
