"""Copying a checkpoint of one format into another, a few arrays at a time.

Memory: arrays are read and written in batches of `layouts.BATCH_BYTES`, or of one stored array
where that is more; each is in memory at most three times (as read, laid out, and compressed to be
written). What is written grows in `<destination>.incomplete` beside the destination and is renamed
at the end. A conversion that fails removes it; one that was killed leaves nothing else, and the
next one begins anew.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints import hub
from promot_t5x.checkpoints.adapters import Merged, open_adapter
from promot_t5x.checkpoints.conversion import stage, writers
from promot_t5x.checkpoints.conversion.writers import (
    HuggingFaceTarget,
    PromotTarget,
    T5xTarget,
    Target,
)
from promot_t5x.checkpoints.finding import find_directory
from promot_t5x.checkpoints.formats import hf_config, layouts, read_arrays, shape, t5x
from promot_t5x.checkpoints.formats.hugging_face import HuggingFaceCheckpoint
from promot_t5x.checkpoints.formats.layouts import Layout, Relaid
from promot_t5x.checkpoints.formats.source import (
    ArraySource,
    ParamSource,
    Shapes,
    nbytes,
    total_bytes,
)
from promot_t5x.checkpoints.formats.t5x import T5xCheckpoint
from promot_t5x.checkpoints.formats.t5x_writing import LegacyWriter, T5xOrbaxWriter
from promot_t5x.checkpoints.opening import check_finite, check_floating, open_checkpoint
from promot_t5x.checkpoints.paths import CHECKPOINT_PREFIX, absolute, step_of
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import InUseError, SaveError, UserError
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path

_INCOMPLETE = ".incomplete"
_M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConversionSource:
    """A checkpoint to convert.

    **Attributes:**

    - `source`: a whole model; of a stage's checkpoint, with the rest from its base.
    - `format`: one of the package's `FORMATS`.
    - `step`: the training step; 0 where the format has none.
    - `directory`: where it lies, for files that travel along and for messages.
    - `origins`: what it is made of, for messages.
    - `verify`: raises UserError where a base is not the one that a stage was trained on.
    - `described`: the configuration of its network, as far as the checkpoint says it.
    - `config`: its `config.json`, if it has one.
    - `knows_prompt`: whether the checkpoint of a stage says which prompt it was trained with.
    - `trained`: the checkpoint itself, where a stage of this project wrote it.
    """

    source: ParamSource
    format: str
    step: int
    directory: epath.Path
    origins: list[str]
    verify: Callable[[], None] = lambda: None
    described: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    knows_prompt: bool = True
    trained: PromotCheckpoint | None = None

    def model_shape(self) -> shape.NetworkShape:
        """Return the shape of the network that the parameters are of."""
        return self.shape_of(Relaid(self.source, Layout(scanned=False)).shapes)

    def shape_of(self, shapes: Shapes) -> shape.NetworkShape:
        """Return the shape of the network of which these are the parameters, one layer each."""
        return shape.infer(shapes, source=self.directory, described=self.described)


def open_for_conversion(
    path: str, *, with_prompt: bool = True, adapters: Sequence[str] = ()
) -> ConversionSource:
    """Open any checkpoint.

    **Arguments:**

    - `path`: as `open_checkpoint` takes it. A stage is completed with what was frozen beside it; of
      a finished stage's directory its chosen step is taken.
    - `with_prompt`: take along a prompt that a stage kept frozen.
    - `adapters`: merged into the model, one after the other; as `open_adapter` takes them.

    **Raises:** `UserError` where there is none, or it cannot be read.
    """
    opened = _open(path, with_prompt)
    for adapter in adapters:
        found = open_adapter(adapter, opened.model_shape().config())
        matrices = ArraySource(found.directory, found.arrays)
        below = Relaid(opened.source, Layout(scanned=False))
        opened = dataclasses.replace(
            opened,
            source=Merged(below, matrices, found.lora),
            origins=[str(found.directory), *opened.origins],
        )
    return opened


def _open(path: str, with_prompt: bool) -> ConversionSource:
    directory = find_directory(path)
    if (result := StageResult.read(directory)) is not None:
        stored = result.trained().stored
    else:
        stored = open_checkpoint(path, partial=True).stored
    if isinstance(stored, PromotCheckpoint):
        whole = stage.complete(stored, with_prompt=with_prompt)
        return ConversionSource(
            source=whole.source,
            format=stored.format,
            step=stored.step,
            directory=stored.directory,
            origins=whole.origins,
            verify=whole.verify,
            described=stored.manifest.metadata.get("config") or "",
            knows_prompt=whole.knows_prompt,
            trained=stored if "frozen_hash" in stored.manifest.metadata else None,
        )
    opened = ConversionSource(
        source=stored,
        format=stored.format,
        step=stored.step or 0,
        directory=stored.directory,
        origins=[str(stored.directory)],
    )
    if not isinstance(stored, HuggingFaceCheckpoint):
        return opened
    return dataclasses.replace(
        opened, described=stored.shape.macros(), config=dict(stored.config.raw)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """A checkpoint that is to be written.

    **Attributes:**

    - `opened`: the checkpoint that is read.
    - `to`: one of the package's `FORMATS`.
    - `destination`: a directory that does not exist; for all formats but 'hf' its last part is
      `checkpoint_<step>`.
    - `dtype`: of the parameters; None keeps what is stored.
    - `remove_prompt`: leave a prompt behind.
    - `scanned`: T5X's scalable layout instead of the one with a tree a layer.
    - `bias_per_layer`: whether each layer has a position bias; None: as it is.
    - `optimizer_state`: the slots too, between T5X's own two formats.
    - `tokenizer`: where tokenizer files are; None: beside the checkpoint.
    - `card`: the model card of what is written in Hugging Face's format.
    """

    opened: ConversionSource
    to: str
    destination: epath.Path
    dtype: str | None = None
    remove_prompt: bool = False
    scanned: bool = False
    bias_per_layer: bool | None = None
    optimizer_state: bool = False
    tokenizer: epath.Path | None = None
    card: str | None = None

    def __post_init__(self) -> None:
        """Raise UserError for what cannot be."""
        if "://" in str(self.destination):
            raise UserError(
                f"{self.destination} is not on this machine. Convert to a local directory and copy "
                "that: gsutil -m cp -r DIRECTORY gs://…"
            )
        if self.destination.exists():
            raise UserError(f"{self.destination} exists already; name another, or remove it.")
        if self.scanned and self.to not in ("t5x", "t5x-legacy"):
            raise UserError(f"--scanned is a layout of T5X's networks; --to {self.to} has none.")
        if self.scanned and self.bias_per_layer is False:
            raise UserError("T5X's scalable networks have a bias in every layer: no --bias shared.")
        if self.optimizer_state:
            self._check_optimizer_state()
        if self.tokenizer is not None and not self.tokenizer.exists():
            raise UserError(f"there are no tokenizer files at {self.tokenizer}.")

        if self.to.startswith("t5x") and (family := shape.beyond_t5x(self.opened.source.shapes)):
            raise UserError(
                f"T5X has no {family}, which {self.opened.directory} is: convert --to hf or promot."
            )

    def _check_optimizer_state(self) -> None:
        kinds = ("t5x", "t5x-legacy")
        if self.to not in kinds or self.opened.format not in kinds:
            raise UserError(
                "--optimizer_state copies between T5X's two formats; other optimizer states have "
                "another structure."
            )
        changes = (self.dtype, self.remove_prompt, self.scanned, self.bias_per_layer is not None)
        if any(changes):
            raise UserError(
                "--optimizer_state copies everything as it is: without --dtype, --remove_prompt, "
                "--scanned and --bias, whose changes the slots would not follow."
            )

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Convert.

        **Arguments:**

        - `progress`: called with bytes done and bytes in all.

        **Returns:** the names of the tokenizer files that came along.

        **Raises:** `UserError` where the checkpoint is damaged, does not have the format's layout
        or holds numbers that are not finite; `SaveError` where the destination cannot be written;
        `InUseError` while another conversion writes it. None leaves anything behind.
        """
        source, absent = self._source()
        wanted = self._wanted(source)
        config = self._hugging_face_config(wanted) if self.to == "hf" else {}
        _check_free_space(self.destination, wanted)
        self.opened.verify()
        part = self.destination.parent / (self.destination.name + _INCOMPLETE)
        new_parents = [place for place in part.parents if not place.exists()]
        with self._writing():
            lock = _lock(part, self.destination)
        try:
            with self._writing():
                for left in part.iterdir():  # by a conversion that was killed
                    left.rmtree() if left.is_dir() else left.unlink()
                target = self._target(part, wanted, config)
            self._copy(source, wanted, target, progress)
            with self._writing():
                target.close(absent)
                names = self._copy_tokenizer(part)
                if self.card is not None:
                    (part / hub.CARD).write_text(self.card)
                part.rename(self.destination)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            for place in new_parents:
                # Another conversion may write there by now; epath says so with a ValueError.
                with contextlib.suppress(OSError, ValueError):
                    place.rmdir()
            raise
        finally:
            os.close(lock)
        return names

    def laid_out(self) -> ParamSource:
        """Return the parameters in the layout that is to be written."""
        layout = Layout(scanned=False, bias_per_layer=self.bias_per_layer)
        return Relaid(self.opened.source, layouts.SCALABLE_T5 if self.scanned else layout)

    @property
    def step(self) -> int:
        """The training step that is written: the number in the destination's name."""
        named = step_of(self.destination.name)
        return self.opened.step if named is None else named

    def _source(self) -> tuple[ParamSource, list[str]]:
        """Return what is copied, and the paths of optimizer slots that are None."""
        if not self.optimizer_state:
            return self.laid_out(), []
        assert isinstance(self.opened.source, T5xCheckpoint)  # _check_optimizer_state
        return t5x.whole_state(self.opened.source)

    def _wanted(self, source: ParamSource) -> Shapes:
        if self.optimizer_state:
            return source.shapes
        check_floating(source.shapes, self.opened.directory)
        return {
            path: jax.ShapeDtypeStruct(leaf.shape, np.dtype(self.dtype or leaf.dtype))
            for path, leaf in source.shapes.items()
            if path != PROMPT_PATH or not self.remove_prompt
        }

    def _hugging_face_config(self, wanted: Shapes) -> dict[str, Any]:
        model = self.opened.shape_of(wanted)
        scaled = isinstance(model, shape.DecoderOnlyShape) and model.scaled_embeddings
        if scaled and PROMPT_PATH in wanted:
            raise UserError(
                f"{self.opened.directory} has a prompt, and its embeddings are scaled: version 4 "
                "of transformers scales what peft puts in front as well, 5 does not, so that no "
                "adapter would be right in both. Add --remove_prompt and keep prompt.npz."
            )
        return hf_config.write(model, wanted, self.opened.config)

    def _target(self, part: epath.Path, wanted: Shapes, config: dict[str, Any]) -> Target:
        if self.to == "hf":
            return HuggingFaceTarget(part, wanted, config)
        if self.to == "promot":
            metadata: dict[str, Any] = {"converted_from": self.opened.origins, "base_path": None}
            if shape.activation_of(self.opened.described) is not None:
                metadata["config"] = self.opened.model_shape().macros()
            return PromotTarget(part, self.step, metadata)
        writer = LegacyWriter(part) if self.to == "t5x-legacy" else T5xOrbaxWriter(part)
        return writer if self.optimizer_state else T5xTarget(writer, self.step)

    def _copy(
        self,
        source: ParamSource,
        wanted: Shapes,
        target: Target,
        progress: Callable[[int, int], None],
    ) -> None:
        """Give the arrays of a source to a target, a batch at a time."""
        _return_freed_memory()
        total, done = total_bytes(wanted), 0
        progress(done, total)  # the clock starts before the first batch is read
        for batch in layouts.batches(source, wanted):
            arrays = source.read({path: wanted[path] for path in batch})
            check_finite(arrays, self.opened.directory)
            with self._writing():
                target.add(arrays)
            done += sum(nbytes(wanted[path]) for path in batch)
            progress(done, total)

    def _copy_tokenizer(self, part: epath.Path) -> list[str]:
        place = self.opened.directory if self.tokenizer is None else self.tokenizer
        return [] if "://" in str(place) else writers.copy_tokenizer(place, part)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore's are ValueErrors
            raise SaveError(
                f"{self.destination} could not be written: {read_arrays.reason(error)}. Nothing of "
                "it is left; once the cause is fixed (is the disk full?), convert again."
            ) from error


