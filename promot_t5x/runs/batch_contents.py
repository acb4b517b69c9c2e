"""What the data of a stage hold: how much, what was cut, and which examples a batch has."""

import itertools
from collections.abc import Mapping, Sequence

from promot_t5x.data import example_store, sources, tokenization
from promot_t5x.data.batches import Batches
from promot_t5x.runs.stages import DatasetConfig

_SEARCHED = 100_000  # examples of a split that are read again to find ids


def describe(
    task: sources.BoundTask,
    split: str,
    examples: example_store.Store,
    trimmed: Mapping[str, int],
) -> str:
    """Return how many examples a store holds, and how many lost what.

    **Arguments:**

    - `trimmed`: by feature, how many lose their end in this run.
    """
    rows = task.num_input_examples(split)
    truncation_counts = {
        "rows left out": max(0, (rows or 0) - len(examples)),
        **examples.truncation_counts,
        **{f"{feature} cut": count for feature, count in trimmed.items()},
    }
    said = ", ".join(f"{what}: {count:,}" for what, count in truncation_counts.items() if count)
    return f"{examples.name}, {len(examples):,} examples" + (f" ({said})" if said else "")


def names(
    data: Batches,
    tasks: Sequence[sources.BoundTask],
    dataset: DatasetConfig,
    stores: Sequence[example_store.Store],
    step: int,
) -> list[str]:
    """Return the examples of the batch that a step trained on, by their ids.

    Ids are read again from the source, because the token store does without them; an example
    without one, or too far down its split, is named by its place, counted from 0.

    **Arguments:**

    - `step`: from 1 on, as a run's lines and files count.
    """
    places = data.examples(step - 1)
    found = {
        index: _ids(tasks[index], dataset, {place for task, place in places if task == index})
        for index in {task for task, _ in places}
    }
    return [f"{stores[task].name} {found[task].get(place, place)}" for task, place in places]


def _ids(task: sources.BoundTask, dataset: DatasetConfig, places: set[int]) -> dict[int, str]:
    if max(places) >= _SEARCHED:
        return {}
    lengths = dataset.task_feature_lengths
    rows = tokenization.examples(
        task.task,
        dataset.split,
        lengths if tokenization.depends_on_lengths(task.task) else None,
    ).as_numpy_iterator()
    ids = {}
    for place, row in enumerate(itertools.islice(rows, max(places) + 1)):
        key = next((key for key in ("id", "idx") if key in row), None)
        if place in places and key is not None:
            value = row[key]
            ids[place] = value.decode("utf-8") if isinstance(value, bytes) else str(value)
    return ids
