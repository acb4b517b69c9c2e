"""The one way to a model's weights: open any checkpoint as a source of parameters.

A checkpoint is one of T5X (legacy or orbax), of Hugging Face or of this project, found by its path
or its name. The format is detected from what is in the directory. What does not fit the network is
an error that names the arrays; nothing is ever filled in from scratch.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util

from promot_t5x.checkpoints.finding import StoredCheckpoint, open_stored
from promot_t5x.checkpoints.finite import non_finite
from promot_t5x.checkpoints.formats.hugging_face import HuggingFaceCheckpoint
from promot_t5x.checkpoints.formats.layouts import AS_STORED, Layout, Relaid
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.sharded_reading import read_sharded
from promot_t5x.errors import UserError, listed
from promot_t5x.network import quantization
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.parameters import param_shapes
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.network.scan import layer_axis


class Parameters:
    """The parameters of an opened checkpoint, in the layout of a network.

    **Attributes:**

    - `stored`: the checkpoint in its own format.
    - `shapes`: shape and dtype of each parameter by path; nothing has been read yet.
    """

    def __init__(self, stored: StoredCheckpoint, layout: Layout = AS_STORED):
        """Lay out a checkpoint.

        **Raises:** `UserError` where the layout cannot hold its numbers.
        """
        self.stored = stored
        self._source = Relaid(stored, layout)
        self.shapes: Shapes = self._source.shapes

    @property
    def directory(self) -> epath.Path:
        """The directory that the checkpoint is read from."""
        return self.stored.directory

    def check(self, config: NetworkConfig) -> None:
        """Compare with the network that is to take the parameters; a prompt is ignored.

        **Raises:** `UserError` where arrays are missing, too many, of another shape or integers.
        """
        shapes = {path: leaf for path, leaf in self.shapes.items() if path != PROMPT_PATH}
        # Where the network scans and the checkpoint does not, `read` stacks the layers.
        scanned = config.scan_layers and any(map(layer_axis, shapes))
        plain = dataclasses.replace(config, num_prompts=0, prompt_length=0, scan_layers=scanned)
        check_shapes(shapes, param_shapes(plain), source=self.directory)
        check_floating(shapes, self.directory)

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read parameters by path, stacking single layers where the network scans them.

        **Arguments:**

        - `wanted`: {path: shape, dtype and sharding}, of an int8 array its scales too. With a
          sharding each process reads what its own devices hold, into a JAX array; without one the
          result is a numpy array.

        **Raises:** `UserError` where an array cannot be read, or holds integers, NaN or an
        infinity.
        """
        check_floating({p: self.shapes[p] for p in wanted if p in self.shapes}, self.directory)
        found = read_sharded(self._source, wanted)
        # What is not finite makes a scale that is not.
        floating = {quantization.owner(p): a for p, a in found.items() if a.dtype != jnp.int8}
        check_finite(floating, self.directory)
        return found

    def read_tree(
        self, *, only: str | None = None, dtype: Any = None, shardings: Any = None
    ) -> dict[str, Any]:
        """Read all parameters, or some, as a nested dict.

        **Arguments:**

        - `only`: a regular expression that a '/'-joined path must match in full to be read.
        - `dtype`: what the parameters are cast to; None keeps them as stored.
        - `shardings`: one sharding for all, or a nested dict with one for each. None gives numpy
          arrays.

        **Raises:** `UserError` as `read`, or where nothing matches `only`.
        """
        chosen = {p: s for p, s in self.shapes.items() if only is None or re.fullmatch(only, p)}
        if not chosen:
            raise UserError(
                f"no parameter of {self.directory} matches {only!r}; it has "
                f"{listed(sorted(self.shapes))}"
            )
        placed = _by_path(shardings, chosen)
        wanted = {
            p: jax.ShapeDtypeStruct(
                s.shape, np.dtype(s.dtype if dtype is None else dtype), sharding=placed[p]
            )
            for p, s in chosen.items()
        }
        tree: dict[str, Any] = traverse_util.unflatten_dict(self.read(wanted), sep="/")
        return tree


