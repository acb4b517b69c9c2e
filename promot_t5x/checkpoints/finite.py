"""Numbers that are not finite, found where the arrays lie: on the devices or on the host."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, Bool, Shaped


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays that hold NaN or an infinity, in their order.

    **Arguments:**

    - `arrays`: numpy or JAX arrays by name; integers are always finite. Every process must call
      this alike when an array spans processes, and all get the same answer.
    """
    floating = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.inexact)}
    # All devices are given their work before the first result is waited for.
    finite = jax.device_get({name: _finite_parts(array) for name, array in floating.items()})
    wrong = np.array([not all(finite[name]) for name in floating], bool)
    if not all(getattr(array, "is_fully_addressable", True) for array in floating.values()):
        wrong = np.any(multihost_utils.process_allgather(wrong), axis=0)
    return [name for name, is_wrong in zip(floating, wrong, strict=True) if is_wrong]


def non_finite_state(leaves: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays of a training state for which it may not be saved.

    **Arguments:**

    - `leaves`: by their paths in a checkpoint, `target/...` and `state/...`. Of these, a scalar of
      the optimizer may be infinite: it can stand for "none yet", as in optax's
      `reduce_on_plateau`.
    """

    def is_none_yet(path: str) -> bool:
        leaf = leaves[path]
        return path.startswith("state/") and leaf.ndim == 0 and not np.isnan(leaf)

    return [path for path in non_finite(leaves) if not is_none_yet(path)]


def _finite_parts(array: Any) -> list[Any]:
    """Check each part of an array that this process holds, where it is; devices do not talk."""
    if not isinstance(array, jax.Array):
        return [np.isfinite(array).all()]
    parts = {str(shard.index): shard.data for shard in array.addressable_shards}
    return [_is_finite(part) for part in parts.values()]


@jax.jit
def _is_finite(array: Shaped[Array, "..."]) -> Bool[Array, ""]:
    return jnp.isfinite(array).all()
