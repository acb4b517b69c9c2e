"""From a task or mixture name to the SeqIO tasks behind it, checked against the model.

A name may be SeqIO's (registered when the user's module is imported) or the project's own (in
`promot_t5x.tasks`, built for the model's vocabulary when asked for). A mixture is flattened
into its tasks with their effective rates; the order in which it lists them numbers the prompts.
"""

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from promot_t5x.data import prepared, slices, vocabularies
from promot_t5x.data.fingerprint import vocabulary_identity
from promot_t5x.data.lazy import PREPARE_TFDS, import_seqio
from promot_t5x.errors import UserError, did_you_mean, listed
from promot_t5x.tasks.dialects import PLAIN, Dialect
from promot_t5x.tasks.format import DEFAULT, Format

_NAMES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class BoundTask:
    """A SeqIO task as one member of the mixture that a run trains on.

    Attributes:
        name: the task's name.
        task: the `seqio.Task`.
        rate: its share of the mixture, all shares summing to 1.
        prompt_index: the number of its prompt, 0 for the mixture's first task.
        splits: names of the splits that it has.
        scored_split: the split that is scored where none is named.
        definition: the `tasks.registry.TaskDef` that it was built from, if it is no SeqIO task.

    """

    name: str
    task: Any
    rate: float = 1.0
    prompt_index: int = 0
    splits: tuple[str, ...]
    scored_split: str = "validation"
    definition: Any = None

    def check_split(self, split: str) -> None:
        """Raise `UserError` unless this is one of the task's splits, or a slice of one."""
        name = slices.parse(split).name
        if name not in self.splits:
            raise UserError(
                f"Task {self.name!r} has no split {split!r}; it has "
                f"{', '.join(repr(name) for name in self.splits)}."
                f"{did_you_mean(name, self.splits)}"
            )
        if self.task is not None:
            prepared.check(self.name, self.task.source, name)

    def num_input_examples(self, split: str) -> int | None:
        """Raw examples of the split before preprocessing, or None if the source cannot tell."""
        try:
            count = self.task.num_input_examples(slices.parse(split).name)
        except (KeyError, ValueError):
            return None
        if not count or not math.isfinite(count):
            return None
        start, stop = slices.parse(split).bounds(int(count))
        return stop - start


def resolve_tasks(
    name: str,
    vocabulary: Any,
    *,
    module: str | None = None,
    split: str | None = None,
    rates: Mapping[str, float] | None = None,
    dialect: Dialect = PLAIN,
    task_format: Format = DEFAULT,
) -> tuple[BoundTask, ...]:
    """Return the tasks behind a task or mixture name, in the order that numbers their prompts.

    Args:
        name: MIXTURE_OR_TASK_NAME.
        vocabulary: the model's `seqio.Vocabulary`; the tasks must tokenize with an equal one.
        module: MIXTURE_OR_TASK_MODULE, imported first: a dotted name or a path to a .py file.
        split: if given, every task must have it.
        rates: rates of some of the mixture's tasks, in place of the mixture's own.
        dialect: how the model is asked; a task of SeqIO's registry is left as it is.
        task_format: likewise, how prompts are put together.

    Raises `UserError` for a module that fails to import, an unknown name, another vocabulary
    than the model's or one without the dialect's sentinels, rates that are not positive or of
    tasks that the mixture does not have, and a missing split.

    """
    if module:
        import_task_module(module)
    vocabularies.check(vocabulary)
    members = _rated(list(_members(name, vocabulary, dialect, task_format)), name, rates or {})
    for member in members:
        _check_rate(member, name)
        _check_vocabulary(member.task, vocabulary)
    total = sum(member.rate for member in members)
    bound = tuple(
        BoundTask(
            name=member.task.name,
            task=member.task,
            rate=member.rate / total,
            prompt_index=index,
            splits=member.splits,
            scored_split=member.definition.scored_split if member.definition else "validation",
            definition=member.definition,
        )
        for index, member in enumerate(members)
    )
    if split is not None:
        for task in bound:
            task.check_split(split)
    return bound


def check_names(names: Sequence[str], module: str | None) -> None:
    """Raise `UserError` for a name of which nothing registers a task or mixture.

    **Arguments:**

    - `names`: of tasks and mixtures.
    - `module`: the user's module, imported first.
    """
    from promot_t5x.tasks import registry

    if module:
        import_task_module(module)
    # Without it nobody has registered a task with SeqIO.
    seqio = sys.modules.get("seqio")
    theirs = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()} if seqio else set()
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"MIXTURE_OR_TASK_NAME = {name!r} is no name: give it in quotes.")
        if not (registry.is_task(name) or registry.is_mixture(name) or name in theirs):
            raise _unknown(name, {*theirs, *registry.names()})


def import_task_module(module: str) -> ModuleType:
    """Import the user's module, whose import registers SeqIO tasks; raise `UserError` if it fails.

    A dotted name is looked up from the working directory too, as `python -m` would. A file is
    imported once: naming it again gives the module that it made.
    """
    # SeqIO first, so that TensorFlow is set up here and not by the user's own import.
    import_seqio()
    try:
        if module.endswith(".py"):
            return _import_file(Path(module).resolve())
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        return importlib.import_module(module)
    # Whatever the user's module raises, the name of that module is what helps.
    except Exception as error:
        raise UserError(
            f"Importing MIXTURE_OR_TASK_MODULE {module!r} failed with "
            f"{type(error).__name__}: {error}. Give a dotted module name that Python can import "
            f"from {os.getcwd()!r}, or the path of a .py file."
        ) from error


