"""Rows of examples as the arrays that the model eats, prompts and trimming included.

The features are T5X's (`seqio.EncDecFeatureConverter`): int32 arrays [rows, length], 0 where
nothing stands. A prompt is virtual tokens: task k's vector j has the id
`vocab_size + k * prompt_length + j`, and these ids stand in front of every example's inputs,
inside its segment, before rows are packed.

Where the decoder has no token of its own to begin with, it begins with the last one of the inputs,
which the encoder's tokens then lack: a decoder-only network's targets go on where inputs end.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, Int64

from promot_t5x.data.batch_rows import Shape
from promot_t5x.data.example_store import Store
from promot_t5x.data.ragged import FEATURES, Ragged, joined_texts, spans
from promot_t5x.errors import UserError

Batch = dict[str, Int32[np.ndarray, "batch length"]]

_UNPACKED = (
    ("encoder_input_tokens", "inputs"),
    ("decoder_target_tokens", "targets"),
    ("decoder_input_tokens", "targets"),
    ("decoder_loss_weights", "targets"),
)
_PACKED = (
    ("encoder_segment_ids", "inputs"),
    ("decoder_segment_ids", "targets"),
    ("encoder_positions", "inputs"),
    ("decoder_positions", "targets"),
)


def batch_shapes(
    shape: Shape, *, packed: bool, start_id: int | None = 0
) -> dict[str, tuple[int, int]]:
    """Shape of every feature of a batch, all int32; `start_id` is the model's."""
    features = _UNPACKED + (_PACKED if packed or start_id is None else ())
    return {name: (shape.rows, getattr(shape, feature)) for name, feature in features}


class Segments(NamedTuple):
    """Examples that stand in some rows, in the order of the rows.

    `number` is 1 for the first example of a row, 2 for the second, and so on.
    """

    tasks: Int64[np.ndarray, " examples"]
    examples: Int64[np.ndarray, " examples"]
    rows: Int64[np.ndarray, " examples"]
    numbers: Int64[np.ndarray, " examples"]


