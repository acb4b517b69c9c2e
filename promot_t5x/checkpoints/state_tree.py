"""The names that the leaves of a training state have in a checkpoint.

`target/...` is what trains, `state/step` and `state/opt_state/...` is the rest, as T5X lays it out.
"""

from typing import Any

import jax
import numpy as np


def _entry_name(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    raise TypeError(f"cannot name the tree node {entry!r}")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return a pytree's leaves by '/'-joined path, in the tree's own order.

    Dict keys, sequence indices and named tuples' field names are the parts of a path, so
    an optimizer state becomes plain nested names: '0/mu/encoder/prompt/prompt'.
    """
    leaves = {}
    for entries, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = [_entry_name(entry) for entry in entries]
        # Orbax joins the names with '.', so 'a.b' and 'a' / 'b' would be one array.
        if any(c in part for part in parts for c in "/."):
            raise ValueError(f"{'/'.join(parts)!r}: a name may not hold '/' or '.'")
        leaves["/".join(parts)] = leaf
    return leaves


def state_leaves(step: Any, trainable: Any, opt_state: Any) -> dict[str, Any]:
    """Return the leaves of a training state under the names that they have on disk."""
    leaves = {f"target/{p}": x for p, x in named_leaves(trainable).items()}
    leaves |= {f"state/opt_state/{p}": x for p, x in named_leaves(opt_state).items()}
    for path, leaf in leaves.items():
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)):
            raise TypeError(f"{path} is a {type(leaf).__name__}, not an array")
        if 0 in leaf.shape:
            raise ValueError(f"{path} has no elements: shape {leaf.shape}")
    return leaves | {"state/step": step}
