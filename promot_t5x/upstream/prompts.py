"""The initial prompt table of a network that T5X initializes: `T5Config.prompt_init`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.decoding.decoder import seed_key
from promot_t5x.network.prompt_init import Prompts, Shape, Uniform


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class InitialPrompt:
    """The prompts that this project's own engine would start from, bit for bit.

    - `source`: PROMPT_INIT: an initializer of `prompt_init`, or the path of a trained prompt, see
      `prompt_file.load_prompt`. None is for prompts that a checkpoint brings; what is drawn then
      is replaced.
    - `base`: INITIAL_CHECKPOINT_PATH, whose embedding some initializers read.
    - `vocabulary`: of the model, for initializers with texts.
    - `seed`: RANDOM_SEED. T5X's own key is not used: None there is the time of day.
    """

    source: Any
    base: str | None = None
    vocabulary: Any = None
    seed: int | None = 0

    def __call__(self, rng: jax.Array, shape: Shape, dtype: Any) -> Float[Array, "..."]:
        """Draw or read the prompts while the caller is traced, as a flax initializer.

        **Arguments:**

        - `rng`: not used.
        - `shape`: (prompts, length, embed).
        - `dtype`: of the result.
        """
        del rng
        with jax.ensure_compile_time_eval():
            return jnp.asarray(_table(self, tuple(shape)), dtype)


@functools.lru_cache(maxsize=8)
def _table(prompt: InitialPrompt, shape: Shape) -> Prompts:
    # T5X traces an initializer several times, and reading an embedding can take minutes.
    if isinstance(prompt.source, str):
        return prompt_file.load_prompt(prompt.source, shape=shape)[0]
    init = prompt.source or Uniform()
    embedding = None
    if prompt.base is not None and not isinstance(init, Uniform):
        parameters = open_checkpoint(prompt.base)
        embedding = parameters.read({EMBEDDING: parameters.shapes[EMBEDDING]})[EMBEDDING]
    key = seed_key(prompt.seed or 0)
    return np.asarray(init(key, shape, embedding=embedding, vocabulary=prompt.vocabulary))
