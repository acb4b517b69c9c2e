"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) as T5X runs it, for optax.

optax has an Adafactor too; this one has T5X's numbers (decay schedule, clipping, decoupled weight
decay) and T5X's slots, so that a run started there goes on here. A parameter is factored in two:
a [rows, columns] matrix needs rows + columns numbers of second moment, not rows * columns.

Arrays that stack independent parameters are treated one by one, as T5X's BATCH rule does: the
layer axis of scanned layers and the task axis of a prompt table never enter a mean or a root mean
square, so scanned training equals unscanned, and prompts of different tasks do not touch.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree, Real

from promot_t5x.errors import UserError
from promot_t5x.network.scan import layer_axis

_OUTPUT_PROJECTION = re.compile(r"(^|/)(out|wo)/kernel$")
_PROMPT = re.compile(r"(^|/)prompt$")


class HParamMap:
    """A setting for each parameter: the value of the first rule whose pattern its path contains.

    **Arguments:**

    - `rules`: (pattern, value) pairs; the pattern is searched (`re.search`) in paths such as
      `encoder/layers_0/mlp/wo/kernel`. End with (".*", value) to cover the rest.

    **Raises:** `UserError` for a pattern that is no regular expression and, when looked up, for a
    path without a rule.
    """

    def __init__(self, rules: Iterable[tuple[str, Any]]):
        self._rules = []
        for pattern, value in rules:
            try:
                self._rules.append((re.compile(pattern), value))
            except re.error as error:
                raise UserError(
                    f"HParamMap.rules has {pattern!r}, which is not a regular expression: {error}."
                ) from error

    def __getitem__(self, path: str) -> Any:
        for pattern, value in self._rules:
            if pattern.search(path):
                return value
        patterns = ", ".join(repr(pattern.pattern) for pattern, _ in self._rules) or "no pattern"
        raise UserError(
            f"No rule of multiply_by_parameter_scale covers the parameter {path!r} (rules: "
            f"{patterns}). Add a last rule ('.*', True) or ('.*', False)."
        )


