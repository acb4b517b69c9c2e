"""A stage's checkpoint, which holds only what trained, completed with what was frozen beside it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.adapters import Merged, trained_adapter
from promot_t5x.checkpoints.formats.layouts import BIAS, Layout, Relaid, batches
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.formats.source import ArraySource, ParamSource, Shapes
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.prompt_file import load_prompt
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError, listed
from promot_t5x.network import lora, quantization
from promot_t5x.network.prompt import PROMPT_PATH

_PROMPT_KEY = "prompt_path"  # in the metadata of a stage's checkpoints


class Overlaid:
    """A source whose arrays another one replaces or adds to.

    **Attributes:**

    - `shapes`: {'/'-joined path: shape and dtype} of both.
    """

    def __init__(self, below: ParamSource, above: ParamSource, *, hidden: str | None = None):
        """Lay one source over another.

        **Arguments:**

        - `below`, `above`: of an array in both, the one above counts.
        - `hidden`: the path of an array below that does not show through.
        """
        self._below, self._above = below, above
        shown = {path: leaf for path, leaf in below.shapes.items() if path != hidden}
        self.shapes: Shapes = {**shown, **above.shapes}

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        above = {p: w for p, w in wanted.items() if p in self._above.shapes}
        below = {p: w for p, w in wanted.items() if p not in above}
        found = {**self._above.read(above), **self._below.read(below)}
        return {path: found[path] for path in wanted}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletedStage:
    """A whole model made of a stage's checkpoint and what was frozen beside it.

    **Attributes:**

    - `source`: the parameters, one layer after the other.
    - `origins`: where they are from, what lies uppermost first.
    - `verify`: reads the pretrained checkpoints of stages that trained a prompt alone, and raises
      UserError where one no longer has the content hash that the stage recorded.
    - `knows_prompt`: whether the checkpoint says which prompt the stage trained with; those of
      earlier versions do not where the prompt was frozen.
    """

    source: ParamSource
    origins: list[str]
    verify: Callable[[], None] = lambda: None
    knows_prompt: bool = True


def complete(trained: PromotCheckpoint, *, with_prompt: bool = True) -> CompletedStage:
    """Complete a stage: what it trained, over the checkpoint that it started from, and its prompt.

    **Arguments:**

    - `trained`: the stage's checkpoint. What it started from is found as the checkpoint records it:
      a path, a name, or an earlier stage of the same run, whose chosen step lies beside the stage's
      directory.
    - `with_prompt`: look for the prompt that the stage kept frozen.

    **Raises:** `UserError` where something is not where it was, or is of another shape.
    """
    whole = _complete_model(trained)
    metadata = trained.manifest.metadata
    if not with_prompt or PROMPT_PATH in trained.shapes or _PROMPT_KEY not in metadata:
        has_prompt = PROMPT_PATH in whole.source.shapes
        was_trained = "frozen_hash" in metadata  # by a run, and not written by a conversion
        knows_prompt = has_prompt or _PROMPT_KEY in metadata or not was_trained
        return dataclasses.replace(whole, knows_prompt=knows_prompt)
    prompt = _frozen_prompt(trained)
    width = whole.source.shapes[EMBEDDING].shape[-1]
    if any(leaf.shape[-1] != width for leaf in prompt.shapes.values()):
        raise UserError(
            f"{trained.directory} was not trained with the prompt that is now at "
            f"{prompt.directory}: its vectors have another width than the model's {width}."
        )
    return dataclasses.replace(
        whole,
        source=Overlaid(whole.source, prompt, hidden=PROMPT_PATH),
        origins=[*whole.origins, *(f"the prompt of {prompt.directory}" for _ in prompt.arrays)],
    )


def _frozen_prompt(stage: PromotCheckpoint) -> ArraySource:
    """Read the prompt that a stage kept frozen; no arrays where it had none."""
    reference = stage.manifest.metadata[_PROMPT_KEY]
    if reference is None:
        return ArraySource(stage.directory, {})
    if (earlier := _earlier_stage(stage, reference)) is not None:
        if PROMPT_PATH not in earlier.shapes:
            return _frozen_prompt(earlier)
        leaf = jax.ShapeDtypeStruct(earlier.shapes[PROMPT_PATH].shape, np.float32)
        return ArraySource(earlier.directory, earlier.read({PROMPT_PATH: leaf}))
    try:
        table, _ = load_prompt(reference)
    except UserError as error:
        raise UserError(
            f"{stage.directory} was trained with the prompt {reference!r}, which cannot be read: "
            f"{error} --remove_prompt leaves it behind."
        ) from None
    return ArraySource(epath.Path(reference), {PROMPT_PATH: table})


def _earlier_stage(stage: PromotCheckpoint, reference: str) -> PromotCheckpoint | None:
    """Open the chosen step of another stage of the same run; None where there is no such stage."""
    if "/" in reference:
        return None
    result = StageResult.read(stage.directory.parent.parent / reference)
    if result is None:
        return None
    return PromotCheckpoint(result.directory / f"checkpoint_{result.step}")


def _complete_model(own: PromotCheckpoint) -> CompletedStage:
    trained = Relaid(own, Layout(scanned=False))
    origins = [str(own.directory)]
    if own.is_whole:
        return CompletedStage(source=_with_adapter(own, trained), origins=origins)
    reference = own.manifest.metadata.get("base_path")
    if reference is None:
        raise UserError(
            f"{own.directory} holds only what its stage trained "
            f"({listed(sorted(trained.shapes))}), and the rest was random: there is no base to "
            "complete it with."
        )
    if (earlier := _earlier_stage(own, reference)) is not None:
        base = _complete_model(earlier)
    else:
        try:
            stored = open_checkpoint(reference).stored
        except UserError as error:
            raise UserError(
                f"{own.directory} holds only what its stage trained, and its base cannot be read: "
                f"{error}"
            ) from None
        base = CompletedStage(source=stored, origins=[reference])
    per_layer = any(path.endswith(BIAS) and "/layers_" in path for path in trained.shapes)
    below = Relaid(base.source, Layout(scanned=False, bias_per_layer=True if per_layer else None))
    _check(own.directory, trained.shapes, below.shapes, reference)

    def verify() -> None:
        base.verify()
        expected = own.manifest.metadata.get("frozen_hash")
        alone = all(path == PROMPT_PATH or lora.is_adapter(path) for path in trained.shapes)
        behind = own.manifest.metadata.get(_PROMPT_KEY) and PROMPT_PATH not in trained.shapes
        if expected is not None and alone and not behind:
            _check_hash(own.directory, below, expected, reference)

    source = _with_adapter(own, Overlaid(below, trained))
    return CompletedStage(source=source, origins=origins + base.origins, verify=verify)


def _with_adapter(own: PromotCheckpoint, model: ParamSource) -> ParamSource:
    """Return a stage's model with the adapter that the stage trained, if it did."""
    found = trained_adapter(own)
    return model if found is None else Merged(model, *found)


