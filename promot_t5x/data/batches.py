"""Global batches: training batches by step number, and one pass for validation.

The batch at step k is a pure function of (tasks, settings, seed, k). There is no iterator to
save: resuming is asking for the next number, and hosts that ask for different rows of a batch
get parts of the same one, whatever their number.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from promot_t5x.data.assembly import Assembler, Batch, Segments
from promot_t5x.data.batch_rows import Shape, choose_shapes, lay
from promot_t5x.data.example_store import Store
from promot_t5x.data.order import Stream, permutation
from promot_t5x.data.packing import PackedRows, RowPlan, Windows, best_fit_decreasing
from promot_t5x.data.sources import BoundTask
from promot_t5x.errors import UserError

Rows = slice | Sequence[int] | np.ndarray
# What stands in a row: one example; as many of the stream as fit; of the batch's own.
Packing = bool | Literal["batch"]
ALL_ROWS = slice(None)

# Windows this long leave about one part-filled row in hundreds; longer ones only wait longer.
_BATCHES_A_WINDOW = 16
_LEAST_ROWS = 64
_MOST_ROWS = 2048
_EVAL_WINDOW = 8192
# Batches that stand for all where shapes are chosen: examples in all, and the fewest batches.
_EXAMPLES_SAMPLED = 2048
_BATCHES_SAMPLED = (4, 32)


class Batches:
    """Training batches of a task or a mixture, addressed by step."""

    def __init__(
        self,
        tasks: Sequence[BoundTask],
        stores: Sequence[Store],
        *,
        batch_size: int,
        lengths: Mapping[str, int],
        pack: Packing,
        row_multiple: int = 1,
        seed: int,
        shuffle: bool = True,
        vocab_size: int,
        prompt_length: int = 0,
        use_prompts: bool = False,
        start_id: int | None = 0,
    ):
        """Plan nothing yet; that happens as batches are asked for.

        Args:
            tasks: the mixture's tasks; their names, rates and prompt indices are used.
            stores: each task's examples, in the same order.
            batch_size: rows of the global batch; its examples with 'batch'.
            lengths: tokens of a row's 'inputs' (the prompt counted) and 'targets'; with 'batch'
                those of an example, and a row is as long as `shapes` say.
            pack: put as many examples into a row as fit, each with its own prompt: True those of
                the stream, 'batch' those that the batch has unpacked, into fewer rows.
            row_multiple: divides the rows of every batch, as the devices that share them need.
            seed: decides the order of the examples, the mixing and the order of packed rows.
            shuffle: False keeps the order of the source, epoch after epoch.
            vocab_size: rows of the model's embedding; prompt ids start there.
            prompt_length: vectors of a prompt.
            use_prompts: whether prompt ids are put in front of the inputs.
            start_id: what the decoder begins with, T5's is the padding's; None: the last token of
                the inputs, which goes there.

        Raises `UserError` for lengths that leave no room for text, tokens outside the
        embedding, and a batch size or prompt length that is not positive.

        """
        _check_batch_size(batch_size)
        self._contents: dict[str, dict[str, int | str]] = {
            each.name: {"examples": len(each), "content_hash": each.content_hash} for each in stores
        }
        self._assembler = _assembler(
            tasks, stores, lengths, vocab_size, prompt_length, use_prompts, start_id
        )
        self._batch_size = batch_size
        self._pack = pack
        rates = [task.rate for task in tasks]
        self._shapes: tuple[Shape, ...] = (Shape(batch_size, **self._assembler.lengths),)
        if pack == "batch":
            samples = _sampled_batches(self._assembler, tasks, stores, batch_size)
            self._shapes = choose_shapes(samples, self._shapes[0], row_multiple)
        self._stream = Stream(
            names=[task.name for task in tasks],
            sizes=[len(store) for store in stores],
            rates=rates,
            seed=seed,
            shuffle=shuffle,
            by_epoch=[store.is_redrawn for store in stores],
        )
        self._store_sizes = np.array([len(store) for store in stores])
        self._rows = PackedRows(
            sizes=self._sizes,
            windows=_windows(self._assembler, [len(store) for store in stores], rates, batch_size),
            capacity=(lengths["inputs"], lengths["targets"]),
            seed=seed,
            shuffle=shuffle,
        )

    @property
    def contents(self) -> dict[str, dict[str, int | str]]:
        """How many examples there are, and a hash of their tokens, by store name."""
        return self._contents

    @property
    def trimmed(self) -> dict[str, dict[str, int]]:
        """Examples that lose their end, by store name and feature."""
        return self._assembler.trimmed

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes that batches have, the smallest first; equal for all seeds."""
        return self._shapes

    def shape(self, step: int) -> Shape:
        """Return the shape of the global batch at `step` (from 0)."""
        return self._plan(step)[0]

    def batch(self, step: int, rows: Rows = ALL_ROWS) -> Batch:
        """Features of the global batch at `step` (from 0), or of some of its rows.

        Returns int32 arrays [rows, length] as `assembly.batch_shapes` lists them.
        """
        shape, plan = self._plan(step)
        return self._assembled(shape, plan, np.arange(shape.rows)[rows], packed=bool(self._pack))

    def content(self, step: int) -> Batch:
        """Return what the batch at `step` holds, in a form that no number of devices changes."""
        if self._pack != "batch":
            return self.batch(step)
        shape = self._shapes[-1]
        plan = _one_a_row(step * shape.rows, (step + 1) * shape.rows)
        return self._assembled(shape, plan, np.arange(shape.rows), packed=False)

    def examples(self, step: int) -> list[tuple[int, int]]:
        """Return the (task, place in its split) of each example of the batch at `step` (from 0)."""
        _, plan = self._plan(step)
        tasks, examples = self._look_up(plan.places)
        places = examples % self._store_sizes[tasks]
        return list(zip(tasks.tolist(), places.tolist(), strict=True))

    def _plan(self, step: int) -> tuple[Shape, RowPlan]:
        if step < 0:
            raise ValueError(f"step {step} is negative")
        first, end = step * self._batch_size, (step + 1) * self._batch_size
        if self._pack == "batch":
            sizes = self._sizes(first, end)
            plans = ((shape, lay(sizes, shape, first)) for shape in self._shapes)
            return next((shape, plan) for shape, plan in plans if plan is not None)
        whole = self._shapes[-1]
        return whole, self._rows.rows(first, end) if self._pack else _one_a_row(first, end)

    def _assembled(self, shape: Shape, plan: RowPlan, chosen: np.ndarray, *, packed: bool) -> Batch:
        places, rows_of, numbers = _standing_in(plan, chosen)
        segments = Segments(*self._look_up(places), rows_of, numbers)
        shape = shape._replace(rows=len(chosen))
        return self._assembler.assemble(segments, shape, packed=packed)

    def _look_up(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(places):
            return places, places
        first, last = int(places.min()), int(places.max())
        tasks, examples = self._stream.examples(first, last + 1)
        return tasks[places - first], examples[places - first]

    def _sizes(self, start: int, stop: int) -> np.ndarray:
        return self._assembler.sizes(*self._stream.examples(start, stop))


class EvalBatches:
    """One pass over the examples in the order of tasks and sources, for teacher-forced loss.

    Every example stands in exactly one row; rows that fill up the last batch are all zeros, so
    that they weigh nothing in a loss.
    """

    def __init__(
        self,
        tasks: Sequence[BoundTask],
        stores: Sequence[Store],
        *,
        batch_size: int,
        lengths: Mapping[str, int],
        pack: bool = False,
        vocab_size: int,
        prompt_length: int = 0,
        use_prompts: bool = False,
        start_id: int | None = 0,
        limit: int | None = None,
        seed: int | None = None,
    ):
        """Arguments and errors are those of `Batches`, but for these.

        **Arguments:**

        - `limit`: so many examples of each task, the first ones.
        - `seed`: draws them instead, the same ones of tasks that are equally large.
        """
        _check_batch_size(batch_size)
        self._assembler = _assembler(
            tasks, stores, lengths, vocab_size, prompt_length, use_prompts, start_id
        )
        self._batch_size = batch_size
        self._pack = pack
        counts = [min(len(store), limit or len(store)) for store in stores]
        self._tasks = np.repeat(np.arange(len(counts)), counts)
        orders = (_order(len(store), seed) for store in stores)
        self._examples = np.concatenate(
            [order[:count] for order, count in zip(orders, counts, strict=True)]
        )
        self._shape = Shape(batch_size, **self._assembler.lengths)
        self._plan = self._packed() if pack else _one_a_row(0, len(self._tasks))

    @property
    def num_examples(self) -> int:
        """Examples in the pass."""
        return len(self._tasks)

    @property
    def num_batches(self) -> int:
        """Batches in the pass, the last one filled up."""
        return math.ceil(len(self._plan) / self._batch_size)

    @property
    def trimmed(self) -> dict[str, dict[str, int]]:
        """Examples that lose their end, by store name and feature."""
        return self._assembler.trimmed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(self.num_batches))

    def batch(self, index: int, rows: Rows = ALL_ROWS) -> Batch:
        """Batch number `index` of the pass, or some of its rows."""
        if not 0 <= index < self.num_batches:
            raise IndexError(f"batch {index} of a pass of {self.num_batches}")
        chosen = np.arange(self._batch_size)[rows]
        first = index * self._batch_size
        plan = self._plan.take(first, min(first + self._batch_size, len(self._plan)))
        places, rows_of, numbers = _standing_in(plan, chosen)
        segments = Segments(self._tasks[places], self._examples[places], rows_of, numbers)
        shape = self._shape._replace(rows=len(chosen))
        return self._assembler.assemble(segments, shape, packed=self._pack)

    def _packed(self) -> RowPlan:
        sizes = self._assembler.sizes(self._tasks, self._examples)
        # Where answers are given more room than questions fill, targets would end rows too soon.
        inputs, targets = np.maximum(sizes.mean(axis=0), 1)
        room = self._shape.inputs / inputs * targets
        longest = self._shape.targets
        self._shape = self._shape._replace(targets=longest * max(1, math.ceil(room / longest)))
        rows, opened = [], 0
        for start in range(0, len(sizes), _EVAL_WINDOW):
            window = sizes[start : start + _EVAL_WINDOW]
            rows.append(opened + best_fit_decreasing(window, self._shape[1:]))
            opened = int(rows[-1].max()) + 1
        return RowPlan.of_rows(np.concatenate(rows))


