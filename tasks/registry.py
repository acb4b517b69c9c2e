"""Task definitions by name: what to read, how to ask, how to score. No vocabulary in them.

A `TaskDef` is data. `TaskDef.build(vocabulary)` makes a SeqIO task from it for any SeqIO
vocabulary; the task is not added to SeqIO's global registry, so one definition may be built
for several vocabularies in one process. Nothing here imports TensorFlow before that.

To add a task, write a `register(TaskDef(...))` in a module and, if it belongs to the
project, name the module in `_DEFINING_MODULES`.
"""

import dataclasses
import fnmatch
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError, did_you_mean

_DEFINING_MODULES = ("promot_t5x.tasks.targets", "promot_t5x.tasks.tiny.definitions")
_REQUIRED_FIELDS = ("id", "inputs", "targets")

# A tf.data.Dataset. TensorFlow is not imported here, so the type cannot be named.
Dataset = Any
# metric(targets, predictions) -> {metric name: percent in [0, 100]}
Metric = Callable[[Sequence[Any], Sequence[str]], dict[str, float]]


def keep(text: str) -> str:
    """The answer as it was decoded, without surrounding white space."""
    return text.strip()


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDef:
    """One task, for any vocabulary.

    Attributes:
      name: unique among tasks and mixtures; letters, digits, `_`, `.` and `:`.
      description: one line for people.
      source: makes the `seqio.DataSource`; called by `build` only.
      splits: the splits that the source has and that may be asked for.
      preprocessors: functions Dataset -> Dataset that turn the source's rows into rows with
        the string fields `inputs`, `targets` and `id` (unique within its split), and
        whatever `references` names. Other fields are passed through.
      postprocess: decoded text -> prediction.
      metrics: functions (targets, predictions) -> {name: percent}; the first name of the
        first one is the task's primary score.
      references: the string field (scalar or vector) that the metrics get as target; None
        for the text of the target itself.
      output_length: how many tokens an answer may take when decoded (EOS included).
    """

    name: str
    description: str
    source: Callable[[], Any]
    splits: tuple[str, ...]
    metrics: tuple[Metric, ...]
    output_length: int
    preprocessors: tuple[Callable[[Dataset], Dataset], ...] = ()
    postprocess: Callable[[str], str] = keep
    references: str | None = None

    def reference(self, example: Mapping[str, Any]) -> str | list[str]:
        """What the metrics compare the prediction of `example` with.

        Args:
          example: one example of the built task's data set, as numpy values; only the
            references field (by default `targets_pretokenized`) is read.
        """
        value = example[self.references or "targets_pretokenized"]
        value = value.tolist() if hasattr(value, "tolist") else value
        return [_text(v) for v in value] if isinstance(value, list) else _text(value)

    def score(self, targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
        """Every metric of the task, in percent, over references and post-processed answers."""
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores.update(metric(targets, predictions))
        return scores

    def build(self, vocabulary: Any) -> Any:
        """A `seqio.Task` of this definition, for `vocabulary` (a `seqio.Vocabulary`).

        Its examples have `inputs` and `targets` as int32 ids ending in EOS (still so when
        SeqIO trims them to a sequence length), `inputs_pretokenized` and
        `targets_pretokenized` as text, `id`, and the fields that scoring needs.
        """
        import seqio

        feature = seqio.Feature(vocabulary=vocabulary, add_eos=True)
        return seqio.Task(
            self.name,
            source=self.source(),
            output_features={"inputs": feature, "targets": feature},
            preprocessors=[
                *self.preprocessors,
                functools.partial(_check_fields, task=self.name, required=self._fields()),
                seqio.preprocessors.tokenize,
                seqio.preprocessors.append_eos_after_trim,
            ],
            postprocess_fn=functools.partial(_seqio_postprocess, task=self),
            metric_fns=list(self.metrics),
        )

    def _fields(self) -> tuple[str, ...]:
        return (*_REQUIRED_FIELDS, *([self.references] if self.references else []))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several tasks sampled in proportion to their rates.

    Attributes:
      name: unique among tasks and mixtures.
      description: one line for people.
      rates: task name -> rate > 0, in a fixed order; they need not sum to one.
    """

    name: str
    description: str
    rates: dict[str, float]

    def __post_init__(self) -> None:
        if not self.rates:
            raise UserError(f"mixture {self.name!r} has no tasks; give it at least one rate")
        for task, rate in self.rates.items():
            if not rate > 0:
                raise UserError(
                    f"mixture {self.name!r}: rate {rate!r} of task {task!r} must be above 0"
                )


_DEFINITIONS: dict[str, TaskDef | Mixture] = {}


def register(definition: TaskDef | Mixture) -> TaskDef | Mixture:
    """Make `definition` known by its name; a name can be taken only once."""
    if definition.name in _DEFINITIONS:
        raise UserError(
            f"a task or mixture {definition.name!r} is registered already; choose another name"
        )
    _DEFINITIONS[definition.name] = definition
    return definition


def names(pattern: str | None = None) -> list[str]:
    """Sorted names of all tasks and mixtures, or of those that match a glob `pattern`."""
    found = sorted(_definitions())
    return found if pattern is None else fnmatch.filter(found, pattern)


def is_task(name: str) -> bool:
    """Whether `name` is a registered task."""
    return isinstance(_definitions().get(name), TaskDef)


def is_mixture(name: str) -> bool:
    """Whether `name` is a registered mixture."""
    return isinstance(_definitions().get(name), Mixture)


def get_task(name: str) -> TaskDef:
    """The task of that name; `UserError` when there is none."""
    definition = _get(name, "task")
    if not isinstance(definition, TaskDef):
        raise UserError(
            f"{name!r} is a mixture, not a task; its tasks are {', '.join(definition.rates)}"
        )
    return definition


def get_mixture(name: str) -> Mixture:
    """The mixture of that name, its tasks checked; `UserError` when there is none."""
    definition = _get(name, "mixture")
    if not isinstance(definition, Mixture):
        raise UserError(f"{name!r} is a task, not a mixture; use it as a task")
    for task in definition.rates:
        if not is_task(task):
            raise UserError(
                f"mixture {name!r} names {task!r}, which is not a task."
                + did_you_mean(task, filter(is_task, _definitions()))
            )
    return definition


def _get(name: str, kind: str) -> TaskDef | Mixture:
    definitions = _definitions()
    if name not in definitions:
        raise UserError(f"there is no {kind} {name!r}." + did_you_mean(name, definitions))
    return definitions[name]


def _definitions() -> dict[str, TaskDef | Mixture]:
    # Here and not at import time: the defining modules import this one.
    for module in _DEFINING_MODULES:
        importlib.import_module(module)
    return _DEFINITIONS


def _check_fields(dataset: Dataset, *, task: str, required: tuple[str, ...]) -> Dataset:
    missing = [field for field in required if field not in dataset.element_spec]
    if missing:
        raise UserError(
            f"task {task!r}: its preprocessors made no field {', '.join(missing)}; they made "
            f"{', '.join(sorted(dataset.element_spec))}"
        )
    return dataset


def _seqio_postprocess(
    text: Any, example: Mapping[str, Any] | None = None, is_target: bool = False, *, task: TaskDef
) -> Any:
    if is_target and example is not None:
        return task.reference(example)
    return task.postprocess(_text(text))


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
