"""Demonstrations: which ones an example gets, and how a prompt fits its token budget.

Which ones is a function of (task, seed, example id) and of the rows that may be shown, computed
with a hash: the same whatever is read before, by however many hosts, in whatever order, for
every checkpoint. In training it is one of the run's seed and the epoch as well. Rows are tried in
hashed order; the example's own row, one that asks the same, and one that asks what an earlier
demonstration asks are passed over. So the n demonstrations of an example are the first n of its
n + 1.

Nothing is cut from the right. An article that is longer than `article_tokens`, where the format
sets that, is cut to it. If a prompt is still longer than its token budget:

1. whole demonstrations go, the last drawn first, until `kept_shots` are left; what remains is
   the prompt of a task with fewer shots;
2. articles of demonstrations are cut to `short_article_tokens`;
3. the query's article is cut to what remains; where that is less than `short_article_tokens`,
   demonstrations go first.

A task without an article loses all demonstrations before the longest field of its query is cut.
The cue for the answer always survives. What was lost is counted in each example.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from promot_t5x.errors import UserError
from promot_t5x.tasks import dialects, pipeline_errors, rendering
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.templates import Template

_TRIES_PER_ROW = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What a template needs of a row: the text of its fields, its answer, its id, its label."""

    fields: Mapping[str, str]
    answer: str
    id: str
    label: int = -1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """The rows that demonstrations are drawn from; read once a process.

    **Attributes:**

    - `task`: the task's name, for errors.
    - `source`: makes the `seqio.DataSource`.
    - `split`: of the source.
    - `preprocessors`: the task's own, Dataset -> Dataset.
    - `template`: what is rendered.
    - `size`: the first so many rows of the split; None takes all.
    """

    task: str
    source: Callable[[], Any]
    split: str
    preprocessors: tuple[Callable[[Any], Any], ...]
    template: Template
    size: int | None

    def rows(self) -> tuple[Row, ...]:
        """Return the rows in the order of the split."""
        loader = getattr(self.source(), "tfds_dataset", None)
        return _read(self, loader.data_dir if loader is not None else None)

    def read(self) -> tuple[Row, ...]:
        """Return the rows, read anew; `UserError` where the split cannot be read."""
        import tensorflow as tf

        source = self.source()
        try:
            data = source.get_dataset(split=self.split, shuffle=False)
        # Sources fail here in their own ways: a data set not prepared, no network, no file.
        except Exception as error:
            raise UserError(
                f"The demonstrations of task {self.task!r} come from its split {self.split!r}, "
                f"which cannot be read: {type(error).__name__}: {error}."
            ) from error
        for step in self.preprocessors:
            data = step(data)
        left_out = getattr(source, "left_out", None)
        data = rendering.rendered(
            data, template=self.template, task=self.task, keep={}, left_out=left_out
        )
        data = data.take(-1 if self.size is None else self.size)
        try:
            return tuple(self._row(row) for row in data.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise UserError(
                f"The demonstrations of task {self.task!r}, split {self.split!r}, cannot be read: "
                f"{pipeline_errors.described(error)}."
            ) from error

    def _row(self, row: Mapping[str, Any]) -> Row:
        return Row(
            fields=dict(zip(self.template.fields, map(_text, row["fields"]), strict=True)),
            answer=_text(row["targets"]),
            id=_text(row["id"]),
            label=int(row["label"]),
        )


@functools.lru_cache(maxsize=32)
def _read(pool: Pool, data_dir: str | None) -> tuple[Row, ...]:
    del data_dir  # part of the key: the same builder may be prepared in several directories
    return pool.read()


def draw(
    rows: Sequence[Row],
    query: Row,
    shots: int,
    *,
    task: str,
    seed: int,
    epoch: tuple[int, int] | None = None,
    balanced: bool = False,
) -> list[Row]:
    """Return the demonstrations of one example.

    **Arguments:**

    - `rows`: what may be shown.
    - `query`: the example.
    - `shots`: how many.
    - `task`: the task's name without its number of shots, part of the hash as is `seed`.
    - `epoch`: in training, the run's seed and the epoch, part of the hash too.
    - `balanced`: take the classes in turn, in an order that is the example's own; of no effect on
      rows without labels.

    **Raises:**

    - `UserError`: there are not as many different rows to show.
    """
    key = "\0".join(map(str, (task, seed, query.id, *(epoch or ()))))
    classes = _by_class(rows, key) if balanced else [rows]
    orders = [_hashed_order(len(members), f"{key}\0{n}") for n, members in enumerate(classes)]
    shown: list[Row] = []
    for index in itertools.islice(itertools.cycle(range(len(classes))), shots):
        for place in orders[index]:
            row = classes[index][place]
            if row.id != query.id and row.fields not in (query.fields, *(r.fields for r in shown)):
                shown.append(row)
                break
        else:
            raise UserError(
                f"task {task!r}: {shots} demonstrations were asked for, but only {len(shown)} "
                f"different rows can be shown to example {query.id!r} (of {len(rows)} read)"
            )
    return shown


def _by_class(rows: Sequence[Row], key: str) -> list[Sequence[Row]]:
    labels = sorted({row.label for row in rows}, key=lambda label: _hash(key, "class", label))
    return [[row for row in rows if row.label == label] for label in labels]


def _hashed_order(size: int, key: str) -> Iterator[int]:
    """Return the numbers below `size`, each once, in an order that belongs to `key`."""
    seen = set()
    for attempt in range(_TRIES_PER_ROW * size):
        place = _hash(key, attempt) % size
        if place not in seen:
            seen.add(place)
            yield place
    # Only where almost every row has been passed over is the rest worth sorting.
    yield from sorted(set(range(size)) - seen, key=lambda place: _hash(key, "rest", place))


def _hash(*parts: str | int) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


class Prompt(NamedTuple):
    """A question as it is asked, and what it lost: its shots are those that are left."""

    text: str
    ids: Sequence[int]
    shots: tuple[str, ...]
    dropped_shots: int
    cut_articles: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assembler:
    """Puts the prompts of one task together.

    **Attributes:**

    - `task`: the task's name without its number of shots.
    - `template`: how it asks.
    - `format`: see there.
    - `vocabulary`: measures lengths.
    - `shots`: demonstrations before each query.
    - `pool`: where they come from; None without shots.
    - `cuts`: whether the question's fields may be cut.
    """

    task: str
    template: Template
    format: Format
    vocabulary: Any
    shots: int = 0
    pool: Pool | None = None
    cuts: bool = True

    def prompts(
        self,
        queries: Sequence[Row],
        budget: int | None,
        epochs: Iterable[tuple[int, int] | None] = itertools.repeat(None),
    ) -> list[Prompt]:
        """Return the prompts of rows, each of at most `budget` tokens, EOS and sentinels aside.

        **Arguments:**

        - `queries`: the rows that are asked.
        - `budget`: None for as many tokens as a prompt has.
        - `epochs`: in training, of each row the run's seed and the epoch, each of which has
          demonstrations of its own; None takes those of evaluation.
        """
        shown = [self._shown(*each) for each in zip(queries, epochs, strict=False)]
        rows = [[*drawn, query] for drawn, query in zip(shown, queries, strict=True)]
        if self.longest_article is not None:
            rows = [[self._cut(row, self.longest_article) for row in several] for several in rows]
        texts = [self._text(several) for several in rows]
        ids = dialects.texts_ids(self.vocabulary, texts)
        for place, tokens in enumerate(ids):
            if budget is not None and len(tokens) > budget:
                rows[place] = self._squeezed(rows[place], budget)
                texts[place] = self._text(rows[place])
                ids[place] = self._ids(texts[place])
        return [_prompt(*of_one) for of_one in zip(queries, shown, rows, texts, ids, strict=True)]

    def _shown(self, query: Row, epoch: tuple[int, int] | None) -> list[Row]:
        """Return the demonstrations of an example."""
        if self.pool is None:
            return []
        return draw(
            self.pool.rows(),
            query,
            self.shots,
            task=self.task,
            seed=self.format.shot_seed,
            epoch=epoch,
            balanced=self.format.balanced_shots,
        )

    @property
    def longest_article(self) -> int | None:
        """Tokens of an article at most, if there are articles and a limit."""
        return None if self.template.article is None else self.format.article_tokens

    @property
    def _article(self) -> str:
        assert self.template.article is not None  # asked only of tasks with articles
        return self.template.article

    def check(self, budget: int | None) -> None:
        """Raise `UserError` without enough rows to show, or tokens for an empty question."""
        if self.pool is not None:
            different = {tuple(row.fields.items()) for row in self.pool.rows()}
            if len(different) < self.shots:
                raise UserError(
                    f"task {self.task!r}: {self.shots} demonstrations were asked for, but its "
                    f"split {self.pool.split!r} has only {len(different)} different rows to show"
                )
        if budget is None or not self.cuts:
            return
        least = self._count(self._text([_blank(self.template.fields)]))
        if budget < least:
            raise UserError(
                f"task {self.task!r}: the words of its template alone are {least} tokens, but "
                f"TASK_FEATURE_LENGTHS['inputs'] leaves room for {budget}"
            )

    def _squeezed(self, rows: list[Row], budget: int) -> list[Row]:
        article = self.template.article
        keep = self.format.kept_shots if article is not None else 0
        rows = list(rows)
        while len(rows) - 1 > keep and not self._fits(rows, budget):
            del rows[-2]
        if not self.cuts or self._fits(rows, budget):
            return rows
        if article is not None:
            short = self.format.short_article_tokens
            rows = [*(self._cut(row, short) for row in rows[:-1]), rows[-1]]
            wanted = min(short, self._count(rows[-1].fields[article]))
            while len(rows) > 1 and budget - self._overhead(rows) < wanted:
                del rows[-2]
        return [*rows[:-1], self._query(rows, budget)]

    def _query(self, rows: list[Row], budget: int) -> Row:
        """Return the query, cut until the whole prompt fits."""
        query = rows[-1]
        while (excess := self._count(self._text([*rows[:-1], query])) - budget) > 0:
            field = self.template.article
            if field is None or not query.fields[field]:
                field = max(query.fields, key=lambda name: self._count(query.fields[name]))
            before = query.fields[field]
            if not before:
                # The template's words alone fill the token budget: `check` has refused that.
                break
            query = self._cut(query, max(0, self._count(before) - excess), field)
        return query

    def _overhead(self, rows: list[Row]) -> int:
        """Tokens of the prompt without the query's article."""
        query = rows[-1]
        empty = dataclasses.replace(query, fields={**query.fields, self._article: ""})
        return self._count(self._text([*rows[:-1], empty]))

    def _cut(self, row: Row, tokens: int, field: str | None = None) -> Row:
        field = field or self._article
        text = shortened(row.fields[field], tokens, self._count)
        if text == row.fields[field]:
            return row
        return dataclasses.replace(row, fields={**row.fields, field: text})

    def _text(self, rows: Sequence[Row]) -> str:
        made = self.format
        asked = [self.template.ask(row.fields, made.line_break) for row in rows]
        if len(asked) == 1:
            return asked[0]
        answered = [
            question + made.answer_separator + row.answer
            for question, row in zip(asked[:-1], rows[:-1], strict=True)
        ]
        return made.separator.join([*answered, asked[-1]])

    def _fits(self, rows: Sequence[Row], budget: int) -> bool:
        return self._count(self._text(rows)) <= budget

    def _count(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> Sequence[int]:
        return dialects.text_ids(self.vocabulary, text)


def shortened(text: str, tokens: int, count: Callable[[str], int]) -> str:
    """Return the longest beginning of `text` within `tokens` tokens, of whole words if it can."""
    if count(text) <= tokens:
        return text
    fits, exceeds = 0, len(text)
    while exceeds - fits > 1:
        middle = (fits + exceeds) // 2
        if count(text[:middle]) <= tokens:
            fits = middle
        else:
            exceeds = middle
    kept = text[:fits]
    if not text[fits].isspace() and " " in kept:
        kept = kept[: kept.rindex(" ")]
    return kept.rstrip()


def _prompt(
    query: Row, shown: Sequence[Row], rows: Sequence[Row], text: str, ids: Sequence[int]
) -> Prompt:
    """Say what a prompt of `rows`, the query last, has lost of what was `shown`."""
    cut = sum(row is not drawn for row, drawn in zip(rows[:-1], shown, strict=False))
    return Prompt(
        text=text,
        ids=ids,
        shots=tuple([row.id for row in rows[:-1]]),
        dropped_shots=len(shown) - len(rows) + 1,
        cut_articles=cut + (rows[-1] is not query),
    )


def _blank(fields: Sequence[str]) -> Row:
    return Row(fields=dict.fromkeys(fields, ""), answer="", id="")


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