class Assembler:
    """Knows how long each example is in this run, and writes examples into rows."""

    def __init__(
        self,
        *,
        stores: Sequence[Store],
        prompt_indices: Sequence[int],
        lengths: Mapping[str, int],
        vocab_size: int,
        prompt_length: int,
        use_prompts: bool,
        start_id: int | None,
    ):
        """See `batches.Batches` for the arguments and the errors."""
        self.lengths = _checked_lengths(lengths)
        self._start_id = start_id
        self._stores = tuple(stores)
        self._prompt_length = prompt_length if use_prompts else 0
        self._prompt_starts = vocab_size + np.asarray(prompt_indices, np.int64) * prompt_length
        self._text_lengths = _text_lengths(self.lengths, self._prompt_length)
        for store in self._stores:
            _check_tokens(store.name, store.max_token, vocab_size)
            if start_id is None and not self._prompt_length:
                _check_inputs(store.name, store.lengths(store.sample)["inputs"])
        self._vocab_size = vocab_size
        self.trimmed = {
            store.name: {
                name: int((lengths > self._text_lengths[name]).sum())
                for name, lengths in store.lengths(store.sample).items()
            }
            for store in self._stores
        }

    def sizes(
        self, tasks: Int64[np.ndarray, " examples"], examples: Int64[np.ndarray, " examples"]
    ) -> Int64[np.ndarray, "examples features"]:
        """Tokens that each example takes in a row: inputs with their prompt, and targets."""
        full = np.empty((len(tasks), len(FEATURES)), np.int64)
        for task, chosen in self._by_task(tasks):
            lengths = self._stores[task].lengths(examples[chosen])
            full[chosen] = np.stack([lengths[name] for name in FEATURES], axis=1)
        limits = np.array([self._text_lengths[name] for name in FEATURES])
        return np.minimum(full, limits) + np.array([self._prompt_length, 0])  # type: ignore[no-any-return]

    def mean_sizes(self, rates: Sequence[float]) -> tuple[float, float]:
        """Mean of `sizes` over the stores' samples, the tasks weighted by their rates."""
        means = np.zeros(2)
        for task, rate in enumerate(rates):
            sample = self._stores[task].sample
            means += rate / sum(rates) * self.sizes(np.full(len(sample), task), sample).mean(axis=0)
        return float(means[0]), float(means[1])

    def assemble(self, segments: Segments, shape: Shape, *, packed: bool) -> Batch:
        """Return the features of rows of that shape; a row without segments is all zeros."""
        texts = self._texts(segments)
        asked = self._behind_prompts(texts["inputs"], segments)
        begin: np.ndarray | int
        if self._start_id is None:
            asked, begin = self._without_last(asked, segments)
        else:
            begin = self._start_id
        inputs = _Layout(segments, asked.lengths, shape.rows, shape.inputs)
        targets = _Layout(segments, texts["targets"].lengths, shape.rows, shape.targets)
        encoder = inputs.empty()
        _write(encoder, inputs.starts, asked)
        decoder = targets.empty()
        _write(decoder, targets.starts, texts["targets"])
        batch = {
            "encoder_input_tokens": inputs.shaped(encoder),
            "decoder_target_tokens": targets.shaped(decoder),
            "decoder_input_tokens": _shifted(decoder, targets, packed, begin),
            # By where tokens stand, not by their ids: a target of id 0 is learned like any other.
            "decoder_loss_weights": targets.shaped(targets.spread(np.ones_like(targets.sizes))),
        }
        if packed or self._start_id is None:
            for side, layout in (("encoder", inputs), ("decoder", targets)):
                batch[f"{side}_segment_ids"] = layout.shaped(layout.spread(segments.numbers))
                batch[f"{side}_positions"] = layout.shaped(layout.positions())
        return batch

    def _by_task(
        self, tasks: Int64[np.ndarray, " examples"]
    ) -> Iterator[tuple[int, Int64[np.ndarray, " chosen"]]]:
        """Each task that occurs, and the places at which it does."""
        for task in np.unique(tasks):
            yield int(task), np.flatnonzero(tasks == task)

    def _texts(self, segments: Segments) -> dict[str, Ragged]:
        """Return the trimmed text of each example, which ends in EOS if the whole text does."""
        parts = {name: [] for name in FEATURES}  # type: ignore[var-annotated]
        order = []
        for task, chosen in self._by_task(segments.tasks):
            store = self._stores[task]
            order.append(chosen)
            for name, text in store.texts(segments.examples[chosen]).items():
                _check_tokens(store.name, int(text.tokens.max(initial=0)), self._vocab_size)
                parts[name].append(_trimmed(text, self._text_lengths[name], store.eos_ids[name]))
        return {name: _in_order(parts[name], order) for name in FEATURES}

    def _behind_prompts(self, texts: Ragged, segments: Segments) -> Ragged:
        """Put each example's prompt in front of its text."""
        if not self._prompt_length:
            return texts
        vector = np.arange(self._prompt_length)
        found = Ragged(np.empty(0, np.int32), texts.lengths + self._prompt_length)
        tokens = np.empty(found.lengths.sum(), np.int32)
        ids = self._prompt_starts[segments.tasks][:, None] + vector
        tokens[found.starts[:, None] + vector] = ids
        _write(tokens, found.starts + self._prompt_length, texts)
        return found._replace(tokens=tokens)

    def _without_last(
        self, texts: Ragged, segments: Segments
    ) -> tuple[Ragged, Int32[np.ndarray, " examples"]]:
        """Take the last token of each."""
        for task, chosen in self._by_task(segments.tasks):
            _check_inputs(self._stores[task].name, texts.lengths[chosen])
        ends = np.cumsum(texts.lengths) - 1
        return Ragged(np.delete(texts.tokens, ends), texts.lengths - 1), texts.tokens[ends]


