"""Copying a checkpoint of one format into another, a few arrays at a time.

Memory: arrays are read and written in batches of `layouts.BATCH_BYTES`, or of one stored array
where that is more; each is in memory at most three times (as read, laid out, and compressed to be
written). What is written grows in `<destination>.incomplete` beside the destination and is renamed
at the end; a conversion that was killed leaves nothing else, and the next one begins anew.
"""

import ctypes
import dataclasses
import re
import shutil
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from promot_t5x.checkpoints import pretrained, restoring
from promot_t5x.checkpoints.conversion import stage, writers
from promot_t5x.checkpoints.conversion.writers import HfTarget, OwnTarget, T5xTarget, Target
from promot_t5x.checkpoints.formats import layouts, shape, t5x
from promot_t5x.checkpoints.formats.hugging_face import HfSource
from promot_t5x.checkpoints.formats.layouts import Layout, Relaid
from promot_t5x.checkpoints.formats.source import ParamSource, Shapes, nbytes, total_bytes
from promot_t5x.checkpoints.formats.t5x import LegacySource, OrbaxSource
from promot_t5x.checkpoints.formats.t5x_writing import LegacyWriter, T5xOrbaxWriter
from promot_t5x.checkpoints.pretrained import OwnSource
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError
from promot_t5x.network.prompt import PROMPT_PATH

