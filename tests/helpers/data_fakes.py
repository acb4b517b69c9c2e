"""Example stores and bound tasks made of plain numbers, for tests that need no TensorFlow."""

import numpy as np

from promot_t5x.data.example_store import ExampleStore
from promot_t5x.data.sources import BoundTask

EOS = 1
VOCAB_SIZE = 100_000


def store_of(name: str, examples: list[tuple[list[int], list[int]]]) -> ExampleStore:
    """A store of (inputs, targets) token lists."""
    features = dict(zip(("inputs", "targets"), zip(*examples, strict=True), strict=True))
    return ExampleStore(
        name=name,
        tokens={key: _flat(lists) for key, lists in features.items()},
        offsets={key: np.cumsum([0, *map(len, lists)]) for key, lists in features.items()},
        eos_ids=dict.fromkeys(features, EOS),
        max_token=max(max(map(max, filter(None, lists)), default=0) for lists in features.values()),
        content_hash="",
    )


def random_store(
    name: str, count: int, *, inputs: tuple[int, int], targets: tuple[int, int], seed: int = 0
) -> ExampleStore:
    """A store of examples that all differ, with lengths drawn from the (least, most) given."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        sides = []
        for least, most in (inputs, targets):
            body = rng.integers(2, 1000, rng.integers(least, most + 1) - 1).tolist()
            sides.append([*body, EOS])
        # The example's own number in front tells every example from every other.
        sides[0][0] = 1000 + index
        examples.append((sides[0], sides[1]))
    return store_of(name, examples)


def bound(name: str, rate: float = 1.0, prompt_index: int = 0) -> BoundTask:
    """A bound task for stores made here; there is no SeqIO task in it."""
    return BoundTask(name=name, task=None, rate=rate, prompt_index=prompt_index, splits=("train",))


def segments_of(batch: dict[str, np.ndarray]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every (inputs, targets) in a batch, packed or not, read back from its arrays."""
    found = []
    encoder, decoder = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    unpacked = {"encoder": (encoder > 0).astype(int), "decoder": (decoder > 0).astype(int)}
    ids = {side: batch.get(f"{side}_segment_ids", unpacked[side]) for side in unpacked}
    for row in range(len(encoder)):
        for number in range(1, ids["encoder"][row].max(initial=0) + 1):
            inputs = encoder[row][ids["encoder"][row] == number]
            targets = decoder[row][ids["decoder"][row] == number]
            found.append((tuple(inputs.tolist()), tuple(targets.tolist())))
    return found


def _flat(lists) -> np.ndarray:
    return np.asarray([token for tokens in lists for token in tokens], np.int32)
