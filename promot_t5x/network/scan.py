"""Between a tree with one subtree a layer and the tree of a scanned network, bit for bit.

    encoder/layers_0/mlp/wo/kernel, encoder/layers_1/...  <->  encoder/encoder/mlp/wo/kernel

A scanned leaf has its layers on axis 1, as T5X's scanned networks do. What is not in a stack of
layers (embedding, norms at the end, relative position bias, prompts) is the same in both.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.errors import UserError
from promot_t5x.network.config import T5Config

LAYER_AXIS = 1

Params = dict[str, Any]

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_HEADS = re.compile(r"/(query|key|value)/kernel$")
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")


def layer_axis(path: str) -> int | None:
    """Axis of the layers in the parameter at a '/'-joined path; None outside a scanned stack."""
    return LAYER_AXIS if _SCANNED.fullmatch(path) else None


def layer_paths(path: str, depth: int) -> list[str]:
    """Paths of the single layers that the parameter at a path of a scanned stack is made of."""
    match = _SCANNED.fullmatch(path)
    if match is None:
        raise ValueError(f"{path!r} is not in a scanned stack")
    stack, rest = match.groups()
    return [f"{stack}/layers_{i}/{rest}" for i in range(depth)]


def major_to_minor(path: str, ndim: int) -> tuple[int, ...] | None:
    """Order in memory, slowest axis first, of the parameter at a path; None: that of its axes.

    In a scanned stack the layers lie one after the other, each as the TPU's products read it, so
    that a loop over them uses the parameters where they are. In the order of the axes, with the
    layers on axis 1, the compiler begins each step with a copy of the whole stack.
    """
    if layer_axis(path) is None:
        return None
    inner = tuple(axis for axis in range(ndim) if axis != LAYER_AXIS)
    if _HEADS.search(path):
        inner = inner[::-1]
    return (LAYER_AXIS, *inner)


def scan_params(params: Params, config: T5Config) -> Params:
    """Stack the layers of a tree; numpy leaves stay numpy, jax leaves stay jax.

    The tree may be a part of the parameters. Raises UserError if a stack is not `config`'s deep
    or if the tree is scanned already.
    """
    flat = flatten_dict(params, sep="/")
    result: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for path, leaf in flat.items():
        if layer_axis(path) is not None:
            raise UserError(f"Cannot stack layers: {path!r} is stacked already.")
        if match := _LAYER.fullmatch(path):
            stack, layer, rest = match.groups()
            stacks.setdefault(f"{stack}/{stack}/{rest}", {})[int(layer)] = leaf
        else:
            result[path] = leaf
    for path, layers in stacks.items():
        depth = _depth(path, config)
        if sorted(layers) != list(range(depth)):
            raise UserError(
                f"Cannot stack layers into {path!r}: the tree has layers {sorted(layers)} and the "
                f"config {depth} of them, 0 ... {depth - 1}."
            )
        result[path] = _stack([layers[i] for i in range(depth)])
    return unflatten_dict(result, sep="/")


def unscan_params(params: Params, config: T5Config) -> Params:
    """Split a scanned tree into layers; the inverse of `scan_params`, with the same errors."""
    result: dict[str, Any] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        if _LAYER.fullmatch(path):
            raise UserError(f"Cannot split layers: {path!r} is of one layer already.")
        match = _SCANNED.fullmatch(path)
        if match is None:
            result[path] = leaf
            continue
        depth = _depth(path, config)
        if leaf.ndim <= LAYER_AXIS or leaf.shape[LAYER_AXIS] != depth:
            raise UserError(
                f"Cannot split layers: {path!r} has shape {tuple(leaf.shape)} and the config "
                f"{depth} layers, which must be the size of axis {LAYER_AXIS}."
            )
        for i, name in enumerate(layer_paths(path, depth)):
            result[name] = leaf[:, i]
    return unflatten_dict(result, sep="/")


def _depth(path: str, config: T5Config) -> int:
    if path.startswith("encoder/"):
        return config.num_encoder_layers
    return config.num_decoder_layers


def _stack(leaves: list[Any]) -> Any:
    if isinstance(leaves[0], jax.Array):
        return jnp.stack(leaves, axis=LAYER_AXIS)
    return np.stack(leaves, axis=LAYER_AXIS)
