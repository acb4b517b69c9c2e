"""Task definitions by name: what to read, how to ask, how to score. No vocabulary in them.

A `TaskDef` is data. `TaskDef.build(vocabulary, dialect, format)` makes a SeqIO task from it for
any SeqIO vocabulary and any model; the task is not added to SeqIO's global registry, so one
definition may be built for several models in one process. Nothing here imports TensorFlow before
that.

Every name is good for any number of demonstrations: `cb` asks plainly, `cb_1shot` and `cb_16shot`
after so many; a mixture passes the number on to its tasks. `names` lists those that a definition
names in `listed_shots`; the others are known too.

To add a task, write a `register(TaskDef(...))` (or `register(text_task(...))`, see `own`) in a
module and, if it belongs to the project, name the module in `_DEFINING_MODULES`.
"""

import dataclasses
import fnmatch
import functools
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError, did_you_mean
from promot_t5x.tasks import dialects, languages, ranking, rendering, sources, templates
from promot_t5x.tasks.answers import LabelAtStart, keep
from promot_t5x.tasks.bleu import Bleu
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.encoding import Encode, EncodeWhole
from promot_t5x.tasks.exact_match import ShortAnswers
from promot_t5x.tasks.format import DEFAULT, Format
from promot_t5x.tasks.metrics import AnyMetric
from promot_t5x.tasks.normal_form import normal_form
from promot_t5x.tasks.rouge import Rouge
from promot_t5x.tasks.shots import Assembler, Pool
from promot_t5x.tasks.templates import Candidates, Template

_DEFINING_MODULES = (
    "promot_t5x.tasks.targets",
    "promot_t5x.tasks.suite",
    "promot_t5x.tasks.standard",
    "promot_t5x.tasks.multilingual",
    "promot_t5x.tasks.tiny.definitions",
)
_SHOTS = re.compile(r"(.+)_(\d+)shot")
_REFERENCES = "references"

