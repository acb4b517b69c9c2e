"""Reading the weights that a run starts from: any format, parameters only.

A base is a T5X checkpoint (legacy or orbax), a Hugging Face one, or a checkpoint of this project
that holds a whole model. The format is detected from what is in the directory. What does not fit
is an error that names the arrays; nothing is ever filled in from scratch.
"""

import contextlib
import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from promot_t5x.checkpoints import manifest as manifests
from promot_t5x.checkpoints import pretrained_names, restoring
from promot_t5x.checkpoints.formats import hf_config, read_arrays, t5x
from promot_t5x.checkpoints.formats.hugging_face import HfSource, is_checkpoint
from promot_t5x.checkpoints.formats.layouts import AS_STORED, Layout, Relaid
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.formats.source import ParamSource, reading, some
from promot_t5x.checkpoints.formats.t5x import LegacySource, OrbaxSource
from promot_t5x.checkpoints.hashing import content_hash as content_hash
from promot_t5x.checkpoints.manifest import BrokenCheckpointError
from promot_t5x.errors import UserError
from promot_t5x.network.config import T5Config

_TF_MARK = b"model_checkpoint_path"


class OwnSource:
    """The parameters of one of our own checkpoints, verified as they are read."""

    def __init__(self, step_dir: epath.Path):
        self.step_dir = step_dir
        try:
            self.manifest = manifests.read(step_dir)
        except BrokenCheckpointError as error:
            raise UserError(f"{step_dir} is damaged: {error}") from error
        self.shapes = {
            path: jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
            for path, record in self.manifest.subtree("target").items()
        }

    def check_whole(self) -> None:
        """Raise `UserError` if the stage trained only a part of a model."""
        if EMBEDDING not in self.shapes:
            base = self.manifest.metadata.get("base_path")
            start = f"It was trained on {base}: start from that." if base else ""
            raise UserError(
                f"{self.step_dir} holds only what its stage trained "
                f"({some(sorted(self.shapes))}), not a whole model. {start}"
            )

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        stored = {
            f"target/{p}": jax.ShapeDtypeStruct(w.shape, self.shapes[p].dtype, sharding=w.format)
            for p, w in wanted.items()
        }
        try:
            arrays = restoring.read_verified(self.step_dir, stored, self.manifest)
        except BrokenCheckpointError as error:
            raise UserError(f"{self.step_dir} is damaged: {error}") from error
        return {p: _as_wanted(arrays[f"target/{p}"], w) for p, w in wanted.items()}


def read_params(
    path: str | os.PathLike,
    *,
    layout: Layout = AS_STORED,
    dtype: Any = None,
    shardings: Any = None,
    only: str | None = None,
) -> dict[str, Any]:
    """Read a base's parameters.

    Args:
      path: a base with a name; a checkpoint directory (`checkpoint_<step>`, or one of Hugging
        Face), local or `gs://`; or a stage directory of ours, of which the newest complete
        checkpoint is meant.
      layout: how they are laid out.
      dtype: what floating-point parameters are cast to; None keeps them as stored.
      shardings: one sharding for all, or a nested dict with one for each; parameters come
        as JAX arrays of which each process reads its own part. None gives numpy arrays.
      only: a regular expression that a '/'-joined path must match in full to be read.

    Returns:
      A nested dict.

    Raises:
      UserError: no checkpoint there, damaged, or not a whole model.
    """
    source = open_laid_out(path, layout)
    chosen = {p: s for p, s in source.shapes.items() if only is None or re.fullmatch(only, p)}
    if not chosen:
        raise UserError(
            f"no parameter of {path} matches {only!r}; it has {some(sorted(source.shapes))}"
        )
    placed = _by_path(shardings, chosen)
    wanted = {
        p: jax.ShapeDtypeStruct(s.shape, cast(s.dtype, dtype), sharding=placed[p])
        for p, s in chosen.items()
    }
    return traverse_util.unflatten_dict(source.read(wanted), sep="/")


def param_shapes(path: str | os.PathLike) -> dict[str, jax.ShapeDtypeStruct]:
    """Return {'/'-joined path: shape and dtype as stored} of a base, reading no array."""
    return dict(open_laid_out(path).shapes)


def open_laid_out(
    path: str | os.PathLike, layout: Layout = AS_STORED, config: T5Config | None = None
) -> ParamSource:
    """Open a base in a layout.

    Raises:
      UserError: as `open_source`; or the layout cannot hold the base's numbers; or the base says of
        itself that it is of another model than `config`, the network's that is to take it.
    """
    source = open_source(path)
    if isinstance(source, HfSource) and config is not None:
        source.shape.check(config, path)
    return Relaid(source, layout)


def cast(stored: Any, dtype: Any) -> np.dtype:
    """The type that an array stored as one type has when read as another: integers stay."""
    floating = jax.numpy.issubdtype(stored, jax.numpy.floating)
    return np.dtype(stored if dtype is None or not floating else dtype)


def _as_wanted(array: Any, wanted: jax.ShapeDtypeStruct) -> Any:
    """An array in the dtype that is wanted; it keeps its place and its order in memory."""
    if array.dtype == wanted.dtype or not isinstance(array, jax.Array):
        return array.astype(wanted.dtype, copy=False)
    return jax.jit(lambda a: a.astype(wanted.dtype), out_shardings=wanted.format)(array)