def _check_hash(step_dir: epath.Path, base: ParamSource, expected: str, reference: str) -> None:
    """Compare a base with the content hash of what a stage had frozen, in any of its types."""
    lines: dict[str, list[str]] = {dtype: [] for dtype in quantization.STORAGE}
    paths = [path for path in base.shapes if path != PROMPT_PATH]
    for batch in batches(base, paths):
        wanted = {p: jax.ShapeDtypeStruct(base.shapes[p].shape, np.float32) for p in batch}
        arrays = base.read(wanted)
        for dtype, found in lines.items():
            stored = quantization.stored_shapes(arrays, dtype)
            found += hashing.fingerprints(quantization.cast(arrays, stored))
    if expected not in map(hashing.hash_of, lines.values()):
        raise UserError(
            f"{reference} is not what {step_dir} was trained on: its content hash is another than "
            f"the {expected} that was recorded."
        )


def _check(step_dir: epath.Path, trained: Shapes, base: Mapping[str, Any], reference: str) -> None:
    wrong = [
        path
        for path, leaf in trained.items()
        if path != PROMPT_PATH
        and not lora.is_adapter(path)
        and (path not in base or base[path].shape != leaf.shape)
    ]
    if PROMPT_PATH in trained and trained[PROMPT_PATH].shape[-1] != base[EMBEDDING].shape[-1]:
        wrong.append(PROMPT_PATH)
    if wrong:
        raise UserError(
            f"{step_dir} was not trained on what {reference} now holds: {listed(sorted(wrong))} "
            "would not fit."
        )
