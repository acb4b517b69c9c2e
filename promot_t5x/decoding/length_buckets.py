"""Input lengths to compile for, and the batches of a data set at those lengths.

Padding is what a data set of mixed lengths costs, and a compilation (minutes for a large
model) is what each length compiled for costs; `choose_input_lengths` weighs the two. Tasks with
answers of different lengths share programs: a program has room for the longest answer of its
inputs, and each batch says how many tokens its own answers may take.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from promot_t5x.errors import UserError

Lengths = Sequence[int] | Int[np.ndarray, " examples"]


class Batch(NamedTuple):
    """Examples decoded together.

    rows: their indices, at most a batch's size of them.
    input_length: what their inputs are padded to.
    output_length: the room for answers of the program that decodes them.
    limit: the most tokens that their answers take, EOS included.
    """

    rows: np.ndarray
    input_length: int
    output_length: int
    limit: int


def choose_input_lengths(
    lengths: Lengths,
    limits: Lengths | int,
    *,
    batch_size: int,
    max_buckets: int = 4,
    multiple: int = 16,
    tolerance: float = 0.1,
) -> tuple[int, ...]:
    """Choose the input lengths to compile for, ascending.

    The best lengths make the fewest tokens, a batch counting its padded inputs and its
    outputs; of the choices within `tolerance` of the best, the one with the fewest
    lengths is taken, because each costs a compilation.

    **Arguments:**

    - `lengths`: of the inputs, in tokens.
    - `limits`: of their answers; only examples with the same one share a batch.
    - `multiple`: every chosen length is a multiple of it.
    """
    rounded = -(-np.asarray(lengths) // multiple) * multiple
    sizes, size_index = np.unique(rounded, return_inverse=True)
    kinds, kind_index = np.unique(
        np.broadcast_to(np.asarray(limits), rounded.shape), return_inverse=True
    )
    counts = np.zeros((len(sizes) + 1, len(kinds)), np.int64)
    np.add.at(counts, (size_index + 1, kind_index), 1)
    total = np.cumsum(counts, axis=0)
    # cost[j] is that of the first j sizes in k buckets; a bucket i..j is padded to size j.
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    costs, choices = [], []
    chosen: list[tuple[int, ...]] = [()] * (len(sizes) + 1)
    for _ in range(min(max_buckets, len(sizes))):
        longer, extended = np.full(len(sizes) + 1, np.inf), list(chosen)
        for j in range(1, len(sizes) + 1):
            batches = -(-(total[j] - total[:j]) // batch_size)
            options = cost[:j] + batches @ (sizes[j - 1] + kinds)
            i = int(np.argmin(options))
            longer[j], extended[j] = options[i], (*chosen[i], int(sizes[j - 1]))
        cost, chosen = longer, extended
        costs.append(cost[-1])
        choices.append(chosen[-1])
    good = np.asarray(costs) <= (1 + tolerance) * min(costs)
    return choices[int(np.argmax(good))]


def batches_by_length(
    lengths: Lengths, limits: Lengths | int, input_lengths: Sequence[int], batch_size: int
) -> list[Batch]:
    """Group examples into batches of at most batch_size, of one limit and nearly equal length.

    **Arguments:**

    - `lengths`: of the examples, in tokens.
    - `limits`: the most tokens that each answer takes.
    - `input_lengths`: what an example's length can be padded to.

    **Returns** the batches, longest inputs first: what does not fit into memory fails at once.

    **Raises** `UserError` for an example without tokens, or longer than every input length.
    """
    lengths = np.asarray(lengths)
    limits = np.broadcast_to(np.asarray(limits), lengths.shape)
    if not lengths.all():
        raise UserError(
            f"Example {int(np.argmin(lengths))} of the inputs to decode has no tokens; give it at "
            "least an end-of-sequence token or leave it out."
        )
    allowed = np.sort(input_lengths)
    if lengths.max() > allowed[-1]:
        raise UserError(
            f"Example {int(np.argmax(lengths))} of the inputs to decode has {lengths.max()} "
            f"tokens, more than the longest of input_lengths, {allowed[-1]}; raise that or "
            "truncate the inputs."
        )
    order = np.lexsort((-lengths, -limits))
    bucket = np.searchsorted(allowed, lengths[order])
    batches = []
    for index in reversed(range(len(allowed))):
        members = order[bucket == index]
        for limit in np.unique(limits[members])[::-1]:
            rows = members[limits[members] == limit]
            batches += [
                Batch(
                    rows[i : i + batch_size],
                    int(allowed[index]),
                    int(limits[members].max()),
                    int(limit),
                )
                for i in range(0, len(rows), batch_size)
            ]
    return batches
