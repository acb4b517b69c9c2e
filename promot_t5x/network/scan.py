"""Where the layers of a scanned network lie: in its paths, in its arrays and in memory.

    encoder/layers_0/mlp/wo/kernel, encoder/layers_1/...  <->  encoder/encoder/mlp/wo/kernel

A scanned leaf has its layers on axis 1, as T5X's scanned networks do. What is not in a stack of
layers (embedding, norms at the end, relative position bias, prompts) is the same in both.
"""

import re

LAYER_AXIS = 1

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
