"""Trees of a scanned network from trees of single layers, and back, for tests of equal numbers."""

import re

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from promot_t5x.network.scan import LAYER_AXIS, layer_axis, layer_paths

LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def scan_params(params):
    """Stack the layers of a tree, or of a part of one."""
    result, stacks = {}, {}
    for path, leaf in flatten_dict(params, sep="/").items():
        if match := LAYER.fullmatch(path):
            stack, layer, rest = match.groups()
            stacks.setdefault(f"{stack}/{stack}/{rest}", {})[int(layer)] = leaf
        else:
            result[path] = leaf
    for path, layers in stacks.items():
        leaves = [np.asarray(layers[i]) for i in range(len(layers))]
        result[path] = np.stack(leaves, axis=LAYER_AXIS)
    return unflatten_dict(result, sep="/")


def unscan_params(params):
    """Split a scanned tree into layers."""
    result = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        if layer_axis(path) is None:
            result[path] = leaf
            continue
        for i, name in enumerate(layer_paths(path, leaf.shape[LAYER_AXIS])):
            result[name] = leaf[:, i]
    return unflatten_dict(result, sep="/")
