"""A stage's checkpoint, which holds only what trained, made whole with the base it trained on."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from promot_t5x.checkpoints import hashing, pretrained
from promot_t5x.checkpoints.formats.layouts import BIAS, Layout, Relaid, batches
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.formats.source import ParamSource, Shapes, some
from promot_t5x.checkpoints.pretrained import OwnSource
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.errors import UserError
from promot_t5x.network.prompt import PROMPT_PATH


class Overlaid:
    """A source whose arrays another one replaces or adds to."""

    def __init__(self, below: ParamSource, above: ParamSource):
        self._below, self._above = below, above
        self.shapes: Shapes = {**below.shapes, **above.shapes}

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        above = {p: w for p, w in wanted.items() if p in self._above.shapes}
        below = {p: w for p, w in wanted.items() if p not in above}
        found = {**self._above.read(above), **self._below.read(below)}
        return {path: found[path] for path in wanted}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completed:
    """A whole model made of a stage's checkpoint and what it trained on.

    Attributes:
      source: the parameters, one layer after the other.
      origins: where they are from, what lies uppermost first.
      verify: reads the bases of stages that trained a prompt alone, and raises UserError where one
        no longer has the content hash that the stage recorded.
    """

    source: ParamSource
    origins: list[str]
    verify: Callable[[], None]


def complete(own: OwnSource) -> Completed:
    """A whole model, one layer after the other: what the stage trained over its base.

    The base is found as the checkpoint records it: a path, a name, or an earlier stage of the same
    run, whose chosen step lies beside the stage's directory.

    Raises:
      UserError: the base is not where it was, or is of another shape.
    """
    trained = Relaid(own, Layout(scanned=False))
    origins = [str(own.step_dir)]
    if EMBEDDING in trained.shapes:
        return Completed(source=trained, origins=origins, verify=lambda: None)
    reference = own.manifest.metadata.get("base_path")
    if reference is None:
        raise UserError(
            f"{own.step_dir} holds only what its stage trained ({some(sorted(trained.shapes))}), "
            "and the rest was random: there is no base to complete it with."
        )
    result = (
        StageResult.read(own.step_dir.parent.parent / reference) if _is_name(reference) else None
    )
    if result is not None:
        step_dir = result.directory / f"checkpoint_{result.step}"
        base = complete(OwnSource(step_dir))
    else:
        try:
            whole = pretrained.open_source(reference)
        except UserError as error:
            raise UserError(
                f"{own.step_dir} holds only what its stage trained, and its base cannot be read: "
                f"{error}"
            ) from None
        base = Completed(source=whole, origins=[reference], verify=lambda: None)
    per_layer = any(path.endswith(BIAS) and "/layers_" in path for path in trained.shapes)
    below = Relaid(base.source, Layout(scanned=False, bias_per_layer=True if per_layer else None))
    _check(own.step_dir, trained.shapes, below.shapes, reference)

    def verify() -> None:
        base.verify()
        expected = own.manifest.metadata.get("frozen_hash")
        if expected is not None and trained.shapes.keys() == {PROMPT_PATH}:
            _check_hash(own.step_dir, below, expected, reference)

    return Completed(source=Overlaid(below, trained), origins=origins + base.origins, verify=verify)


def _check_hash(step_dir: epath.Path, base: ParamSource, expected: str, reference: str) -> None:
    """Compare a base with the content hash of what a stage had frozen, in either of its types."""
    lines: dict[Any, list[str]] = {np.dtype(np.float32): [], np.dtype(jnp.bfloat16): []}
    paths = [path for path in base.shapes if path != PROMPT_PATH]
    for batch in batches(base, paths):
        wanted = {p: jax.ShapeDtypeStruct(base.shapes[p].shape, np.float32) for p in batch}
        arrays = base.read(wanted)
        for dtype, found in lines.items():
            found += hashing.fingerprints({p: a.astype(dtype) for p, a in arrays.items()})
    if expected not in map(hashing.hash_of, lines.values()):
        raise UserError(
            f"{reference} is not what {step_dir} was trained on: its content hash is another than "
            f"the {expected} that was recorded."
        )


def _is_name(reference: str) -> bool:
    return "/" not in reference


def _check(step_dir: epath.Path, trained: Shapes, base: Mapping[str, Any], reference: str) -> None:
    wrong = [
        path
        for path, leaf in trained.items()
        if path != PROMPT_PATH and (path not in base or base[path].shape != leaf.shape)
    ]
    if PROMPT_PATH in trained and trained[PROMPT_PATH].shape[-1] != base[EMBEDDING].shape[-1]:
        wrong.append(PROMPT_PATH)
    if wrong:
        raise UserError(
            f"{step_dir} was not trained on what {reference} now holds: {some(sorted(wrong))} "
            "would not fit."
        )
