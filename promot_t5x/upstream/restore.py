"""T5X's `utils.RestoreCheckpointConfig.state_transformation_fns`: what a checkpoint provides.

T5X itself starts at random whatever a checkpoint lacks if it may start anything so
(`fallback_to_scratch`), and says it in the log; here a weight that is missing is an error.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.errors import UserError, listed
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.network.scan import LAYER_AXIS, layer_axis, layer_paths

_SPEC_KEYS = {"driver", "kvstore", "metadata"}


def weights_only(
    checkpoint: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    path: str | None = None,
    prompt: Any = None,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
    """Take the model's weights, for a stage's start; the optimizer's slots and its step are fresh.

    **Arguments:**

    - `checkpoint`: the tree of what is stored; `target` holds the parameters, `state` the step and
      the slots.
    - `model`: the tree of what T5X wants, likewise.
    - `path`: where the checkpoint is. With it, a network that scans its layers takes a checkpoint
      that has them one by one: each host then reads and stacks all of them.
    - `prompt`: PROMPT_INIT: where the prompt comes from if not from the checkpoint. A prompt in the
      checkpoint is then left behind.
    - `is_resuming`: T5X says so where it continues a run of its own: all is taken as it is.

    **Raises:** `UserError` if the checkpoint lacks a parameter of the model.
    """
    if is_resuming:
        return checkpoint
    return {"target": _weights(checkpoint, model, path, prompt)}


def weights_and_step(
    checkpoint: Mapping[str, Any],
    model: Mapping[str, Any],
    *,
    path: str | None = None,
    prompt: Any = None,
    is_resuming: bool = False,
) -> Mapping[str, Any]:
    """Take the weights and the step, which names the results, for evaluation and inference.

    **Arguments and errors:** as `weights_only`.
    """
    if is_resuming:
        return checkpoint
    step = {"step": checkpoint["state"]["step"]}
    return {"target": _weights(checkpoint, model, path, prompt), "state": step}


def _weights(
    checkpoint: Mapping[str, Any], model: Mapping[str, Any], path: str | None, prompt: Any
) -> Any:
    stored, wanted = _flat(checkpoint["target"]), _flat(model["target"])
    if prompt is not None:
        stored.pop(PROMPT_PATH, None)
        wanted.pop(PROMPT_PATH, None)
    if path is not None:
        stored |= _stacked(path, {p: leaf for p, leaf in wanted.items() if p not in stored})
    missing = sorted(wanted.keys() - stored.keys())
    if missing == [PROMPT_PATH]:
        raise UserError(
            "The checkpoint holds no prompt: name one, PROMPT_FILE, or take a checkpoint of a "
            "stage that had one."
        )
    if missing:
        raise UserError(
            f"The checkpoint lacks {len(missing)} of the model's {len(wanted)} parameters: "
            f"{listed(missing)}. Choose the model configuration that the weights are of. (This "
            "project's own stages save only what they train.)"
        )
    return traverse_util.unflatten_dict({path: stored[path] for path in wanted}, sep="/")


def _stacked(path: str, missing: Mapping[str, Any]) -> dict[str, Any]:
    """Read the scanned layers among `missing`, if the checkpoint has all of them singly."""
    scanned = {p: leaf for p, leaf in missing.items() if layer_axis(p) is not None}
    if not scanned:
        return {}
    parameters = open_checkpoint(path)
    singly = {
        p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for p, leaf in scanned.items()
        if set(layer_paths(p, leaf.shape[LAYER_AXIS])) <= parameters.shapes.keys()
    }
    return parameters.read(singly)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a tree to {'a/b': leaf}; T5X's older format has dicts for leaves."""
    flat: dict[str, Any] = traverse_util.flatten_dict(
        tree, is_leaf=lambda _, node: set(node) >= _SPEC_KEYS, sep="/"
    )
    return flat