# A tf.data.Dataset. TensorFlow is not imported here, so the type cannot be named.
Dataset = Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskDef:
    """One task, for any vocabulary, any model and any number of demonstrations.

    **Attributes:**

    - `name`: unique among tasks and mixtures; letters, digits, `_`, `.` and `:`.
    - `description`: one line for people.
    - `source`: makes the `seqio.DataSource`; called by `build` only. See `tasks.sources`.
    - `splits`: the splits that the source has and that may be asked for.
    - `preprocessors`: functions Dataset -> Dataset that the source's rows go through first.
    - `template`: how a row is asked and answered. None: rows have the text fields `inputs`,
      `targets` and `id` (unique within its split) already, and nothing in them is cut.
    - `postprocess`: the answer's text, read in the model's dialect -> prediction.
    - `metrics`: functions (targets, predictions) -> {name: percent}; the first name of the first
      one is the task's primary score.
    - `references`: the field (text or list of texts, nested as in a template) that the metrics get
      as target; None for the answer itself.
    - `labels`: the answers there are, if they are few: predictions that are none are counted.
    - `answer_words`: the words that answers are made of, where they are the task's own, as in a
      language that no other task answers in: reports count the answers to other tasks that are
      made of them.
    - `output_length`: how many tokens an answer may take when decoded (EOS and sentinels
      included); the longest label always fits. None leaves it to the data: enough for 99% of the
      first 1,000 training answers, in the model's vocabulary.
    - `language`: of the answers, a code such as `de` or `zh`: `Bleu()`, `Rouge()`, `squad` and
      `trivia_qa` then split words as the language does. None takes them as they are.
    - `normal_form`: compare answers as the model's vocabulary writes them (`tasks.normal_form`),
      so that a character that it lacks makes no right answer wrong.
    - `scored_split`: the split that is scored when none is asked for.
    - `shots`: demonstrations before each example.
    - `shots_split`: where they come from.
    - `listed_shots`: numbers of demonstrations under which `names` lists the task besides its own.
    - `version`: of the definition, where it has one: what is asked changed with it. Of a task that
      lm-evaluation-harness defines, theirs.
    - `base`: the name that the task has without demonstrations; set by the registry.
    """

    name: str
    description: str
    source: Callable[[], Any]
    splits: tuple[str, ...]
    metrics: tuple[AnyMetric, ...]
    output_length: int | None
    preprocessors: tuple[Callable[[Dataset], Dataset], ...] = ()
    template: Template | None = None
    postprocess: Callable[[str], str] = keep
    references: str | None = None
    labels: tuple[str, ...] = ()
    answer_words: tuple[str, ...] = ()
    language: str | None = None
    normal_form: bool = False
    scored_split: str = "validation"
    shots: int = 0
    shots_split: str = "train"
    listed_shots: tuple[int, ...] = ()
    version: float | None = None
    base: str | None = None

    def __post_init__(self) -> None:
        if self.language is not None:
            code = languages.code(self.language)
            metrics = tuple(_in_language(metric, code) for metric in self.metrics)
            object.__setattr__(self, "metrics", metrics)

    @property
    def candidates(self) -> Candidates | None:
        """How the task's answers are chosen by likelihood; None where they are given."""
        answer = self.template.answer if self.template else None
        return answer if isinstance(answer, Candidates) else None

    def answer_limit(self, vocabulary: Any, dialect: Dialect) -> int | None:
        """Return how many tokens an answer may take, EOS and sentinels included.

        That is `output_length`, and what the longest of the labels takes where that is more, as
        in a vocabulary of bytes; None leaves it to the data.
        """
        labels = [len(dialects.label_ids(vocabulary, dialect, label)) for label in self.labels]
        return None if self.output_length is None else max([self.output_length, *labels])

    def reference(self, example: Mapping[str, Any]) -> str | list[str] | dict[str, Any]:
        """Return what the metrics compare the prediction of `example` with.

        **Arguments:**

        - `example`: one example of the built task's data set, as numpy values; only its field
          `references`, or without one `answer`, is read, and its candidates where it has them
          (`tasks.ranking` says what is made of these).
        """
        if self.candidates is not None:
            return ranking.target(example)
        value = example[_REFERENCES if self.references else "answer"]
        value = value.tolist() if hasattr(value, "tolist") else value
        return [_text(v) for v in value] if isinstance(value, list) else _text(value)

    def score(self, targets: Sequence[Any], predictions: Sequence[str]) -> dict[str, float]:
        """Every metric of the task, in percent, over references and post-processed answers."""
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores.update(metric(targets, predictions))
        return scores

    def build(
        self, vocabulary: Any, dialect: Dialect = dialects.PLAIN, format: Format = DEFAULT
    ) -> Any:
        """Return a `seqio.Task` of this definition, for `vocabulary` (a `seqio.Vocabulary`).

        Its examples have `inputs` and `targets` as int32 ids ending in EOS (still so when
        SeqIO trims them to a sequence length); `inputs_pretokenized`, `targets_pretokenized` and
        the plain `answer` as text; `id`; the ids of the demonstrations as `shots`; the counts
        `dropped_shots` and `cut_articles`; and `references` if the definition has any.

        **Arguments:**

        - `dialect`: how the model is asked.
        - `format`: how prompts are put together.

        **Raises:**

        - `UserError`: the vocabulary lacks the sentinels that the dialect needs.
        """
        import seqio

        dialect.check(vocabulary)
        asked = seqio.Feature(vocabulary=vocabulary, add_eos=dialect.eos)
        answered = seqio.Feature(vocabulary=vocabulary, add_eos=True)
        kept = {_REFERENCES: self.references} if self.references else {}
        source = self.source()
        return seqio.Task(
            self.name,
            source=source,
            output_features={"inputs": asked, "targets": answered},
            preprocessors=[
                sources.with_row_id,
                *self.preprocessors,
                functools.partial(
                    rendering.rendered,
                    template=self._template,
                    task=self.name,
                    keep=kept,
                    left_out=getattr(source, "left_out", None),
                ),
                self._encoding(vocabulary, dialect, format),
                seqio.preprocessors.append_eos_after_trim,
            ],
            postprocess_fn=functools.partial(
                _seqio_postprocess, task=self, dialect=dialect, vocabulary=vocabulary
            ),
            metric_fns=[_formatted(metric, format) for metric in self.metrics],
        )

    @property
    def _template(self) -> Template:
        return self.template or templates.AS_IT_STANDS

    def _encoding(self, vocabulary: Any, dialect: Dialect, format: Format) -> EncodeWhole:
        assembler = Assembler(
            task=self.base or self.name,
            template=self._template,
            format=format,
            vocabulary=vocabulary,
            shots=self.shots,
            pool=self._pool(format) if self.shots else None,
            cuts=self.template is not None,
        )
        whole = self.template is None and not self.shots
        return (EncodeWhole if whole else Encode)(assembler=assembler, dialect=dialect)

    def _pool(self, format: Format) -> Pool:
        split = format.shot_split or self.shots_split
        if split not in self.splits:
            raise UserError(
                f"task {self.name!r} shows rows of its split {split!r}, but it has only "
                f"{', '.join(self.splits)}." + did_you_mean(split, self.splits)
            )
        return Pool(
            task=self.base or self.name,
            source=self.source,
            split=split,
            preprocessors=(sources.with_row_id, *self.preprocessors),
            template=self._template,
            size=format.shot_pool,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Several tasks sampled in proportion to their rates.

    **Attributes:**

    - `name`: unique among tasks and mixtures.
    - `description`: one line for people.
    - `rates`: task name -> rate > 0, in a fixed order; they need not sum to one.
    - `listed_shots`: numbers of demonstrations under which `names` lists it besides its own name.
    """

    name: str
    description: str
    rates: dict[str, float]
    listed_shots: tuple[int, ...] = ()

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
    found = {
        listed
        for name, definition in _definitions().items()
        for listed in (name, *(f"{name}_{shots}shot" for shots in definition.listed_shots))
    }
    return sorted(found) if pattern is None else fnmatch.filter(sorted(found), pattern)


def is_task(name: str) -> bool:
    """Whether there is a task of that name."""
    return isinstance(_find(name), TaskDef)


def is_mixture(name: str) -> bool:
    """Whether there is a mixture of that name."""
    return isinstance(_find(name), Mixture)


def get_task(name: str) -> TaskDef:
    """Return the task of that name; `UserError` when there is none."""
    definition = _get(name, "task")
    if not isinstance(definition, TaskDef):
        raise UserError(
            f"{name!r} is a mixture, not a task; its tasks are {', '.join(definition.rates)}"
        )
    return definition


def get_mixture(name: str) -> Mixture:
    """Return the mixture of that name, its tasks checked; `UserError` when there is none."""
    definition = _get(name, "mixture")
    if not isinstance(definition, Mixture):
        raise UserError(f"{name!r} is a task, not a mixture; use it as a task")
    for task in definition.rates:
        if not is_task(task):
            raise UserError(
                f"mixture {name!r} names {task!r}, which is not a task."
                + did_you_mean(task, filter(is_task, names()))
            )
    return definition


def _get(name: str, kind: str) -> TaskDef | Mixture:
    definition = _find(name)
    if definition is None:
        raise UserError(f"there is no {kind} {name!r}." + did_you_mean(name, names()))
    return definition


def _find(name: str) -> TaskDef | Mixture | None:
    """Return what is registered under `name`, or the definition that it makes of another name."""
    definitions = _definitions()
    if name in definitions:
        return definitions[name]
    match = _SHOTS.fullmatch(name)
    base = definitions.get(match[1]) if match else None
    if match is None or base is None or str(int(match[2])) != match[2]:
        return None
    return _with_shots(base, name, int(match[2]))


def _with_shots(base: TaskDef | Mixture, name: str, count: int) -> TaskDef | Mixture:
    said = f"{base.description}; after {count} demonstration{'s' * (count != 1)}"
    if isinstance(base, Mixture):
        rates = {f"{task}_{count}shot": rate for task, rate in base.rates.items()}
        return Mixture(name=name, description=said, rates=rates)
    return dataclasses.replace(
        base, name=name, description=said, shots=count, listed_shots=(), base=base.name
    )


def _definitions() -> dict[str, TaskDef | Mixture]:
    # Here and not at import time: the defining modules import this one.
    for module in _DEFINING_MODULES:
        importlib.import_module(module)
    return _DEFINITIONS


def _in_language(metric: AnyMetric, code: str) -> AnyMetric:
    """Return `metric` with the words of a language, where it was left at its defaults."""
    if metric == Bleu() and code in languages.BLEU_TOKENIZERS:
        return Bleu(languages.BLEU_TOKENIZERS[code])
    if metric == Rouge() and code != "en":
        return Rouge(words="unicode")
    if isinstance(metric, ShortAnswers) and code != "en":
        return ShortAnswers(metric.normalisation, words="unicode")
    return metric


def _formatted(metric: AnyMetric, format: Format) -> AnyMetric:
    """`metric` with what the format says about its kind; other metrics as they are."""
    if metric == Bleu():
        return Bleu(tokenise=format.bleu_tokenise)
    if metric == Rouge():
        return Rouge(stem=format.rouge_stem)
    return metric


def _seqio_postprocess(
    text: Any,
    example: Mapping[str, Any] | None = None,
    is_target: bool = False,
    *,
    task: TaskDef,
    dialect: Dialect,
    vocabulary: Any,
) -> Any:
    if is_target and example is not None:
        reference = task.reference(example)
        if isinstance(reference, dict):
            return reference
        if not task.normal_form or task.labels:
            return reference
        if isinstance(reference, list):
            return [normal_form(vocabulary, each) for each in reference]
        return normal_form(vocabulary, reference)
    # What a model says has been decoded, and so is in the vocabulary's form already.
    said = dialect.read(_text(text))
    if not (task.normal_form and isinstance(task.postprocess, LabelAtStart)):
        return task.postprocess(said)
    forms = {normal_form(vocabulary, label): label for label in task.labels}
    read = LabelAtStart(tuple(forms))(said)
    return forms.get(read, read)


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