FORMATS = ("promot", "t5x", "t5x-legacy", "hf")
_INCOMPLETE = ".incomplete"
_M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A checkpoint to convert.

    Attributes:
      source: a whole model; of a stage's checkpoint, with the rest from its base.
      format: one of `FORMATS`.
      step: the training step; 0 where the format has none.
      directory: where it lies, for files that travel along.
      origins: what it is made of, for messages.
      verify: raises UserError where a base is not the one that a stage was trained on.
      activation: the MLP's first activation, where the checkpoint says it.
      told: its `config.json`, if it has one.
    """

    source: ParamSource
    format: str
    step: int
    directory: epath.Path
    origins: list[str]
    verify: Callable[[], None] = lambda: None
    activation: str | None = None
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def model_shape(self) -> shape.Shape:
        """The shape of the network that the parameters are of."""
        single = Relaid(self.source, Layout(scanned=False))
        return shape.infer(single.shapes, source=self.directory, activation=self.activation)


def open_for_conversion(path: str) -> Opened:
    """Open any checkpoint; a stage's is completed with its base.

    Raises:
      UserError: there is none, or it cannot be read.
    """
    source = pretrained.open_any(path)
    if isinstance(source, OwnSource):
        result = StageResult.read(pretrained.find(path))
        if result is not None:  # of a finished stage its chosen step is meant
            source = OwnSource(result.directory / f"checkpoint_{result.step}")
        whole = stage.complete(source)
        return Opened(
            source=whole.source,
            format="promot",
            step=source.manifest.step,
            directory=source.step_dir,
            origins=whole.origins,
            verify=whole.verify,
            activation=writers.activation_of(source.manifest.metadata.get("config") or ""),
        )
    if isinstance(source, HfSource):
        return Opened(
            source=source,
            format="hf",
            step=0,
            directory=source.directory,
            origins=[str(source.directory)],
            activation=source.shape.mlp_activations[0],
            told=dict(source.config.raw),
        )
    assert isinstance(source, LegacySource | OrbaxSource)
    return Opened(
        source=source,
        format="t5x-legacy" if isinstance(source, LegacySource) else "t5x",
        step=source.step or 0,
        directory=source.directory,
        origins=[str(source.directory)],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is to be written.

    Attributes:
      opened: the checkpoint.
      to: one of `FORMATS`.
      destination: a directory that does not exist; for all formats but 'hf' its last part is
        `checkpoint_<step>`.
      dtype: of floating-point parameters; None keeps what is stored.
      remove_prompt: leave a prompt behind.
      scanned: T5X's scalable layout instead of the one with a tree a layer.
      bias_per_layer: whether each layer has a position bias; None: as it is.
      optimizer_state: the slots too, between T5X's own two formats.
      tokenizer: where tokenizer files are; None: beside the checkpoint.
    """

    opened: Opened
    to: str
    destination: epath.Path
    dtype: str | None = None
    remove_prompt: bool = False
    scanned: bool = False
    bias_per_layer: bool | None = None
    optimizer_state: bool = False
    tokenizer: epath.Path | None = None

    def __post_init__(self) -> None:
        """Raises UserError for what cannot be."""
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

    def _check_optimizer_state(self) -> None:
        kinds = ("t5x", "t5x-legacy")
        if self.to not in kinds or self.opened.format not in kinds:
            raise UserError(
                "--optimizer_state copies between T5X's two formats; other optimiser states have "
                "another structure."
            )
        changes = (self.dtype, self.remove_prompt, self.scanned, self.bias_per_layer is not None)
        if any(changes):
            raise UserError(
                "--optimizer_state copies everything as it is: without --dtype, --remove_prompt, "
                "--scanned and --bias, whose changes the slots would not follow."
            )

    def run(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Convert; returns the names of the tokenizer files that came along.

        Args:
          progress: called with bytes done and bytes in all.
        """
        self.opened.verify()
        part = self.destination.parent / (self.destination.name + _INCOMPLETE)
        if part.exists():
            part.rmtree()
        part.mkdir(parents=True)
        if self.optimizer_state:
            self._copy_state(part, progress)
        else:
            self._copy_parameters(part, progress)
        place = self.opened.directory if self.tokenizer is None else self.tokenizer
        names = [] if "://" in str(place) else writers.copy_tokenizer(place, part)
        part.rename(self.destination)
        return names

    def laid_out(self) -> ParamSource:
        """The parameters in the layout that is to be written."""
        layout = Layout(scanned=False, bias_per_layer=self.bias_per_layer)
        return Relaid(self.opened.source, layouts.SCALABLE_T5 if self.scanned else layout)

    def _copy_parameters(self, part: epath.Path, progress: Callable[[int, int], None]) -> None:
        source = self.laid_out()
        wanted = {
            path: jax.ShapeDtypeStruct(leaf.shape, pretrained.cast(leaf.dtype, self.dtype))
            for path, leaf in source.shapes.items()
            if path != PROMPT_PATH or not self.remove_prompt
        }
        _check_room(part, wanted)
        target = self._target(part, wanted)
        _copy(source, wanted, target.add, progress)
        target.close()

    def _target(self, part: epath.Path, wanted: Shapes) -> Target:
        step = self.step
        if self.to == "t5x-legacy":
            return T5xTarget(LegacyWriter(part), step)
        if self.to == "t5x":
            return T5xTarget(T5xOrbaxWriter(part), step)
        if self.to == "promot":
            metadata: dict[str, Any] = {"converted_from": self.opened.origins, "base_path": None}
            if self.opened.activation is not None:
                metadata["config"] = self.opened.model_shape().macros()
            return OwnTarget(part, step, metadata)
        found = shape.infer(wanted, source=part, activation=self.opened.activation)
        return HfTarget(part, found, wanted, self.opened.told)

    @property
    def step(self) -> int:
        """The training step that is written: the number in the destination's name."""
        named = re.fullmatch(r"checkpoint_(\d+)", self.destination.name)
        return int(named[1]) if named else self.opened.step

    def _copy_state(self, part: epath.Path, progress: Callable[[int, int], None]) -> None:
        assert isinstance(self.opened.source, LegacySource | OrbaxSource)
        source, absent = t5x.whole_state(self.opened.source)
        _check_room(part, source.shapes)
        writer = LegacyWriter(part) if self.to == "t5x-legacy" else T5xOrbaxWriter(part)
        _copy(source, source.shapes, writer.add, progress)
        writer.close(absent)


def destination_of(path: str, to: str, opened: Opened) -> epath.Path:
    """Where a conversion to `path` writes: there, or, where the format wants a step in the name and
    there is none, in `checkpoint_<step>` within it."""
    directory = restoring.absolute(path)
    if to == "hf" or re.fullmatch(r"checkpoint_\d+", directory.name):
        return directory
    return directory / f"checkpoint_{opened.step}"


def _copy(
    source: ParamSource,
    wanted: Shapes,
    add: Callable[[dict[str, Any]], None],
    progress: Callable[[int, int], None],
) -> None:
    """Give arrays of a source to `add`, a batch at a time."""
    _return_freed_memory()
    total, done = total_bytes(wanted), 0
    progress(done, total)  # the clock starts before the first batch is read
    for batch in layouts.batches(source, wanted):
        add(source.read({path: wanted[path] for path in batch}))
        done += sum(nbytes(wanted[path]) for path in batch)
        progress(done, total)


def _check_room(part: epath.Path, wanted: Shapes) -> None:
    needed, free = total_bytes(wanted), shutil.disk_usage(part).free
    if free < needed:
        part.rmtree()
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free; the checkpoint needs "
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
