"""The formats that a conversion writes: one class for each, fed a few arrays at a time."""

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from etils import epath

from promot_t5x import versions
from promot_t5x.checkpoints.checksums import merge_records, record_arrays
from promot_t5x.checkpoints.formats import hf_decoder_only
from promot_t5x.checkpoints.formats.hugging_face import TOKENIZER_FILES, HuggingFaceWriter
from promot_t5x.checkpoints.formats.peft import save_adapters
from promot_t5x.checkpoints.formats.source import Shapes
from promot_t5x.checkpoints.formats.t5x_writing import (
    LegacyWriter,
    T5xOrbaxWriter,
    write_orbax_marks,
)
from promot_t5x.checkpoints.formats.write_arrays import OrbaxWriter
from promot_t5x.checkpoints.manifest import Manifest, file_sizes, write_manifest
from promot_t5x.checkpoints.paths import STATE_DIRECTORY
from promot_t5x.network.prompt import PROMPT_PATH

ADAPTER = "prompt_adapter"


@runtime_checkable
class Target(Protocol):
    """A checkpoint being written."""

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path of the parameter."""

    def close(self, absent: Sequence[str] = ()) -> None:
        """Make it complete; `absent` are paths of optimizer slots that are None."""


class T5xTarget:
    """A T5X checkpoint of parameters and step, without optimizer slots."""

    def __init__(self, writer: LegacyWriter | T5xOrbaxWriter, step: int):
        self._writer, self._step = writer, step

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path of the parameter."""
        self._writer.add({f"target/{path}": array for path, array in arrays.items()})

    def close(self, absent: Sequence[str] = ()) -> None:
        """Write the step, and what makes the checkpoint complete."""
        self._writer.add({"state/step": np.asarray(self._step, np.int32)})
        self._writer.close(absent)


class PromotTarget:
    """A checkpoint of this project that holds a whole model, and no optimizer state."""

    def __init__(self, directory: epath.Path, step: int, metadata: Mapping[str, Any]):
        self._directory, self._step, self._metadata = directory, step, metadata
        self._began = time.time_ns()
        self._writer = OrbaxWriter(directory / STATE_DIRECTORY)
        self._records: list[dict[str, dict[str, Any]]] = []

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path of the parameter."""
        self._add({f"target/{path}": array for path, array in arrays.items()})

    def _add(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._writer.add(arrays)
        blocks = {
            path: (array.shape, array.dtype.name, [((0,) * array.ndim, array)])
            for path, array in arrays.items()
        }
        self._records.append(record_arrays(blocks))

    def close(self, absent: Sequence[str] = ()) -> None:
        """Write the step and, last, the manifest."""
        self._add({"state/step": np.asarray(self._step, np.int32)})
        self._writer.close()
        write_orbax_marks(self._directory, self._began)
        manifest = Manifest(
            step=self._step,
            arrays=merge_records(self._records),
            files=file_sizes(self._directory),
            metadata=self._metadata,
            versions=versions.installed(),
        )
        write_manifest(self._directory, manifest)


class HuggingFaceTarget:
    """A Hugging Face model; prompts become adapters of `peft` in `prompt_adapter/`."""

    def __init__(
        self,
        directory: epath.Path,
        shapes: Shapes,
        config: Mapping[str, Any],
    ):
        """Write the model's configuration; the arrays follow.

        **Arguments:**

        - `directory`: created if need be.
        - `shapes`: of all that will be written, by path.
        - `config`: the model's `config.json`.
        """
        model = {path: leaf for path, leaf in shapes.items() if path != PROMPT_PATH}
        self._directory = directory
        self._is_causal = config["model_type"] in hf_decoder_only.MODEL_TYPES
        self._writer = HuggingFaceWriter(directory, model, config)

    def add(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by path of the parameter."""
        model = {path: array for path, array in arrays.items() if path != PROMPT_PATH}
        self._writer.add(model)
        if (table := arrays.get(PROMPT_PATH)) is not None:
            names = [f"prompt_{number}" for number in range(len(table))]
            save_adapters(self._directory / ADAPTER, table, names, causal=self._is_causal)

    def close(self, absent: Sequence[str] = ()) -> None:
        """Finish the files."""
        self._writer.close()


def copy_tokenizer(source: epath.Path, destination: epath.Path) -> list[str]:
    """Copy tokenizer files of a directory, or a SentencePiece model, which becomes spiece.model.

    **Returns:** the names of the files written.
    """
    if source.is_file():
        shutil.copy(source, destination / "spiece.model")
        return ["spiece.model"]
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    for name in found:
        shutil.copy(source / name, destination / name)
    return found
