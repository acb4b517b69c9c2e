"""A task of one's own, in a few lines; see `docs/tasks.md` for a whole example.

from promot_t5x.tasks import jsonl, register, text_task

register(text_task(
    name="weather",
    source=jsonl("train.jsonl", validation="dev.jsonl"),
    inputs="Report: {report} Will it rain? answer:",
    target="{label}",
    labels=("no", "yes"),
))
"""

from collections.abc import Callable, Sequence
from typing import Any

from promot_t5x.errors import UserError
from promot_t5x.tasks import metrics as known_metrics
from promot_t5x.tasks.answers import LabelAtStart, Until, keep
from promot_t5x.tasks.ranking import MultipleChoice
from promot_t5x.tasks.registry import TaskDef
from promot_t5x.tasks.templates import Candidates, Choice, Template


def text_task(
    *,
    name: str,
    source: Any,
    inputs: str,
    target: str | Candidates,
    labels: Sequence[str] | None = None,
    metrics: Sequence[known_metrics.AnyMetric] | None = None,
    example_id: str = "{row_id}",
    article: str | None = None,
    prefix: str | None = None,
    postprocess: Callable[[str], str] | None = None,
    references: str | None = None,
    language: str | None = None,
    normal_form: bool = False,
    output_length: int | None = 64,
    scored_split: str | None = None,
    shots_split: str = "train",
    preprocessors: Sequence[Callable[[Any], Any]] = (),
    description: str = "",
) -> TaskDef:
    """Return a task that asks and answers by template; `register` it to make it known.

    **Arguments:**

    - `name`: what MIXTURE_OR_TASK_NAME calls it; `<name>_4shot` asks after 4 demonstrations.
    - `source`: of `promot_t5x.tasks`: `tfds`, `jsonl`, `tsv`, `csv`, `parquet` or `hugging_face`.
    - `inputs`: the question, `{field}` where a field of the row goes, up to the answer's cue.
    - `target`: the answer, likewise. With `labels` and one field alone, that field may be an
      integer label; a field of text must hold one of the labels. Or `Candidates` of the row's own,
      of which a model gives the one that it finds likeliest.
    - `labels`: all answers there are, in the order of integer labels. What the model says is read
      as the longest of them that it begins with (`answers.LabelAtStart`), and answers that begin
      with none of them are counted.
    - `metrics`: functions (targets, predictions) -> {name: percent}, the primary one first;
      accuracy with labels, `MultipleChoice()` with candidates, else exact match.
    - `example_id`: template of the id, unique within a split; every row has a `row_id`.
    - `article`: the field to cut when a prompt is too long; by default the longest.
    - `prefix`: how every question begins; the answer ends where the model starts another one.
    - `postprocess`: the answer's text -> prediction, in place of what `labels` and `prefix` do.
    - `references`: the field that holds all right answers, where the target is only one.
    - `language`: of the answers, a code such as `de` or `zh`: `Bleu()`, `Rouge()`, `squad` and
      `trivia_qa` then split words as the language does.
    - `normal_form`: compare answers as the model's vocabulary writes them, so that a character
      that it lacks makes no right answer wrong; `tasks check` says whether that matters.
    - `output_length`: tokens of an answer, at most; None is enough for 99% of the training answers.
    - `scored_split`: what is scored where no split is named; the source's second by default.
    - `shots_split`: where demonstrations come from.
    - `preprocessors`: functions on the `tf.data.Dataset` of rows, applied first.
    - `description`: one line for people.

    **Raises:**

    - `UserError`: settings that contradict each other.
    """
    if labels is not None and prefix is not None:
        raise UserError(
            f"task {name!r} has labels, which are read at the start of an answer, and a prefix, "
            "which cuts longer answers: give one of the two"
        )
    if isinstance(target, Candidates):
        if labels is not None or references is not None:
            raise UserError(
                f"task {name!r} has candidates, which are its answers: leave out labels and "
                "references"
            )
        metrics = metrics or (MultipleChoice(),)
    splits = tuple(source.splits)
    if labels is not None:
        labels = _checked(name, labels)
        metrics = metrics or (known_metrics.accuracy,)
        postprocess = postprocess or LabelAtStart(labels)
    return TaskDef(
        name=name,
        description=description or f"{name}, a task of your own",
        source=source,
        splits=splits,
        preprocessors=tuple(preprocessors),
        template=Template(
            question=inputs,
            answer=_answer(target, labels),
            example_id=example_id,
            article=article,
        ),
        postprocess=postprocess or (Until(prefix) if prefix else keep),
        metrics=tuple(metrics or (known_metrics.exact_match,)),
        labels=tuple(labels or ()),
        references=references,
        language=language,
        normal_form=normal_form,
        output_length=output_length,
        scored_split=scored_split or splits[min(1, len(splits) - 1)],
        shots_split=shots_split,
    )


def _checked(name: str, labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"task {name!r}: labels are a list of texts, got {labels!r}")
    stripped = tuple(label.strip() for label in labels)
    if not stripped or not all(stripped):
        raise UserError(f"task {name!r}: a label is empty in {labels!r}")
    if twice := [label for label in stripped if stripped.count(label) > 1]:
        raise UserError(f"task {name!r}: the label {twice[0]!r} is given twice in {labels!r}")
    return stripped


def _answer(target: str | Candidates, labels: Sequence[str] | None) -> str | Choice | Candidates:
    if isinstance(target, Candidates):
        return target
    field = target[1:-1]
    if labels is None or target != f"{{{field}}}" or "{" in field or "}" in field:
        return target
    return Choice(field=field, words=tuple(labels))