def open_checkpoint(
    path: str | os.PathLike[str],
    config: NetworkConfig | None = None,
    *,
    layout: Layout | None = None,
    partial: bool = False,
) -> Parameters:
    """Open a checkpoint of any format; reads names and shapes, and no array.

    **Arguments:**

    - `path`: a name of `pretrained_names`; a checkpoint's directory (`checkpoint_<step>`, or one of
      Hugging Face), local or on `gs://`; or a stage's directory of this project, for its newest
      complete checkpoint.
    - `config`: the network that is to take the parameters. They are laid out for it, and what does
      not fit it is refused.
    - `layout`: without a `config`, how the parameters are laid out; by default as they are stored.
    - `partial`: accept a checkpoint of this project that holds only what its stage trained.

    **Raises:** `UserError`: there is no such checkpoint, it is damaged, it is not a whole model, or
    it is of another model than `config`.
    """
    stored = open_stored(path)
    if isinstance(stored, PromotCheckpoint) and not (partial or stored.is_whole):
        base = stored.manifest.metadata.get("base_path")
        start = f"It was trained on {base}: start from that." if base else ""
        raise UserError(
            f"{stored.directory} holds only what its stage trained "
            f"({listed(sorted(stored.shapes))}), not a whole model. {start}"
        )
    if config is None:
        return Parameters(stored, layout or AS_STORED)
    if isinstance(stored, HuggingFaceCheckpoint):
        stored.shape.check(config, path)
    parameters = Parameters(
        stored,
        Layout(
            scanned=None if config.scan_layers else False,
            bias_per_layer=getattr(config, "relative_bias_per_layer", None),
        ),
    )
    parameters.check(config)
    return parameters


def check_floating(shapes: Shapes, source: Any) -> None:
    """Raise `DamagedCheckpointError` for parameters that are stored as integers.

    **Arguments:**

    - `shapes`: of the parameters, by path.
    - `source`: what the message calls the checkpoint.
    """
    integers = [
        f"{path} ({leaf.dtype.name})"
        for path, leaf in sorted(shapes.items())
        if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if integers:
        raise DamagedCheckpointError(
            f"{source} holds parameters that are not floating-point numbers: {listed(integers)}. "
            "Quantized checkpoints cannot be trained; take the model's float32 or bfloat16 one."
        )


def check_finite(arrays: Mapping[str, Any], source: Any) -> None:
    """Raise `DamagedCheckpointError` for parameters that hold NaN or an infinity.

    **Arguments:**

    - `arrays`: by path, as `finite.non_finite` takes them.
    - `source`: what the message calls the checkpoint.
    """
    if wrong := non_finite(arrays):
        kinds = sorted({np.dtype(arrays[path].dtype).name for path in wrong})
        raise DamagedCheckpointError(
            f"{source} holds numbers that are not finite, read as {listed(kinds)}, in {len(wrong)} "
            f"of {len(arrays)} arrays: {listed(wrong)}. No model works with them; take another "
            "checkpoint, or download it again."
        )


def check_shapes(
    found: Mapping[str, Any], wanted: Mapping[str, Any], *, source: Any = "The checkpoint"
) -> None:
    """Check that parameters are those that a model needs: no fewer, no more, no other shape.

    **Arguments:**

    - `found`: a dict, nested or by '/'-joined path, of arrays, ShapeDtypeStructs or shapes.
    - `wanted`: likewise.
    - `source`: what the message calls the parameters, such as the checkpoint's path.

    **Raises:** `UserError`, which counts and names the missing, unexpected and wrongly shaped
    arrays.
    """
    there, needed = _shapes(found), _shapes(wanted)
    wrong = [
        f"{p} is {list(there[p])}, the model has {list(needed[p])}"
        for p in sorted(set(needed) & set(there))
        if there[p] != needed[p]
    ]
    problems = [
        f"{len(names)} {kind}: {listed(names)}"
        for kind, names in (
            ("missing", sorted(set(needed) - set(there))),
            ("unexpected", sorted(set(there) - set(needed))),
            ("of another shape", wrong),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source} does not fit the model, which has {len(needed)} arrays. "
            f"{'. '.join(problems)}. Choose the model configuration that the weights are of."
        )


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in flat.items()}


def _by_path(shardings: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(chosen, shardings)
    flat: dict[str, Any] = traverse_util.flatten_dict(shardings, sep="/")
    if missing := sorted(set(chosen) - set(flat)):
        raise ValueError(f"no sharding for {listed(missing)}")
    return flat
