"""A batch's own examples in as few rows as they need, in one of few shapes.

Which examples a step takes is decided before they are laid into rows, so a step's loss and
gradients are those of the same examples one a row. A shape is a compiled program; so the shapes of
a run are chosen once, from lengths that stand for all, and each batch takes the first that it fits.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from promot_t5x.data.packing import RowPlan, best_fit_decreasing

# What rows may be long, in parts of the length that one example may have.
_INPUT_PARTS = (1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1.0)
_TARGET_PARTS = (1 / 4, 1 / 2, 3 / 4, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
_LENGTH_MULTIPLE = 8
# A program more has to save this share of the tokens that are computed.
_WORTH_A_PROGRAM = 0.05

Sizes = Int64[np.ndarray, "examples features"]


class Shape(NamedTuple):
    """The shape of a batch: its rows, and the tokens of inputs and of targets in a row."""

    rows: int
    inputs: int
    targets: int

    @property
    def tokens(self) -> int:
        """What a step computes, padding included."""
        return self.rows * (self.inputs + self.targets)

    def __str__(self) -> str:
        return f"{self.rows}x{self.inputs}x{self.targets}"


def lay(sizes: Sizes, shape: Shape, first_place: int = 0) -> RowPlan | None:
    """Return the plan of consecutive places' examples in rows of a shape; None if they do not fit.

    **Arguments:**

    - `sizes`: tokens of each example's inputs and targets.
    - `first_place`: the first example's.
    """
    room = np.array([shape.inputs, shape.targets])
    if (sizes.max(axis=0) > room).any() or (sizes.sum(axis=0) > shape.rows * room).any():
        return None
    rows = best_fit_decreasing(sizes, (shape.inputs, shape.targets))
    return RowPlan.of_rows(rows, first_place) if rows.max() < shape.rows else None


def choose_shapes(samples: Sequence[Sizes], whole: Shape, row_multiple: int) -> tuple[Shape, ...]:
    """Choose at most three shapes that batches take, the smallest first.

    The last is `whole`, which holds any batch. Before it comes the smallest one that all of the
    samples fit, and before that the one that saves the most beside these, if it saves enough.

    **Arguments:**

    - `samples`: sizes of the examples of some batches.
    - `whole`: a row for every example of a batch, as long as an example may be.
    - `row_multiple`: divides the rows of every shape, and those of `whole`.
    """
    found = []  # (a shape, which samples fit it)
    for inputs in _lengths(whole.inputs, _INPUT_PARTS):
        for targets in _lengths(whole.targets, _TARGET_PARTS):
            needed = np.array([_rows_needed(sizes, inputs, targets) for sizes in samples])
            for rows in np.unique(-(-needed // row_multiple) * row_multiple):
                shape = Shape(int(rows), inputs, targets)
                if shape.rows <= whole.rows and shape.tokens < whole.tokens:
                    found.append((shape, needed <= rows))
    holds_all = min((shape for shape, fits in found if fits.all()), key=_cost, default=whole)

    def mean_tokens(shape: Shape, fits: np.ndarray) -> float:
        share = float(fits.mean())
        return share * shape.tokens + (1 - share) * holds_all.tokens

    shapes = {holds_all, whole}
    if found:
        most, fits = min(found, key=lambda each: (mean_tokens(*each), _cost(each[0])))
        if mean_tokens(most, fits) < (1 - _WORTH_A_PROGRAM) * holds_all.tokens:
            shapes.add(most)
    return tuple(sorted(shapes, key=_cost))


def _cost(shape: Shape) -> tuple[int, int]:
    """Order by tokens, and shapes of as many by what attention adds: short rows first."""
    return shape.tokens, shape.inputs + shape.targets


def _lengths(longest: int, parts: Sequence[float]) -> list[int]:
    def rounded(length: int) -> int:
        return -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE

    return sorted({longest if part == 1 else rounded(math.ceil(longest * part)) for part in parts})


def _rows_needed(sizes: Sizes, inputs: int, targets: int) -> int:
    """Return how many rows of these lengths the examples take; too many where one fits none."""
    if (sizes.max(axis=0) > (inputs, targets)).any():
        return np.iinfo(np.int32).max // 2
    return int(best_fit_decreasing(sizes, (inputs, targets)).max()) + 1
