"""The ways in which the same parameters are laid out in T5X's networks, and exact changes of them.

    examples/t5            encoder/layers_3/attention/query/kernel   [embed, joined_kv]
    this project, scanned  encoder/encoder/attention/query/kernel    [embed, layers, joined_kv]
    examples/scalable_t5   encoder/encoder/attention/query/kernel    [embed, layers, heads, kv]

The relative position bias is a stack's (`encoder/relpos_bias/rel_embedding`, T5 and mT5) or each
layer's own (`encoder/layers_3/relpos_bias/rel_embedding`, umT5 and all of scalable_t5). A shared
one becomes one for each layer by repetition; the other way round only if all layers hold the same.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.source import ParamSource, Shapes, nbytes
from promot_t5x.errors import UserError
from promot_t5x.network import scan
from promot_t5x.network.prompt import PROMPT_PATH

BATCH_BYTES = 64 * 2**20
BIAS = "relpos_bias/rel_embedding"
_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")
_PROJECTION = re.compile(r".*attention/(query|key|value|out)/kernel")
# google-research/prompt-tuning's parameter, of one task: [length, embed].
_PROMPT_TUNING = "encoder/prompt/prompt/prompt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How parameters are to be laid out; None: as they are stored.

    **Attributes:**

    - `scanned`: the layers of a stack on axis 1 of one array.
    - `bias_per_layer`: each layer has a relative position bias of its own.
    - `split_heads`: attention kernels have an axis of heads and one of head_dim (scalable_t5).
    """

    scanned: bool | None = None
    bias_per_layer: bool | None = None
    split_heads: bool = False


AS_STORED = Layout()
SCALABLE_T5 = Layout(scanned=True, bias_per_layer=True, split_heads=True)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A stored array, or one layer of a stored stack, and its shape with heads joined."""

    path: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: np.dtype

    def of(self, stored: np.ndarray) -> np.ndarray:
        part = stored if self.layer is None else stored[:, self.layer]
        return part.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """How an array is made: pieces reshaped to `shape` and, if `stacked`, put on axis 1."""

    pieces: tuple[_Piece, ...]
    shape: tuple[int, ...]
    stacked: bool

    @property
    def stored_paths(self) -> list[str]:
        return list(dict.fromkeys(piece.path for piece in self.pieces))

    def target(self) -> jax.ShapeDtypeStruct:
        shape = self.shape
        if self.stacked:
            shape = (shape[0], len(self.pieces), *shape[1:])
        return jax.ShapeDtypeStruct(shape, self.pieces[0].dtype)

    def is_copy(self, stored: Shapes) -> bool:
        """Whether the array is a stored one as it stands."""
        layers = [piece.layer for piece in self.pieces]
        in_order = layers == ([*range(len(layers))] if self.stacked else [None])
        paths = self.stored_paths
        return in_order and len(paths) == 1 and stored[paths[0]].shape == self.target().shape

    def make(self, stored: Mapping[str, np.ndarray]) -> np.ndarray:
        parts = [piece.of(stored[piece.path]).reshape(self.shape) for piece in self.pieces]
        return np.stack(parts, axis=scan.LAYER_AXIS) if self.stacked else parts[0]


class Relaid:
    """A source in another layout: the same numbers, bit for bit, under the layout's paths.

    **Attributes:**

    - `shapes`: {'/'-joined path: shape and dtype}.
    """

    def __init__(self, source: ParamSource, layout: Layout):
        """Plan the changes; reads arrays only to compare biases that are to become one.

        **Raises:** `UserError` where the layout cannot hold the source's numbers.
        """
        self._source = source
        pieces = _pieces(source.shapes)
        if layout.bias_per_layer is not None:
            pieces = self._with_bias(pieces, layout.bias_per_layer)
        stacked = layout.scanned
        if stacked is None:
            stacked = any(map(scan.layer_axis, source.shapes))
        heads = _heads(pieces) if layout.split_heads else None
        self._recipes = _recipes(pieces, stacked, heads)
        self.shapes: Shapes = {path: recipe.target() for path, recipe in self._recipes.items()}

    def _with_bias(self, pieces: dict[str, _Piece], per_layer: bool) -> dict[str, _Piece]:
        changed = dict(pieces)
        for stack in ("encoder", "decoder"):
            own = {p: piece for p, piece in pieces.items() if _is_bias_of(p, stack)}
            shared = own.pop(f"{stack}/{BIAS}", None)
            if per_layer and shared is not None:
                del changed[f"{stack}/{BIAS}"]
                for layer in _layers(pieces, stack):
                    changed[f"{stack}/layers_{layer}/{BIAS}"] = shared
            elif not per_layer and own:
                self._check_alike(stack, own)
                for path in own:
                    del changed[path]
                changed[f"{stack}/{BIAS}"] = next(iter(own.values()))
        return changed

    def _check_alike(self, stack: str, own: Mapping[str, _Piece]) -> None:
        stored = self._read_whole({piece.path for piece in own.values()})
        arrays = {path: piece.of(stored[piece.path]) for path, piece in own.items()}
        first_path, first = next(iter(arrays.items()))
        for path, array in arrays.items():
            if array.tobytes() != first.tobytes():
                raise UserError(
                    f"The {stack}'s layers have relative position biases that differ ({path} from "
                    f"{first_path}), so they cannot share one: set RELATIVE_BIAS_PER_LAYER = True, "
                    "as umT5 has it."
                )

    def _read_whole(self, paths: Iterable[str]) -> dict[str, np.ndarray]:
        shapes = {p: self._source.shapes[p] for p in paths}
        wanted = {p: jax.ShapeDtypeStruct(s.shape, s.dtype) for p, s in shapes.items()}
        return self._source.read(wanted)

    def read(self, wanted: Shapes) -> dict[str, Any]:
        """Read arrays by path, in the dtype and sharding given (numpy where there is none)."""
        recipes = {path: self._recipes[path] for path in wanted}
        copied = {
            path: recipe.stored_paths[0]
            for path, recipe in recipes.items()
            if recipe.is_copy(self._source.shapes)
        }
        found = self._source.read({stored: wanted[path] for path, stored in copied.items()})
        result = {path: found[stored] for path, stored in copied.items()}
        for batch in batches(self, [path for path in wanted if path not in copied]):
            stored = self._read_whole({p for path in batch for p in recipes[path].stored_paths})
            made = {path: recipes[path].make(stored) for path in batch}
            result |= read_arrays.read(made, {path: wanted[path] for path in batch})
        return {path: result[path] for path in wanted}

    def together(self, path: str) -> tuple[str, ...]:
        """Return a key that arrays made of the same stored arrays share."""
        return tuple(self._recipes[path].stored_paths)


def batches(source: ParamSource, paths: Iterable[str], limit: int = BATCH_BYTES) -> list[list[str]]:
    """Part paths into lists to be read at one time, of `limit` bytes or of one stored array each.

    What comes out of one stored array, such as the layers of a stack, stays together: it is read
    once.
    """
    groups: dict[Any, list[str]] = {}
    for path in paths:
        key = source.together(path) if isinstance(source, Relaid) else path
        groups.setdefault(key, []).append(path)
    result: list[list[str]] = []
    left = 0
    for group in groups.values():
        size = sum(nbytes(source.shapes[path]) for path in group)
        if size > left:
            result.append([])
            left = limit
        result[-1].extend(group)
        left -= size
    return result


def _is_bias_of(path: str, stack: str) -> bool:
    return re.fullmatch(rf"{stack}/(layers_\d+/)?{BIAS}", path) is not None


def _layers(paths: Iterable[str], stack: str) -> list[int]:
    matches = [_LAYER.fullmatch(path) for path in paths]
    return sorted({int(m[2]) for m in matches if m and m[1] == stack})


def _pieces(stored: Shapes) -> dict[str, _Piece]:
    """Find each array of the plain layout (one a layer, heads joined) in what is stored."""
    pieces: dict[str, _Piece] = {}
    for path, leaf in stored.items():
        shape = tuple(leaf.shape)
        match = _SCANNED.fullmatch(path)
        if path == _PROMPT_TUNING and len(shape) == 2:
            pieces[PROMPT_PATH] = _Piece(path, None, (1, *shape), leaf.dtype)
        elif match and len(shape) > scan.LAYER_AXIS:
            stack, rest = match.groups()
            inner = _joined(rest, (shape[0], *shape[2:]))
            for layer in range(shape[scan.LAYER_AXIS]):
                pieces[f"{stack}/layers_{layer}/{rest}"] = _Piece(path, layer, inner, leaf.dtype)
        else:
            pieces[path] = _Piece(path, None, _joined(path, shape), leaf.dtype)
    return pieces


def _joined(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an attention kernel with its heads and head_dim in one axis."""
    match = _PROJECTION.fullmatch(path)
    if match is None or len(shape) != 3:
        return shape
    a, b, c = shape
    return (a * b, c) if match[1] == "out" else (a, b * c)


