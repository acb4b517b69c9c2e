"""Which example stands at which place of the endless training stream.

Place n of the stream is a pure function of (tasks, seed, n), computed without walking there:

- *Mixing.* Places come in blocks of 1,024. A block spreads its places over the tasks in the
  proportion of their rates as exactly as whole numbers allow, with an offset that changes from
  block to block so that no task, however rare, is starved; a hash of (seed, block) shuffles the
  places. Counts per block have a closed form, so the number of earlier picks of a task, which
  is the place's index within that task, costs next to nothing at any n.
- *Shuffling.* Epoch e of a task is the permutation hashed from (seed, task name, e).

Only the raw stream of Philox is used, which numpy guarantees never to change; `Generator`'s
shuffles carry no such promise.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64

BLOCK = 1024
_GOLDEN = 0.6180339887498949
_BLOCKS_AT_ONCE = 65536


def permutation(size: int, *key: int | str) -> Int64[np.ndarray, " size"]:
    """Return the permutation of `range(size)` that belongs to `key`, the same everywhere."""
    return np.argsort(_bits(*key).random_raw(size), kind="stable").astype(np.int64)


class Mixing:
    """Places of a stream that draws from several tasks by rate."""

    def __init__(self, rates: Sequence[float], seed: int):
        """Rates are positive and need not sum to 1."""
        shares = np.asarray(rates, dtype=np.float64)
        self._edges = np.cumsum(shares / shares.sum()) * BLOCK
        self._edges[-1] = BLOCK
        self._seed = seed
        self._start = _bits(seed, "mixing").random_raw() / 2.0**64
        self._counted = (0, np.zeros(len(shares), np.int64))

    def picks(
        self, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """Task numbers of places start..stop-1, and each one's number of earlier picks."""
        blocks = range(start // BLOCK, -(-stop // BLOCK))
        parts = [self._block(block) for block in blocks]
        cut = slice(start - blocks.start * BLOCK, stop - blocks.start * BLOCK)
        tasks, indices = (np.concatenate(part)[cut] for part in zip(*parts, strict=True))
        return tasks, indices

    def _block(self, block: int):  # type: ignore[no-untyped-def]
        edges = self._block_edges(block, block + 1)[0]
        tasks = np.searchsorted(edges, permutation(BLOCK, self._seed, "mixing", block), "right")
        by_task = np.argsort(tasks, kind="stable")
        first = np.concatenate([[0], edges[:-1]])
        rank = np.empty(BLOCK, np.int64)
        rank[by_task] = np.arange(BLOCK) - first[tasks[by_task]]
        return tasks.astype(np.int64), rank + self._picks_before(block)[tasks]

    def _block_edges(self, start: int, stop: int) -> Int64[np.ndarray, "blocks tasks"]:
        """Upper edges of the tasks' shares of the 1,024 places of each block."""
        offset = np.modf(self._start + np.arange(start, stop) * _GOLDEN)[0]
        edges = np.ceil(self._edges[None, :] - offset[:, None]).astype(np.int64)
        edges[:, -1] = BLOCK
        return np.clip(edges, 0, BLOCK)  # type: ignore[no-any-return]

    def _picks_before(self, block: int) -> Int64[np.ndarray, " tasks"]:
        # Read once, so that threads which share this object cannot see half an update.
        done, edges = self._counted
        if done > block:
            done, edges = 0, np.zeros_like(edges)
        while done < block:
            stop = min(block, done + _BLOCKS_AT_ONCE)
            edges = edges + self._block_edges(done, stop).sum(axis=0)
            done = stop
        self._counted = (done, edges)
        return np.diff(edges, prepend=0)


class Stream:
    """The endless stream of (task, example) pairs that training reads from."""

    def __init__(
        self,
        *,
        names: Sequence[str],
        sizes: Sequence[int],
        rates: Sequence[float],
        seed: int,
        shuffle: bool = True,
        by_epoch: Sequence[bool] | None = None,
    ):
        """Plan nothing yet.

        **Arguments:**

        - `names`, `sizes`, `rates`: of the tasks; sizes are numbers of examples.
        - `shuffle`: False keeps each task's order.
        - `by_epoch`: by task, whether its example n is number e * size + n in epoch e.
        """
        self._sizes = tuple(sizes)
        self._by_epoch = np.asarray(by_epoch or [False] * len(self._sizes))
        self._mixing = Mixing(rates, seed) if len(self._sizes) > 1 else None
        self._epoch_order = _epoch_orders(tuple(names), self._sizes, seed) if shuffle else None

    def examples(
        self, start: int, stop: int
    ) -> tuple[Int64[np.ndarray, " places"], Int64[np.ndarray, " places"]]:
        """Task number and example number at places start..stop-1 (stop > start)."""
        if self._mixing is None:
            indices = np.arange(start, stop, dtype=np.int64)
            tasks = np.zeros_like(indices)
        else:
            tasks, indices = self._mixing.picks(start, stop)
        return tasks, self._within_epochs(tasks, indices)  # type: ignore[no-untyped-call]

    def _within_epochs(self, tasks, indices):  # type: ignore[no-untyped-def]
        sizes = np.asarray(self._sizes, np.int64)[tasks]
        epochs, offsets = np.divmod(indices, sizes)
        earlier = np.where(self._by_epoch[tasks], epochs * sizes, 0)
        if self._epoch_order is None:
            return earlier + offsets
        examples = np.empty_like(offsets)
        by_epoch = np.lexsort((epochs, tasks))
        changes = np.diff(tasks[by_epoch]) | np.diff(epochs[by_epoch])
        for places in np.split(by_epoch, np.flatnonzero(changes) + 1):
            order = self._epoch_order(int(tasks[places[0]]), int(epochs[places[0]]))
            examples[places] = order[offsets[places]]
        return earlier + examples


def _epoch_orders(
    names: tuple[str, ...], sizes: tuple[int, ...], seed: int
) -> Callable[[int, int], np.ndarray]:
    # Two a task: a window of the stream may reach from one epoch into the next.
    @functools.lru_cache(maxsize=2 * len(names))
    def epoch_order(task: int, epoch: int) -> np.ndarray:
        return permutation(sizes[task], seed, "epoch", names[task], epoch)

    return epoch_order


def _bits(*key: int | str) -> np.random.Philox:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))