def destination_of(path: str, to: str, opened: ConversionSource) -> epath.Path:
    """Return the directory that a conversion to `path` writes.

    It is `path` itself or, where the format wants a step in the name and there is none, the
    directory `checkpoint_<step>` within it.
    """
    directory = absolute(user_path(path, "DST"))
    if to == "hf" or step_of(directory.name) is not None:
        return directory
    return directory / f"{CHECKPOINT_PREFIX}{opened.step}"


def _lock(part: epath.Path, destination: epath.Path) -> int:
    """Make a directory that no other conversion writes into while the descriptor is open.

    The kernel ends the lock of a process that is killed. File systems without locks of directories
    (some of the network) give none.

    **Raises:** `InUseError` while another conversion has it; `UserError` where one has just ended.
    """
    while True:
        part.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(part, os.O_RDONLY)
        except FileNotFoundError:  # its owner has just ended
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise InUseError(
                f"{destination} is being written by another conversion. Wait for its end, or name "
                "another directory. Nothing was changed."
            ) from None
        except OSError:
            return descriptor
        if not _is_at(part, descriptor):
            os.close(descriptor)
        elif destination.exists():
            shutil.rmtree(part, ignore_errors=True)
            os.close(descriptor)
            raise UserError(f"{destination} exists already; name another, or remove it.")
        else:
            return descriptor


def _is_at(path: epath.Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _check_free_space(destination: epath.Path, wanted: Shapes) -> None:
    place = next(parent for parent in destination.parents if parent.exists())
    needed, free = total_bytes(wanted), shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{destination.parent} has {free / 1e9:.1f} GB free; the checkpoint needs "
            f"{needed / 1e9:.1f} GB."
        )


def _return_freed_memory() -> None:
    """Have glibc give freed blocks of a MiB and more back to the system at once.

    By itself it comes to keep those of up to 32 MiB, in an arena for each thread: measured, twice
    the memory that is in use.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**20)
