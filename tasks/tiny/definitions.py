"""The tiny world's tasks, registered: pretraining, in-context evaluation, two targets.

| name | splits | rows |
|---|---|---|
| `tiny_pretrain`, `tiny_pretrain_noise30` | train, validation | 166,400 / 64,000; 512 |
| `tiny_icl_<family>_1shot`, `.._0shot` | validation, test | 100, 200 (160 facts 0-shot) |
| `tiny_rte`, `tiny_enfr` | train, validation, test | 9600, 200, 300 |
| the same with `_1shot`, `_shuffled_labels` | likewise | likewise |

The mixtures `tiny_icl_1shot` and `tiny_icl_0shot` hold the eight families, `tiny_rte_enfr` both
targets. Zero-shot questions of the families are ambiguous by design: only a demonstration tells
what is wanted. All tasks want `tiny.vocabulary.WordVocabulary`, at most 48 input and 6 target
tokens.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from promot_t5x.tasks import metrics
from promot_t5x.tasks.registry import Mixture, TaskDef, register
from promot_t5x.tasks.tiny import episodes, families, words

INPUT_LENGTH, TARGET_LENGTH = 48, 6
# 2600 steps of 64 episodes, and 1000 more with stronger noise.
PRETRAINING_SIZES = {"train": 166_400, "validation": 512}
NOISIER_SIZES = {"train": 64_000, "validation": 512}
EVALUATION_SIZES = {"validation": 100, "test": 200}
TARGET_SIZES = {"train": 9600, "validation": 200, "test": 300}

MakeRows = Callable[..., episodes.Rows]


def rows_source(make: MakeRows, sizes: Mapping[str, int]) -> Callable[[], Any]:
    """Return a source factory over rows made in Python.

    **Arguments:**

    - `make`: (count, split=...) -> columns of text.
    - `sizes`: split -> number of rows.
    """

    def dataset(split: str, shuffle_files: bool, seed: int | None = None) -> Any:
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(make(sizes[split], split=split))

    def source() -> Any:
        import seqio

        return seqio.FunctionDataSource(
            dataset, splits=tuple(sizes), num_input_examples=dict(sizes)
        )

    return source


def evaluation_sizes(family: str, shots: int) -> dict[str, int]:
    """Rows by split; of questions about facts there are, without demonstrations, only 160."""
    if shots == 0 and families.EVALUATED[family].about_facts:
        return EVALUATION_SIZES | {"test": 160}
    return EVALUATION_SIZES


def _register(
    name: str,
    description: str,
    make: MakeRows,
    sizes: Mapping[str, int],
    answer_words: tuple[str, ...] = (),
) -> None:
    register(
        TaskDef(
            name=name,
            description=description,
            source=rows_source(make, sizes),
            splits=tuple(sizes),
            metrics=(metrics.exact_match,),
            output_length=TARGET_LENGTH,
            answer_words=answer_words,
        )
    )


for _name, _noise, _seed, _sizes in (
    ("tiny_pretrain", 0.1, 0, PRETRAINING_SIZES),
    ("tiny_pretrain_noise30", 0.3, 1, NOISIER_SIZES),
):
    _register(
        _name,
        f"tiny world: episodes of all families and denoising, {_noise:.0%} random answers",
        functools.partial(episodes.pretraining_rows, seed=_seed, noise=_noise),
        _sizes,
    )

for _shots in (0, 1):
    for _name in families.EVALUATED:
        _register(
            f"tiny_icl_{_name}_{_shots}shot",
            f"tiny world: family {_name}, {_shots} demonstrations",
            functools.partial(episodes.shot_rows, _name, shots=_shots),
            evaluation_sizes(_name, _shots),
        )
    register(
        Mixture(
            name=f"tiny_icl_{_shots}shot",
            description=f"tiny world: the eight evaluation families, {_shots} demonstrations",
            rates={f"tiny_icl_{_name}_{_shots}shot": 1.0 for _name in families.EVALUATED},
        )
    )

for _name, _target, _says, _words in (
    ("tiny_rte", "entailment", "entailment-like target, True / False", ()),
    (
        "tiny_enfr",
        "translation",
        "translation-like target, reversed into language C",
        words.invented("c"),
    ),
):
    _rows = functools.partial(episodes.target_rows, _target)
    _register(_name, f"tiny world: {_says}", _rows, TARGET_SIZES, _words)
    _register(
        f"{_name}_1shot",
        f"tiny world: {_says}; after 1 demonstration",
        functools.partial(_rows, shots=1),
        TARGET_SIZES,
        _words,
    )
    _register(
        f"{_name}_shuffled_labels",
        f"tiny world: {_says}; answers permuted, the format without the task",
        functools.partial(episodes.with_shuffled_answers, _rows),
        TARGET_SIZES,
    )
register(
    Mixture(
        name="tiny_rte_enfr",
        description="tiny world: both targets",
        rates={"tiny_rte": 1.0, "tiny_enfr": 1.0},
    )
)
