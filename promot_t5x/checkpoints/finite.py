"""Numbers that are not finite, found where the arrays lie: on the devices or on the host."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Shaped


def non_finite(arrays: Mapping[str, Any]) -> list[str]:
    """Return the names of the arrays that hold NaN or an infinity, in their order.

    **Arguments:**

    - `arrays`: numpy or JAX arrays by name; integers are always finite. Every process must call
      this alike when an array spans processes, and all get the same answer.
    """
    floating = {n: a for n, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.inexact)}
    # All devices are given their work before the first result is waited for.
    finite = jax.device_get({name: _is_finite(array) for name, array in floating.items()})
    return [name for name in floating if not finite[name]]


def _is_finite(array: Any) -> Any:
    if not isinstance(array, jax.Array):
        return np.isfinite(array).all()
    sharding = array.sharding
    return _check_on_devices(sharding if isinstance(sharding, NamedSharding) else None)(array)


@functools.cache
def _check_on_devices(sharding: NamedSharding | None) -> Callable[[Any], jax.Array]:
    replicated = sharding and NamedSharding(sharding.mesh, PartitionSpec())

    def check(array: Shaped[Array, "..."]) -> Bool[Array, ""]:
        return jnp.isfinite(array).all()

    return jax.jit(check, out_shardings=replicated)