def _split(path: str, shape: tuple[int, ...], heads: int | None) -> tuple[int, ...]:
    """Undo `_joined`."""
    match = _PROJECTION.fullmatch(path)
    if match is None or heads is None:
        return shape
    if match[1] == "out":
        return (heads, shape[0] // heads, shape[1])
    return (shape[0], heads, shape[1] // heads)


def _heads(pieces: Mapping[str, _Piece]) -> int:
    for path, piece in pieces.items():
        if path.endswith(BIAS):
            return piece.shape[0]
    raise UserError("The checkpoint has no relative position bias, which tells the heads.")


def _recipes(pieces: Mapping[str, _Piece], stacked: bool, heads: int | None) -> dict[str, _Recipe]:
    recipes: dict[str, _Recipe] = {}
    stacks: dict[tuple[str, tuple[int, ...]], dict[int, _Piece]] = {}
    for path, piece in pieces.items():
        shape = _split(path, piece.shape, heads)
        match = _LAYER.fullmatch(path)
        if match and stacked:
            stack, layer, rest = match.groups()
            stacks.setdefault((f"{stack}/{stack}/{rest}", shape), {})[int(layer)] = piece
        else:
            recipes[path] = _Recipe((piece,), shape, False)
    for (path, shape), layers in stacks.items():
        if sorted(layers) != list(range(len(layers))) or path in recipes:
            raise UserError(
                f"The layers cannot be stacked into {path}: those of shape {list(shape)} are "
                f"{sorted(layers)}."
            )
        recipes[path] = _Recipe(tuple(layers[i] for i in range(len(layers))), shape, True)
    for path, recipe in recipes.items():
        assert math.prod(recipe.shape) == math.prod(recipe.pieces[0].shape), path
    return recipes
