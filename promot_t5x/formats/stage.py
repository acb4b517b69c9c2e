"""A stage's checkpoint, which holds only what trained, made whole with the base it trained on."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from promot_t5x import bases
from promot_t5x.bases import OwnSource
from promot_t5x.errors import UserError
from promot_t5x.formats.layouts import BIAS, Layout, Relaid
from promot_t5x.formats.shape import EMBEDDING
from promot_t5x.formats.source import ParamSource, Shapes, some
from promot_t5x.prompt import PROMPT_PATH
from promot_t5x.weights import StageResult


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


def complete(own: OwnSource) -> tuple[ParamSource, list[str]]:
    """A whole model, one layer after the other: what the stage trained over its base.

    The base is found as the checkpoint records it: a path, a name, or an earlier stage of the same
    run, whose chosen step lies beside the stage's directory.

    Returns:
      The model, and where each part of it is from, the stage's own first.

    Raises:
      UserError: the base is not where it was, or is of another shape.
    """
    trained = Relaid(own, Layout(scanned=False))
    origins = [str(own.step_dir)]
    if EMBEDDING in trained.shapes:
        return trained, origins
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
        base, more = complete(OwnSource(step_dir))
    else:
        try:
            base = bases.open_source(reference)
        except UserError as error:
            raise UserError(
                f"{own.step_dir} holds only what its stage trained, and its base cannot be read: "
                f"{error}"
            ) from None
        more = [reference]
    per_layer = any(path.endswith(BIAS) and "/layers_" in path for path in trained.shapes)
    below = Relaid(base, Layout(scanned=False, bias_per_layer=True if per_layer else None))
    _check(own.step_dir, trained.shapes, below.shapes, reference)
    return Overlaid(below, trained), origins + more


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


def prompt_of(source: ParamSource) -> Any:
    """The prompt table [prompts, length, embed] of a source, float32, or None."""
    if PROMPT_PATH not in source.shapes:
        return None
    shape = source.shapes[PROMPT_PATH].shape
    return source.read({PROMPT_PATH: jax.ShapeDtypeStruct(shape, "float32")})[PROMPT_PATH]