def _by_path(shardings: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        return dict.fromkeys(chosen, shardings)
    flat = traverse_util.flatten_dict(shardings, sep="/")
    if missing := sorted(set(chosen) - set(flat)):
        raise ValueError(f"no sharding for {some(missing)}")
    return flat


def open_source(path: str | os.PathLike) -> ParamSource:
    """Detect a checkpoint's format and open it.

    Raises:
      UserError: names the path, what was found there and the nearest checkpoint; or it is a
        stage's, which holds only a part of a model.
    """
    source = open_any(path)
    if isinstance(source, OwnSource):
        source.check_whole()
    return source


def open_any(path: str | os.PathLike) -> OwnSource | HfSource | LegacySource | OrbaxSource:
    """Open a checkpoint as `open_source` does, a stage's too that holds only what trained."""
    directory = find(path)
    if steps := restoring.complete_steps(directory):
        directory = restoring.step_directory(directory, steps[-1])
    if (directory / manifests.FILE_NAME).exists():
        return OwnSource(directory)
    _refuse_unfinished(directory)
    for orbax in (directory / restoring.STATE, directory):
        if (orbax / read_arrays.ORBAX_TREE_FILE).exists():
            return OrbaxSource(orbax)
    _refuse_tensorflow(directory)
    if (directory / t5x.LEGACY_FILE).is_file():
        return LegacySource(directory)
    if is_checkpoint(directory):
        return HfSource(directory)
    raise UserError(f"{path} {_what_is_there(directory)}.{_nearest(directory)}")


def find(path: str | os.PathLike) -> epath.Path:
    """The directory that a name or path means, of which something exists.

    Raises:
      UserError: there is none, or it may not be read.
    """
    places = [restoring.absolute(place) for place in pretrained_names.resolve(str(path))]
    for directory in places:
        with reading(directory):
            if directory.name == t5x.LEGACY_FILE and directory.is_file():
                return directory.parent
            if directory.is_dir():
                return directory
    directory = places[0]
    if len(places) > 1:
        raise UserError(f"{path} is at none of {', '.join(map(str, places))}.")
    raise UserError(f"{path} {_what_is_there(directory)}.{_nearest(directory)}")


def _refuse_unfinished(directory: epath.Path) -> None:
    step = directory.name.removeprefix(restoring.PREFIX)
    if step.isdigit() and restoring.pending_marker(directory.parent, int(step)).exists():
        raise UserError(
            f"{directory} is still being written, or its run was cut short while it "
            "was. Wait for the run, or start it again, or take an earlier checkpoint."
        )


def _refuse_tensorflow(directory: epath.Path) -> None:
    index = directory / t5x.LEGACY_FILE
    if index.is_file():
        with index.open("rb") as file:
            if file.read(len(_TF_MARK)) == _TF_MARK:
                raise UserError(
                    f"{directory} is a TensorFlow (Mesh TensorFlow) checkpoint. Take "
                    "the model's T5X checkpoint, or convert it with T5X."
                )


def _looks_like_checkpoint(directory: epath.Path) -> bool:
    return any(
        (directory / name).exists()
        for name in (
            manifests.FILE_NAME,
            t5x.LEGACY_FILE,
            read_arrays.ORBAX_TREE_FILE,
            f"{restoring.STATE}/{read_arrays.ORBAX_TREE_FILE}",
            hf_config.CONFIG_FILE,
        )
    )


def _what_is_there(path: epath.Path) -> str:
    if path.is_file():
        return "is a file, not a checkpoint directory"
    if not path.exists():
        return "does not exist"
    names = sorted(entry.name for entry in path.iterdir())
    return f"is not a checkpoint: it holds {some(names)}" if names else "is an empty directory"


def _step_of(path: epath.Path) -> int:
    match = re.search(r"(\d+)$", path.name)
    return int(match[1]) if match else -1


def _nearest(path: epath.Path) -> str:
    """Point at the checkpoint most likely meant: below the path, or beside it by name."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            levels = [sorted(path.glob("*")), sorted(path.glob("*/*"))]
            for entries in levels:
                if found := [e for e in entries if _looks_like_checkpoint(e)]:
                    return f" Did you mean {max(found, key=_step_of)}?"
            return ""
        if path.is_file() or path.parent.is_dir():
            beside = [e for e in sorted(path.parent.iterdir()) if _looks_like_checkpoint(e)]
            near = difflib.get_close_matches(path.name, [e.name for e in beside], n=1, cutoff=0.3)
            return f" Did you mean {path.parent / near[0]}?" if near else ""
        return f" Nor does {path.parent}."
    return ""


def check_tree(
    params: Mapping[str, Any], expected: Mapping[str, Any], *, source: Any = "The checkpoint"
) -> None:
    """Check that parameters are those that a model needs: no fewer, no more, no other shape.

    Args:
      params: a dict, nested or by '/'-joined path, of arrays or ShapeDtypeStructs.
      expected: likewise, or of shapes.
      source: what the message calls the parameters, such as the checkpoint's path.

    Raises:
      UserError: counts and names the missing, unexpected and wrongly shaped arrays.
    """
    found, wanted = _shapes(params), _shapes(expected)
    wrong = [
        f"{p} is {list(found[p])}, the model has {list(wanted[p])}"
        for p in sorted(set(wanted) & set(found))
        if found[p] != wanted[p]
    ]
    problems = [
        f"{len(names)} {kind}: {some(names)}"
        for kind, names in (
            ("missing", sorted(set(wanted) - set(found))),
            ("unexpected", sorted(set(found) - set(wanted))),
            ("of another shape", wrong),
        )
        if names
    ]
    if problems:
        raise UserError(
            f"{source} does not fit the model, which has {len(wanted)} arrays. "
            f"{'. '.join(problems)}. Choose the model configuration that the weights are of."
        )


def _shapes(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: tuple(getattr(leaf, "shape", leaf)) for path, leaf in flat.items()}