def _import_file(path: Path) -> ModuleType:
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if loaded is not None:
        raise ImportError(
            f"a module named {path.stem!r} is loaded already, from {loaded.__file__}: rename the "
            "file"
        )
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded as Python source")
    made = importlib.util.module_from_spec(spec)
    # Registered before it runs, as import does, so that its classes and dataclasses work.
    sys.modules[path.stem] = made
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return made


class _Member(NamedTuple):
    task: Any
    rate: float
    splits: tuple[str, ...]
    definition: Any = None


def _rated(members: list[_Member], mixture: str, rates: Mapping[str, float]) -> list[_Member]:
    names = [member.task.name for member in members]
    for name in rates:
        if name not in names:
            raise UserError(
                f"RATES has a rate of {name!r}, which is no task of {mixture!r} "
                f"({', '.join(names)}).{did_you_mean(name, names)}"
            )
    return [
        member._replace(rate=float(rates.get(member.task.name, member.rate))) for member in members
    ]


def _members(
    name: str, vocabulary: Any, dialect: Dialect, task_format: Format
) -> Iterator[_Member]:
    seqio = import_seqio()
    registry = importlib.import_module("promot_t5x.tasks.registry")
    theirs = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    is_task, is_mixture = registry.is_task(name), registry.is_mixture(name)
    if name in theirs and (is_task or is_mixture):
        raise UserError(
            f"{name!r} names a task of the imported module and one of this project: give yours "
            "another name."
        )
    if is_task or is_mixture:
        rates = {name: 1.0} if is_task else registry.get_mixture(name).rates
        for task, rate in rates.items():
            definition = registry.get_task(task)
            built = definition.build(vocabulary, dialect, task_format)
            yield _Member(built, float(rate), tuple(definition.splits), definition)
    elif name in seqio.MixtureRegistry.names():
        yield from _mixture_members(seqio.MixtureRegistry.get(name))
    elif name in theirs:
        task = seqio.TaskRegistry.get(name)
        yield _Member(task, 1.0, _splits(task))
    else:
        raise _unknown(name, {*theirs, *registry.names()})


def _mixture_members(mixture: Any) -> Iterator[_Member]:
    tasks = {task.name: task for task in mixture.tasks}
    for name in dict.fromkeys(_leaf_names(mixture, tasks)):
        task = tasks[name]
        # SeqIO's own arithmetic: a nested mixture's rate is divided among its tasks, and the
        # rates of a task that is reached on several ways are added.
        yield _Member(task, _rate(mixture, task), _splits(task))


def _rate(mixture: Any, task: Any) -> float:
    # A rate may be any function of the user's; SeqIO's own ask the source how many examples it has.
    try:
        return float(mixture.get_rate(task))
    except Exception as error:
        raise UserError(
            f"The rate of task {task.name!r} in mixture {mixture.name!r} cannot be computed: "
            f"{type(error).__name__}: {error}. A rate by size needs a source that says how many "
            "examples each split has (num_input_examples of the source), or give the rate as a "
            "number, there or in RATES."
        ) from error


def _leaf_names(mixture: Any, tasks: dict[str, Any]) -> Iterator[str]:
    registered = import_seqio().MixtureRegistry
    for name in mixture.rate_per_task_name:
        if name in tasks:
            yield name
        elif name in registered.names():
            yield from _leaf_names(registered.get(name), tasks)
    # The members of a mixture that was nested without being registered come last, by name.
    yield from tasks


def _unknown(name: str, known: set[str]) -> UserError:
    names = listed(sorted(known), _NAMES_SHOWN)
    return UserError(
        f"No task or mixture is named {name!r} (MIXTURE_OR_TASK_NAME)."
        f"{did_you_mean(name, known)} Known names: {names}. A task of your own needs "
        "MIXTURE_OR_TASK_MODULE, the module that registers it."
    )


def _check_rate(member: _Member, mixture: str) -> None:
    if not (member.rate > 0 and math.isfinite(member.rate)):
        raise UserError(
            f"Task {member.task.name!r} has rate {member.rate} in mixture {mixture!r}: rates must "
            "be positive, so leave the task out of the mixture if it is not to be used."
        )


def _check_vocabulary(task: Any, vocabulary: Any) -> None:
    wanted = vocabulary_identity(vocabulary)
    for feature in ("inputs", "targets"):
        if feature not in task.output_features:
            raise UserError(
                f"Task {task.name!r} has no output feature {feature!r}, only "
                f"{sorted(task.output_features)}: an encoder-decoder model needs both."
            )
        found = task.output_features[feature].vocabulary
        if vocabulary_identity(found) != wanted:
            raise UserError(
                f"Task {task.name!r} tokenizes {feature!r} with {_describe(found)}, but the "
                f"model's vocabulary is {_describe(vocabulary)}. Register the task with the "
                "model's vocabulary, or set VOCABULARY to the task's."
            )


def _describe(vocabulary: Any) -> str:
    file = getattr(vocabulary, "sentencepiece_model_file", None)
    origin = f", {file}" if file else ""
    return f"{type(vocabulary).__name__} (size {vocabulary.vocab_size}{origin})"


def _splits(task: Any) -> tuple[str, ...]:
    try:
        return tuple(str(split) for split in task.splits)
    # Sources fail here in their own ways: a data set not prepared, no network, a missing file.
    except Exception as error:
        raise UserError(
            f"The splits of task {task.name!r} cannot be listed: {type(error).__name__}: {error}. "
            f"{PREPARE_TFDS}"
        ) from error
