"""Soft prompts as virtual tokens: ids above the vocabulary name the vectors of a prompt table.

Prompt k's vector j is the id `vocab_size + k * prompt_length + j`. A batch mixes texts and any
prompts freely; masks, packing and removal of a prompt need to know nothing about it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float, Int, Integer

from promot_t5x.errors import UserError
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.layers import Embed

PROMPT_PATH = "encoder/prompt/prompt"
PROMPT_AXES = ("tasks", "prompt", "prompt_embed")


def _uniform(rng: jax.Array, shape: tuple[int, int, int], dtype: Any) -> Array:
    return jax.random.uniform(rng, shape, dtype, minval=-0.5, maxval=0.5)


class SoftPrompt(nn.Module):
    """The table of prompts, [num_prompts, prompt_length, emb_dim], and the look-up of mixed ids.

    The table starts uniform in +-0.5 (Lester et al. 2021), or as `NetworkConfig.prompt_init` says.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(
        self, ids: Int[Array, "batch length"], vocabulary: Embed
    ) -> Float[Array, "batch length embed"]:
        """Embed ids: from `vocabulary` below vocab_size, from the prompt table at and above it.

        Where no id is virtual the result is `vocabulary(ids)`, bit for bit.
        """
        cfg = self.config
        shape = (cfg.num_prompts, cfg.prompt_length, cfg.emb_dim)
        init = cfg.prompt_init or _uniform
        table = param_with_axes("prompt", init, shape, jnp.float32, axes=PROMPT_AXES)
        rows = table.reshape(cfg.num_virtual_ids, cfg.emb_dim)
        virtual = ids >= cfg.vocab_size
        # Both tables are read everywhere, inside their bounds, and `where` chooses.
        prompted = jnp.take(rows, ids - cfg.vocab_size, axis=0, mode="clip").astype(cfg.dtype)
        return jnp.where(virtual[..., None], prompted, vocabulary(ids))


def prompt_ids(config: NetworkConfig, prompt: int) -> Integer[np.ndarray, " prompt_length"]:
    """Return the int32 ids of a prompt's vectors; raise `UserError` if there is no such prompt."""
    if not 0 <= prompt < config.num_prompts:
        raise UserError(f"There is no prompt {prompt}: NUM_PROMPTS is {config.num_prompts}.")
    first = config.vocab_size + prompt * config.prompt_length
    return np.arange(first, first + config.prompt_length, dtype=np.int32)