def _order(size: int, seed: int | None) -> np.ndarray:
    return np.arange(size) if seed is None else permutation(size, seed, "pass")


def counts(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `statistics` counts, integers; of arrays on devices, whole ones, likewise there.

    `examples/{encoder,decoder}`, `real_tokens/{encoder,decoder}`, `loss_weights`.
    """
    counted = {"loss_weights": batch["decoder_loss_weights"].sum()}
    for side, ids in _tokens(batch).items():
        segments = batch.get(f"{side}_segment_ids")
        real = ids > 0 if segments is None else segments > 0
        examples = real.any(axis=1) if segments is None else segments.max(axis=1)
        counted[f"examples/{side}"] = examples.sum()
        counted[f"real_tokens/{side}"] = real.sum()
    return counted


def statistics(
    batch: Mapping[str, Any], counted: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """How full a batch is, under T5X's metric names; a prompt's virtual tokens are real ones.

    `non_padding_fraction/{encoder,decoder,overall,loss_weights}` in [0, 1];
    `effective_batch_size/{encoder,decoder}`: examples in the batch;
    `real_tokens/{encoder,decoder}`: tokens that are not padding.

    Args:
        batch: arrays, or their shapes only where `counted` is given.
        counted: its `counts`, if they are known.

    """
    found = {name: float(n) for name, n in (counted or counts(batch)).items()}
    sizes = {side: math.prod(ids.shape) for side, ids in _tokens(batch).items()}
    real = {side: found[f"real_tokens/{side}"] for side in sizes}
    weights = math.prod(batch["decoder_loss_weights"].shape)
    return {
        **{f"non_padding_fraction/{side}": real[side] / size for side, size in sizes.items()},
        **{f"effective_batch_size/{side}": found[f"examples/{side}"] for side in sizes},
        **{f"real_tokens/{side}": real[side] for side in sizes},
        "non_padding_fraction/overall": sum(real.values()) / sum(sizes.values()),
        "non_padding_fraction/loss_weights": found["loss_weights"] / weights,
    }


def _tokens(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "encoder": batch["encoder_input_tokens"],
        "decoder": batch["decoder_target_tokens"],
    }


def _assembler(
    tasks: Sequence[BoundTask],
    stores: Sequence[Store],
    lengths: Mapping[str, int],
    vocab_size: int,
    prompt_length: int,
    use_prompts: bool,
    start_id: int | None,
) -> Assembler:
    if len(tasks) != len(stores) or not tasks:
        raise ValueError(f"{len(tasks)} tasks and {len(stores)} stores")
    if use_prompts and prompt_length < 1:
        raise UserError(
            f"The prompt's length is {prompt_length}: a run with a prompt needs at least 1 vector "
            "(PROMPT_LENGTH)."
        )
    return Assembler(
        stores=stores,
        prompt_indices=[task.prompt_index for task in tasks],
        lengths=lengths,
        vocab_size=vocab_size,
        prompt_length=prompt_length,
        use_prompts=use_prompts,
        start_id=start_id,
    )


def _windows(
    assembler: Assembler, counts: Sequence[int], rates: Sequence[float], batch_size: int
) -> Windows:
    """Windows of some hundred rows; of a single task, whole epochs divided equally."""
    means = zip(assembler.mean_sizes(rates), assembler.lengths.values(), strict=True)
    per_row = min(length / max(mean, 1.0) for mean, length in means)
    rows = min(max(_BATCHES_A_WINDOW * batch_size, _LEAST_ROWS), _MOST_ROWS)
    wanted = math.ceil(rows * per_row)
    if len(counts) > 1:
        return Windows(period=wanted, per_period=1)
    epochs = math.ceil(_LEAST_ROWS * per_row / counts[0])
    period = epochs * counts[0]
    return Windows(period=period, per_period=math.ceil(period / wanted))


def _one_a_row(start: int, stop: int) -> RowPlan:
    return RowPlan(np.arange(start, stop), np.arange(stop - start + 1))


def _sampled_batches(
    assembler: Assembler, tasks: Sequence[BoundTask], stores: Sequence[Store], batch_size: int
) -> list[np.ndarray]:
    """Sizes of the examples of some batches, drawn from the stores' samples, the same each time."""
    samples = [store.sample for store in stores]
    stream = Stream(
        names=[task.name for task in tasks],
        sizes=[len(sample) for sample in samples],
        rates=[task.rate for task in tasks],
        seed=0,
    )
    least, most = _BATCHES_SAMPLED
    count = min(max(_EXAMPLES_SAMPLED // batch_size, least), most)
    of, places = stream.examples(0, count * batch_size)
    examples = np.empty_like(places)
    for task, sample in enumerate(samples):
        examples[of == task] = sample[places[of == task]]
    return np.split(assembler.sizes(of, examples), count)


def _standing_in(plan: RowPlan, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the chosen rows of a plan, the index in `rows` and the segment of each.

    Rows after the plan's last one are empty.
    """
    starts = plan.starts[np.minimum(rows, len(plan))]
    counts = plan.starts[np.minimum(rows + 1, len(plan))] - starts
    index = np.repeat(np.arange(len(rows)), counts)
    within = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return plan.places[starts[index] + within], index, within + 1


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"BATCH_SIZE is {batch_size}: a batch needs at least one row.")
