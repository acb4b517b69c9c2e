"""How `promot-t5x tasks show`, `stats` and `check` ask: as a model would be, or in plain text.

A model's gin file gives its vocabulary, its dialect and its format. Without one, text is neither
cut nor counted in tokens: the tasks are built on bytes, which any text has, and lengths are said
in words.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from promot_t5x import quiet
from promot_t5x.data import sources
from promot_t5x.data.lazy import import_seqio
from promot_t5x.data.questions import Question, read_questions
from promot_t5x.errors import UserError
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.format import Format

# Tokens, where nothing is to be cut.
_UNLIMITED = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """What the questions of a task depend on besides the task.

    Attributes:
        vocabulary: a `seqio.Vocabulary`.
        dialect, format: the model's, or plain ones.
        token_budget: tokens that a question may take.
        unit: what `length` counts: "tokens" of the vocabulary or "words".

    """

    vocabulary: Any
    dialect: Dialect
    format: Format
    token_budget: int
    unit: str

    def tasks(self, name: str, *, shots: int | None, module: str | None) -> Sequence[Any]:
        """Return the `BoundTask`s behind a name, with another number of demonstrations."""
        if module:
            sources.import_task_module(module)
        name = _with_shots(name, shots)
        own = None if self.unit == "tokens" else _seqio_vocabulary(name)
        return sources.resolve_tasks(
            name,
            own or self.vocabulary,
            dialect=self.dialect,
            task_format=self.format,
        )

    def questions(self, task: Any, split: str, limit: int) -> list[Question]:
        """Return the first examples of a split, as an evaluation asks them."""
        return read_questions(
            task,
            split,
            limit=limit,
            token_budget=self.token_budget,
            answer_length=self.token_budget,
        )

    def length(self, tokens: Any, text: str) -> int:
        """Length of a text, its EOS counted, or in words where the tokens mean nothing."""
        return len(tokens) if self.unit == "tokens" else len(text.split())


def asking(arguments: argparse.Namespace) -> Asking:
    """Return the asking that the flags `--gin_file`, `--dialect` and `--inputs_length` describe."""
    dialect = _dialect(getattr(arguments, "dialect", None))
    token_budget = getattr(arguments, "inputs_length", None)
    if not arguments.gin_file and not arguments.gin_bindings:
        if token_budget is not None:
            raise UserError("--inputs_length counts tokens of a model: name its --gin_file too.")
        return Asking(
            vocabulary=import_seqio().ByteVocabulary(),
            dialect=dialect or Dialect(),
            format=Format(),
            token_budget=_UNLIMITED,
            unit="words",
        )
    model = configured_model(arguments)
    return Asking(
        vocabulary=model.vocabulary,
        dialect=dialect or model.dialect,
        format=model.task_format,
        token_budget=token_budget or _UNLIMITED,
        unit="tokens",
    )


def default_split(task: Any) -> str:
    """Return the split that is scored when none is named, or else the first of test and train."""
    order = (task.scored_split, "test", "train", *task.splits)
    chosen: str = next(split for split in order if split in task.splits)
    return chosen


def spoken_answer_of(question: Question) -> str:
    """Return the right answer as the model is trained to give it, with its dialect's sentinel."""
    value = question.example.get("targets_pretokenized", question.answer)
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _seqio_vocabulary(name: str) -> Any:
    """Return the vocabulary that a task or mixture was registered with; None if SeqIO has none."""
    seqio = import_seqio()
    if name not in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        return None
    inputs = seqio.get_mixture_or_task(name).output_features.get("inputs")
    return inputs and inputs.vocabulary


def configured_model(arguments: argparse.Namespace) -> Any:
    """Return the model that the gin flags configure."""
    # gin files may name modules of the user's, as for the other commands.
    if "" not in sys.path:
        sys.path.append("")
    with quiet.imports():
        from promot_t5x import config

        given = config.configured(_given_model)
        # A model file leaves dropout to the run file, and dropout asks nothing.
        bindings = ["DROPOUT_RATE = 0.0", *arguments.gin_bindings]
        config.parse(
            arguments.gin_file,
            [*bindings, f"{__name__.removeprefix('promot_t5x.')}._given_model.model = %MODEL"],
            arguments.gin_search_paths,
        )
    return given()


def _given_model(model: Any) -> Any:
    return model


def _dialect(text: str | None) -> Dialect | None:
    if text is None:
        return None
    kind, _, sentinel = text.partition(":")
    default = "both" if kind == "span_corruption" else "none"
    return Dialect(kind=kind, sentinel=sentinel or default)


def _with_shots(name: str, shots: int | None) -> str:
    if shots is None:
        return name
    from promot_t5x.tasks import registry

    changed = f"{name}_{shots}shot"
    if not registry.is_task(changed) and not registry.is_mixture(changed):
        raise UserError(
            f"--shots {shots}: {name!r} takes no other number of demonstrations, either because "
            "its name has one already or because it is registered with SeqIO, or it is no task at "
            "all. See `promot-t5x tasks list`."
        )
    return changed
