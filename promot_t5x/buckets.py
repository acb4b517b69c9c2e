"""Input lengths to compile for, and the batches of a data set at those lengths.

Padding is what a data set of mixed lengths costs, and a compilation (minutes for a large
model) is what each length compiled for costs; `choose_input_lengths` weighs the two.
"""

from collections.abc import Sequence

import numpy as np

from promot_t5x.errors import UserError


def choose_input_lengths(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    max_decode_length: int,
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
    - `multiple`: every chosen length is a multiple of it.
    """
    rounded = -(-np.asarray(lengths) // multiple) * multiple
    sizes, counts = np.unique(rounded, return_counts=True)
    total = np.concatenate([[0], np.cumsum(counts)])
    # cost[j] is that of the first j sizes in k buckets; a bucket i..j is padded to size j.
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    costs, choices = [], []
    chosen: list[tuple[int, ...]] = [()] * (len(sizes) + 1)
    for _ in range(min(max_buckets, len(sizes))):
        longer, extended = np.full(len(sizes) + 1, np.inf), list(chosen)
        for j in range(1, len(sizes) + 1):
            batches = -(-(total[j] - total[:j]) // batch_size)
            options = cost[:j] + batches * (sizes[j - 1] + max_decode_length)
            i = int(np.argmin(options))
            longer[j], extended[j] = options[i], (*chosen[i], int(sizes[j - 1]))
        cost, chosen = longer, extended
        costs.append(cost[-1])
        choices.append(chosen[-1])
    good = np.asarray(costs) <= (1 + tolerance) * min(costs)
    return choices[int(np.argmax(good))]


def batches_by_length(
    lengths: np.ndarray, input_lengths: Sequence[int], batch_size: int
) -> list[tuple[np.ndarray, int]]:
    """Group examples into batches of at most batch_size and nearly equal length.

    **Arguments:**

    - `lengths`: of the examples, in tokens.
    - `input_lengths`: what an example's length can be padded to.

    **Returns** the examples' indices and the padded length of each batch, longest first:
    what does not fit into memory fails at once.

    **Raises** `UserError` for an example without tokens, or longer than every input length.
    """
    if not lengths.all():
        raise UserError(
            f"Example {int(np.argmin(lengths))} of the inputs to decode has no tokens; give it at "
            "least an end-of-sequence token or leave it out."
        )
    allowed = np.sort(input_lengths)
    if lengths.max() > allowed[-1]:
        raise UserError(
            f"Example {int(np.argmax(lengths))} of the inputs to decode has {lengths.max()} "
            f"tokens, more than the longest of Decoder.input_lengths, {allowed[-1]}; raise that "
            "or truncate the inputs."
        )
    order = np.argsort(-lengths, kind="stable")
    bucket = np.searchsorted(allowed, lengths[order])
    batches = []
    for index in reversed(range(len(allowed))):
        rows = order[bucket == index]
        starts = range(0, len(rows), batch_size)
        batches += [(rows[i : i + batch_size], int(allowed[index])) for i in starts]
    return batches
