"""Trained adapters of kernels: found, read and merged into a model that is copied.

They lie in the checkpoint of a stage, or in a LoRA adapter of Hugging Face's `peft`.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from promot_t5x.checkpoints.finding import find_directory, open_stored
from promot_t5x.checkpoints.formats import peft, peft_lora
from promot_t5x.checkpoints.formats.layouts import Layout, Relaid
from promot_t5x.checkpoints.formats.source import ArraySource, ParamSource, Shapes
from promot_t5x.checkpoints.opening import check_finite, check_shapes
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError
from promot_t5x.network.config import NetworkConfig
from promot_t5x.network.lora import LoRA, adapters_of, is_adapter, kernel_of, merged, parts_of
from promot_t5x.network.parameters import param_shapes

ADAPTER_KEY = "adapter"  # in the metadata of a stage's checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter that has been read.

    **Attributes:**

    - `lora`: its kernels, rank and scale.
    - `arrays`: its matrices by path, numpy float32, laid out for the network that takes it.
    - `directory`: where it lies.
    """

    lora: LoRA
    arrays: Mapping[str, np.ndarray]
    directory: epath.Path


class Merged:
    """A source into whose kernels an adapter is merged, an array at a time.

    **Attributes:**

    - `shapes`: {'/'-joined path: shape and dtype} of the source's.
    """

    def __init__(self, below: ParamSource, adapter: ParamSource, lora: LoRA):
        """Lay an adapter over a source; both have one layer after the other.

        **Raises:** `UserError` where the adapter is of other kernels.
        """
        self._below, self._adapter, self._scale = below, adapter, lora.scale
        self.shapes: Shapes = {p: s for p, s in below.shapes.items() if not is_adapter(p)}
        kernels = {kernel_of(path) for path in adapter.shapes}
        products = {}
        for kernel in sorted(kernels):
            (rows, _), (_, columns) = (adapter.shapes[part].shape for part in parts_of(kernel))
            products[kernel] = (rows, columns)
        there = {p: self.shapes[p] for p in products if p in self.shapes}
        check_shapes(there, products, source="What the adapter is to be merged into")
        self._adapted = kernels

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype given; merged ones are numpy's."""
        plain = {path: leaf for path, leaf in wanted.items() if path not in self._adapted}
        found = self._below.read(plain)
        for path in wanted.keys() & self._adapted:
            exact = jax.ShapeDtypeStruct(wanted[path].shape, np.float32)
            a, b = parts_of(path)
            parts = self._adapter.read({a: self._adapter.shapes[a], b: self._adapter.shapes[b]})
            kernel = self._below.read({path: exact})[path]
            whole = merged(kernel, parts[a], parts[b], self._scale)
            found[path] = whole.astype(wanted[path].dtype)
        return {path: found[path] for path in wanted}


def open_adapter(path: str | os.PathLike[str], config: NetworkConfig) -> StoredAdapter:
    """Read an adapter.

    **Arguments:**

    - `path`: the directory of a stage that trained one (its chosen step is read), of one of its
      checkpoints, or of a LoRA adapter of peft.
    - `config`: the network that takes it; it is laid out for that, layer by layer or scanned.

    **Raises:** `UserError` where there is none, where it does not fit the network, or where it
    holds numbers that are not finite.
    """
    plain = dataclasses.replace(config, num_prompts=0, prompt_length=0)
    directory = find_directory(path)
    source: ParamSource
    if (directory / peft.CONFIG_FILE).exists():
        lora, arrays = peft_lora.load(directory, dataclasses.replace(plain, scan_layers=False))
        source = ArraySource(directory, arrays)
    else:
        source, lora = _trained(directory)
    laid_out = Relaid(source, Layout(scanned=config.scan_layers))
    # Patterns may be of another layout's paths: the kernels are those that there are adapters of.
    kernels = sorted({re.escape(kernel_of(path)) for path in laid_out.shapes})
    lora = dataclasses.replace(lora, kernels=kernels)
    fitting = param_shapes(dataclasses.replace(plain, lora=lora))
    needed = adapters_of(flatten_dict(fitting, sep="/"))
    check_shapes(laid_out.shapes, needed, source=f"The adapter {directory}")
    wanted = {
        p: jax.ShapeDtypeStruct(leaf.shape, np.float32) for p, leaf in laid_out.shapes.items()
    }
    found = laid_out.read(wanted)
    check_finite(found, directory)
    return StoredAdapter(lora=lora, arrays=found, directory=directory)


def lora_of(checkpoint: PromotCheckpoint) -> LoRA | None:
    """Return what a stage's checkpoint says of the adapters that it was trained with, or none."""
    said: dict[str, Any] | None = checkpoint.manifest.metadata.get(ADAPTER_KEY)
    return None if said is None else LoRA(**said)


def trained_adapter(checkpoint: PromotCheckpoint) -> tuple[ParamSource, LoRA] | None:
    """Return the adapter that a stage trained, one layer after the other, or None."""
    arrays, lora = adapters_of(checkpoint.shapes), lora_of(checkpoint)
    if lora is None or not arrays:
        return None
    wanted = {p: jax.ShapeDtypeStruct(leaf.shape, np.float32) for p, leaf in arrays.items()}
    whole = ArraySource(checkpoint.directory, checkpoint.read(wanted))
    return Relaid(whole, Layout(scanned=False)), lora


def _trained(directory: epath.Path) -> tuple[ParamSource, LoRA]:
    result = StageResult.read(directory)
    stored = result.trained().stored if result is not None else open_stored(directory)
    found = trained_adapter(stored) if isinstance(stored, PromotCheckpoint) else None
    if found is None:
        raise UserError(
            f"{directory} holds no adapter: name a stage that trained one, one of its checkpoints, "
            "or a LoRA adapter of peft."
        )
    return found
