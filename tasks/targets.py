"""The tasks that are fine-tuned on: real data sets, read with TensorFlow Datasets.

Class labels follow the data set's own order (RTE: 0 entailment, 1 not_entailment).
"""

from collections.abc import Callable, Mapping
from typing import Any

from promot_t5x.tasks import metrics, templates
from promot_t5x.tasks.registry import TaskDef, register

TRUE_FALSE = ("True", "False")


def tfds(name: str, splits: Mapping[str, str]) -> Callable[[], Any]:
    """A source factory for TFDS builder `name` (`data_set/config:version`).

    Args:
      name: the builder, with its version.
      splits: split of the task -> split or slice of the data set.
    """

    def source() -> Any:
        import seqio

        return seqio.TfdsDataSource(tfds_name=name, splits=dict(splits))

    return source


RTE_SPLITS = {"train": "train", "validation": "validation"}

register(
    TaskDef(
        name="rte",
        description="RTE (SuperGLUE): does the premise entail the hypothesis? True / False",
        source=tfds("super_glue/rte:1.0.2", RTE_SPLITS),
        splits=tuple(RTE_SPLITS),
        preprocessors=(
            templates.render(
                templates.RTE,
                templates.Choice(field="label", words=TRUE_FALSE),
                example_id="{idx}",
            ),
        ),
        postprocess=metrics.first_word,
        metrics=(metrics.accuracy, metrics.unmatched(TRUE_FALSE)),
        output_length=8,
    )
)