class AdafactorState(NamedTuple):
    """T5X's slots: four trees like the parameters, float32; a slot that is not used is zeros (1,).

    **Attributes:**

    - `count`: steps taken; set it to continue a run.
    - `m`: momentum (only with beta1).
    - `v`: second moment of a parameter that is not factored.
    - `v_row`, `v_col`: second moment of a factored one, averaged over its columns and its rows.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # T5X's name; hides tuple.count
    m: PyTree
    v: PyTree
    v_row: PyTree
    v_col: PyTree


class _Slots(NamedTuple):
    """The state of one parameter."""

    m: Float[Array, "..."]
    v: Float[Array, "..."]
    v_row: Float[Array, "..."]
    v_col: Float[Array, "..."]


class _Axes(NamedTuple):
    """Which axes of a parameter a root mean square runs over, and how it is factored, if it is."""

    averaged: tuple[int, ...]
    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()


def adafactor(
    learning_rate: float | Callable[[Any], Any],
    *,
    factored: bool = True,
    multiply_by_parameter_scale: bool | HParamMap | Iterable[tuple[str, bool]] = True,
    beta1: float | None = None,
    decay_rate: float = 0.8,
    step_offset: int = 0,
    clipping_threshold: float | None = 1.0,
    weight_decay_rate: float | None = None,
    min_dim_size_to_factor: int = 128,
    epsilon1: float = 1e-30,
    epsilon2: float = 1e-3,
    weight_decay_rate_lr_exponent: float | None = None,
    global_norm_clip_threshold: float | None = None,
    max_parameter_scale: float | None = None,
    skip_nan_updates: bool = False,
) -> optax.GradientTransformation:
    """Return T5X's Adafactor over a tree (or part of one) of parameters, nested dicts of arrays.

    At step t = count - step_offset, for a gradient g of a parameter p:
      d = 1 - (t + 1) ** -decay_rate
      v = d * v + (1 - d) * (g**2 + epsilon1), kept as row and column means where factored
      y = g / sqrt(v);  y = y / max(1, RMS(y) / clipping_threshold)
      p = (1 - weight_decay_rate) * p - learning_rate * clip(RMS(p), epsilon2, max) * y

    Starting late. A stage that takes its weights, but no slots, from a checkpoint at step 1.1M
    and keeps counting from there has d = 0.999985 with v = 0: v stays near 0, y is huge, and
    *every* update is clipped to RMS(y) = clipping_threshold, for thousands of steps. With
    `step_offset` = the step it starts at, d starts at 0 and Adafactor behaves as in a new run.
    Published prompt tuning settings (learning rate 0.3, step_offset 0, from step 1.1M) were tuned
    in the clipped regime; choose on purpose. A count below step_offset has no decay rate (NaN).

    Factoring. A matrix is factored when both its sides reach `min_dim_size_to_factor`; the row
    axis is the smaller one. In a scanned layer this is decided without the layer axis, heads and
    head size together being one side, and the row axis is the embedding's, as T5X's rules say:
    wi (768, 12, 2048) has v_row (768, 12) and v_col (12, 2048). Prompts are never factored.

    **Arguments:**

    - `learning_rate`: a number or a schedule, called with the count; relative to the parameter's
      size where `multiply_by_parameter_scale`.
    - `factored`: False keeps a full second moment for everything.
    - `multiply_by_parameter_scale`: for all, or per parameter (see `HParamMap`).
    - `beta1`: momentum, if any; costs a copy of the parameters.
    - `decay_rate`: the exponent above.
    - `step_offset`: see "Starting late".
    - `clipping_threshold`: the highest RMS of an update before the learning rate; None for any.
    - `weight_decay_rate`: decoupled, and *not* multiplied by the learning rate.
    - `min_dim_size_to_factor`: see "Factoring".
    - `epsilon1`: added to squared gradients.
    - `epsilon2`: the least parameter scale.
    - `weight_decay_rate_lr_exponent`: multiply the decay (or 1) by learning_rate to this power.
    - `global_norm_clip_threshold`: scale gradients down to this norm over the whole tree first.
    - `max_parameter_scale`: the highest parameter scale.
    - `skip_nan_updates`: leave values that would become NaN, parameters' and slots', as they are.

    **Raises:** `UserError` for a parameter of more than two (unstacked) axes that is not a prompt,
    or one that no rule of `multiply_by_parameter_scale` covers.
    """
    if not isinstance(multiply_by_parameter_scale, bool | HParamMap):
        multiply_by_parameter_scale = HParamMap(multiply_by_parameter_scale)

    def is_scaled(path: str) -> bool:
        if isinstance(multiply_by_parameter_scale, HParamMap):
            return bool(multiply_by_parameter_scale[path])
        return multiply_by_parameter_scale

    def axes_of(path: str, shape: tuple[int, ...]) -> _Axes:
        return _axes(path, shape, min_dim_size_to_factor if factored else None)

    def weight_decay_at(rate: Real[ArrayLike, ""]) -> Real[ArrayLike, ""] | None:
        if weight_decay_rate_lr_exponent:
            return (weight_decay_rate or 1.0) * rate**weight_decay_rate_lr_exponent
        return weight_decay_rate

    def init(params: PyTree) -> AdafactorState:
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        slots = []
        for key, param in leaves:
            path = _name(key)
            is_scaled(path)  # so that a missing rule shows before anything is compiled
            slots.append(_zero_slots(param.shape, axes_of(path, param.shape), beta1 is not None))
        return AdafactorState(jnp.zeros((), jnp.int32), *_unzip(treedef, slots, 4))

    def step_of(
        path: str,
        param: Float[Array, "*shape"],
        grad: Float[Array, "*shape"],
        old: _Slots,
        decay: Float[Array, ""],
        rate: Real[ArrayLike, ""],
    ) -> tuple[Any, _Slots]:
        """Return what to subtract from one parameter, and its new slots."""
        axes = axes_of(path, param.shape)
        direction, new = _precondition(grad, old, axes, decay, epsilon1)
        if clipping_threshold is not None:
            direction /= jnp.maximum(1.0, _rms(direction, axes) / clipping_threshold)
        if is_scaled(path):
            rate = rate * jnp.clip(_rms(param, axes), epsilon2, max_parameter_scale)
        step = rate * direction
        if beta1 is not None:
            step = beta1 * old.m + (1.0 - beta1) * step
            new = new._replace(m=step)
        return step, new

    def update(
        grads: PyTree, state: AdafactorState, params: PyTree | None = None
    ) -> tuple[PyTree, AdafactorState]:
        if params is None:
            raise ValueError("adafactor needs the parameters: call update(grads, state, params).")
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        decay = 1.0 - ((state.count - step_offset).astype(jnp.float32) + 1.0) ** -decay_rate
        weight_decay = weight_decay_at(rate)
        if global_norm_clip_threshold:
            grads = _clip_global_norm(grads, global_norm_clip_threshold)
        treedef: Any
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        columns = [treedef.flatten_up_to(tree) for tree in (grads, *state[1:])]
        results = []
        for (key, param), grad, *old in zip(leaves, *columns, strict=True):
            param, grad, old = param.astype(jnp.float32), grad.astype(jnp.float32), _Slots(*old)
            step, new = step_of(_name(key), param, grad, old, decay, rate)
            change = -step if weight_decay is None else -(step + weight_decay * param)
            if skip_nan_updates:
                change = jnp.where(jnp.isnan(change), 0.0, change)
                new = jax.tree.map(lambda n, o: jnp.where(jnp.isnan(n), o, n), new, old)
            results.append((change, *new))
        changes, *slots = _unzip(treedef, results, 5)
        return changes, AdafactorState(optax.safe_increment(state.count), *slots)

    return optax.GradientTransformation(init, update)


def _axes(path: str, shape: tuple[int, ...], min_size: int | None) -> _Axes:
    """Say how the parameter is averaged and factored; `min_size` None factors nothing."""
    every = tuple(range(len(shape)))
    if _PROMPT.search(path):
        return _Axes(every[-2:])
    layers = layer_axis(path)
    inner = tuple(axis for axis in every if axis != layers)
    if min_size is None or len(inner) < 2:
        return _Axes(inner)
    if layers is not None:
        rows = inner[-1:] if _OUTPUT_PROJECTION.search(path) else inner[:1]
    elif len(inner) == 2:
        rows = inner[:1] if shape[0] <= shape[1] else inner[1:]
    else:
        raise UserError(
            f"Adafactor cannot tell the rows of {path!r}, shape {shape}, from its columns: give "
            "it two axes, or call adafactor with factored=False."
        )
    columns = tuple(axis for axis in inner if axis not in rows)
    sides = [math.prod(shape[axis] for axis in axes) for axes in (rows, columns)]
    return _Axes(inner, rows, columns) if min(sides) >= min_size else _Axes(inner)


def _zero_slots(shape: tuple[int, ...], axes: _Axes, momentum: bool) -> _Slots:
    def without(dropped: tuple[int, ...]) -> Float[Array, "..."]:
        return jnp.zeros([n for axis, n in enumerate(shape) if axis not in dropped], jnp.float32)

    unused = jnp.zeros((1,), jnp.float32)
    return _Slots(
        m=without(()) if momentum else unused,
        v=unused if axes.rows else without(()),
        v_row=without(axes.columns) if axes.rows else unused,
        v_col=without(axes.rows) if axes.rows else unused,
    )


def _precondition(
    grad: Float[Array, "*shape"],
    old: _Slots,
    axes: _Axes,
    decay: Float[Array, ""],
    epsilon: float,
) -> tuple[Float[Array, "*shape"], _Slots]:
    """Return the gradient over the root of its second moment, and that moment's new slots."""
    squared = grad * grad + epsilon
    if not axes.rows:
        v = decay * old.v + (1.0 - decay) * squared
        return grad * jax.lax.rsqrt(v), old._replace(v=v)
    v_row = decay * old.v_row + (1.0 - decay) * jnp.mean(squared, axes.columns)
    v_col = decay * old.v_col + (1.0 - decay) * jnp.mean(squared, axes.rows)
    row = jnp.expand_dims(v_row, axes.columns)
    row = row / jnp.mean(row, axes.rows, keepdims=True)
    column = jnp.expand_dims(v_col, axes.rows)
    direction = grad * jax.lax.rsqrt(row) * jax.lax.rsqrt(column)
    return direction, old._replace(v_row=v_row, v_col=v_col)


def _rms(x: Float[Array, "..."], axes: _Axes) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.mean(x * x, axes.averaged, keepdims=True))


def _clip_global_norm(grads: PyTree, threshold: float) -> PyTree:
    norm = optax.tree.norm(grads)
    scale = jnp.minimum(1.0, threshold / norm)
    return jax.tree.map(lambda grad: grad * scale, grads)


def _name(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def _unzip(treedef: Any, rows: Sequence[tuple[Any, ...]], width: int) -> list[PyTree]:
    """Turn one tuple a leaf into one tree a member (also where there is no leaf at all)."""
    columns = zip(*rows, strict=True) if rows else [()] * width
    return [treedef.unflatten(column) for column in columns]