class _Layout:
    """Where the examples' tokens stand in one feature's rows, flattened."""

    def __init__(self, segments: Segments, sizes: np.ndarray, rows: int, length: int):
        before = np.cumsum(sizes) - sizes
        is_first = segments.numbers == 1
        row_starts = np.zeros(rows, np.int64)
        row_starts[segments.rows[is_first]] = before[is_first]
        self.sizes = sizes
        self.starts = segments.rows * length + before - row_starts[segments.rows]
        self._shape = (rows, length)

    def empty(self) -> Int32[np.ndarray, " tokens"]:
        return np.zeros(self._shape[0] * self._shape[1], np.int32)

    def shaped(self, flat: np.ndarray) -> Int32[np.ndarray, "rows length"]:
        return flat.reshape(self._shape)

    def spread(self, values: np.ndarray) -> Int32[np.ndarray, " tokens"]:
        """One value of each example, at all its tokens."""
        flat = self.empty()
        flat[spans(self.starts, self.sizes)] = np.repeat(values, self.sizes)
        return flat

    def positions(self) -> Int32[np.ndarray, " tokens"]:
        """0, 1, 2, ... from each example's first token."""
        flat = self.empty()
        flat[spans(self.starts, self.sizes)] = spans(np.zeros_like(self.sizes), self.sizes)
        return flat


def _shifted(
    flat: np.ndarray, layout: _Layout, packed: bool, begin: np.ndarray | int
) -> np.ndarray:
    """Targets moved one to the right, what the decoder begins with first, as SeqIO does it."""
    rows = layout.shaped(flat)
    shifted = np.zeros_like(rows)
    shifted[:, 1:] = rows[:, :-1]
    places = shifted.reshape(-1)
    if packed:
        ends = layout.starts + layout.sizes
        boundaries = np.concatenate([layout.starts, ends])
        places[boundaries[boundaries < flat.size]] = 0
    there = layout.sizes > 0
    places[layout.starts[there]] = begin if isinstance(begin, int) else begin[there]
    return shifted


def _write(flat: Int32[np.ndarray, " tokens"], starts: np.ndarray, texts: Ragged) -> None:
    flat[spans(starts, texts.lengths)] = texts.tokens


def _trimmed(texts: Ragged, limit: int, eos_id: int | None) -> Ragged:
    starts, lengths = texts.starts, np.minimum(texts.lengths, limit)
    tokens = texts.tokens[spans(starts, lengths)]
    cut = texts.lengths > limit
    if eos_id is not None and cut.any():
        last = texts.tokens[(starts + texts.lengths - 1)[cut]]
        tokens[(np.cumsum(lengths) - 1)[cut][last == eos_id]] = eos_id
    return Ragged(tokens, lengths)


def _in_order(parts: Sequence[Ragged], places: Sequence[np.ndarray]) -> Ragged:
    """Return the texts of all parts, each at its place."""
    joined = joined_texts(parts)
    if len(parts) < 2:
        return joined
    order = np.argsort(np.concatenate(places))
    return joined.take(order)


def _checked_lengths(lengths: Mapping[str, int]) -> dict[str, int]:
    if set(lengths) != set(FEATURES) or min(lengths.values()) < 1:
        raise UserError(
            f"TASK_FEATURE_LENGTHS is {dict(lengths)}: give positive lengths of 'inputs' and "
            "'targets', and of nothing else."
        )
    return {name: int(lengths[name]) for name in FEATURES}


def _text_lengths(lengths: Mapping[str, int], prompt_length: int) -> dict[str, int]:
    if prompt_length >= lengths["inputs"]:
        raise UserError(
            f"A prompt of {prompt_length} vectors leaves no room for text in inputs of "
            f"{lengths['inputs']} tokens: TASK_FEATURE_LENGTHS['inputs'] counts the prompt, so "
            f"set it to {prompt_length} plus the length of the text."
        )
    return {"inputs": lengths["inputs"] - prompt_length, "targets": lengths["targets"]}


def _check_inputs(name: str, lengths: Int64[np.ndarray, " examples"]) -> None:
    if not lengths.all():
        raise UserError(
            f"{name} has an example without inputs, but a decoder-only model's answer goes on from "
            "their last token: set BOS_IN_INPUTS = True where the vocabulary has a BOS, or leave "
            "such examples out."
        )


def _check_tokens(name: str, token: int, vocab_size: int) -> None:
    if token >= vocab_size:
        raise UserError(
            f"{name} holds token {token}, but the model's embedding has only "
            f"{vocab_size} rows (T5Config.vocab_size): the model and the task's vocabulary do "
            "not belong together."
        )
