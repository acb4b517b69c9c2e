"""Demonstrations on made-up rows: who is shown to whom, and what goes when room is short."""

import collections
import dataclasses
import itertools

import pytest

from promot_t5x.errors import UserError
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.encoding import Encode
from promot_t5x.tasks.format import Format
from promot_t5x.tasks.shots import Assembler, Pool, Row, draw, shortened
from promot_t5x.tasks.templates import Template

ROWS = tuple(
    Row(fields={"q": f"question {n}"}, answer=f"answer {n}", id=f"train-{n}", label=n % 3)
    for n in range(60)
)
QUERY = Row(fields={"q": "what"}, answer="", id="test-1")


class Words:
    """A vocabulary whose tokens are words."""

    def encode(self, text):
        return [sum(map(ord, word)) for word in text.split()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shown(Pool):
    """A pool whose rows are given."""

    shown: tuple[Row, ...]

    def rows(self):
        return self.shown


def shown(rows, template):
    given = {"task": "a", "source": tuple, "split": "train", "preprocessors": (), "size": None}
    return Shown(**given, template=template, shown=rows)


def ids(rows):
    return [row.id for row in rows]


def test_a_draw_depends_on_task_seed_and_id_and_on_nothing_else():
    drawn = ids(draw(ROWS, QUERY, 4, task="a", seed=0))
    assert drawn == ids(
        draw(list(ROWS), dataclasses.replace(QUERY, answer="x"), 4, task="a", seed=0)
    )
    others = [
        ids(draw(ROWS, QUERY, 4, task="b", seed=0)),
        ids(draw(ROWS, QUERY, 4, task="a", seed=1)),
        ids(draw(ROWS, dataclasses.replace(QUERY, id="test-2"), 4, task="a", seed=0)),
    ]
    assert all(drawn != other for other in others)
    # The hash is fixed: another machine, another year, the same demonstrations.
    assert drawn == ["train-30", "train-52", "train-37", "train-1"]


def test_fewer_shots_are_the_first_of_more():
    longest = ids(draw(ROWS, QUERY, 60, task="a", seed=0))
    assert sorted(longest) == sorted(ids(ROWS))
    assert all(ids(draw(ROWS, QUERY, n, task="a", seed=0)) == longest[:n] for n in range(60))


def test_no_row_is_shown_to_itself_nor_a_question_twice():
    twins = (*ROWS[:5], *(dataclasses.replace(row, id=f"twin-{row.id}") for row in ROWS[:5]))
    for query in twins:
        shown = draw(twins, query, 4, task="a", seed=0)
        asked = [row.fields["q"] for row in (*shown, query)]
        assert len(set(asked)) == 5
        assert query.id not in ids(shown)
    same_id = dataclasses.replace(QUERY, id="train-3")
    assert "train-3" not in ids(draw(ROWS, same_id, 59, task="a", seed=0))
    with pytest.raises(UserError, match="5 demonstrations were asked for, but only 4 different"):
        draw(twins, twins[0], 5, task="a", seed=0)


def test_every_row_is_shown_about_equally_often():
    counts = collections.Counter(
        row.id
        for n in range(1200)
        for row in draw(ROWS, dataclasses.replace(QUERY, id=str(n)), 2, task="a", seed=0)
    )
    # 2,400 draws of 60: 40 each, give or take five standard deviations.
    assert len(counts) == 60
    assert min(counts.values()) > 10
    assert max(counts.values()) < 72


def test_balanced_shots_take_the_classes_in_turn():
    first = set()
    for n in range(30):
        query = dataclasses.replace(QUERY, id=str(n))
        labels = [row.label for row in draw(ROWS, query, 6, task="a", seed=0, balanced=True)]
        assert sorted(labels[:3]) == sorted(labels[3:]) == [0, 1, 2]
        first.add(labels[0])
    assert first == {0, 1, 2}
    unlabeled = tuple(dataclasses.replace(row, label=-1) for row in ROWS)
    assert len(draw(unlabeled, QUERY, 6, task="a", seed=0, balanced=True)) == 6


def article(name, words):
    return " ".join(f"{name}{n}" for n in range(words))


SUMMARY = Template(question="Article: {text} Summary:", answer="{s}", article="text")
LONG = tuple(
    Row(fields={"text": article(f"d{n}_", 50)}, answer="gist", id=f"d{n}") for n in range(4)
)
LONG_QUERY = Row(fields={"text": article("q", 60)}, answer="", id="q")
# Article:, Summary:, gist.
AROUND = 3


def assembler(template=SUMMARY, rows=LONG, **format_settings):
    made = Format(**({"short_article_tokens": 20} | format_settings))
    return Assembler(
        task="a",
        template=template,
        format=made,
        vocabulary=Words(),
        shots=4,
        pool=shown(rows, template),
    )


def demonstrations(prompt):
    return [part.split()[1:-2] for part in prompt.text.split("\n\n")[:-1]]


def test_a_prompt_that_fits_is_whole():
    room = 4 * (50 + AROUND) + 62
    for given in (None, room, room + 1):
        made = assembler().prompts([LONG_QUERY], given)[0]
        assert (made.dropped_shots, made.cut_articles, len(made.shots)) == (0, 0, 4)
        assert len(made.text.split()) == room
    assert assembler().prompts([LONG_QUERY], room - 1)[0].dropped_shots == 1


def test_whole_demonstrations_go_first_and_the_last_drawn_of_them():
    whole = assembler().prompts([LONG_QUERY], None)[0]
    for left in (3, 2, 1):
        made = assembler().prompts([LONG_QUERY], left * (50 + AROUND) + 62)[0]
        assert made.shots == whole.shots[:left]
        assert (made.dropped_shots, made.cut_articles) == (4 - left, 0)
        fewer = dataclasses.replace(assembler(), shots=left).prompts([LONG_QUERY], None)[0]
        assert made.text == fewer.text


def test_then_articles_are_cut_the_querys_to_what_remains():
    made = assembler().prompts([LONG_QUERY], 70)[0]
    assert (made.dropped_shots, made.cut_articles) == (3, 2)
    assert [len(words) for words in demonstrations(made)] == [20]
    query = made.text.split("\n\n")[-1].split()
    assert query[0] == "Article:"
    assert query[-1] == "Summary:"
    assert query[1:-1] == LONG_QUERY.fields["text"].split()[: 70 - 20 - AROUND - 2]
    assert len(made.text.split()) == 70


def test_a_demonstration_goes_that_leaves_the_querys_article_too_little():
    # 20 + 3 for the demonstration and 2 + 20 for the query are 45.
    assert len(assembler().prompts([LONG_QUERY], 45)[0].shots) == 1
    made = assembler().prompts([LONG_QUERY], 44)[0]
    assert (made.shots, made.dropped_shots, made.cut_articles) == ((), 4, 1)
    assert len(made.text.split()) == 44
    assert len(assembler(kept_shots=0).prompts([LONG_QUERY], 70)[0].shots) == 0


def test_the_longest_article_of_the_format_holds_whatever_the_room():
    made = assembler(article_tokens=30).prompts([LONG_QUERY], None)[0]
    assert [len(words) for words in demonstrations(made)] == [30] * 4
    assert (made.dropped_shots, made.cut_articles) == (0, 5)


def test_a_task_without_articles_keeps_its_query_and_its_cue_to_the_last():
    template = Template(question="{a} question: {b} answer:", answer="{c}")
    rows = tuple(Row(fields={"a": f"r{n} r", "b": "s"}, answer="yes", id=str(n)) for n in range(9))
    query = Row(fields={"a": article("p", 30), "b": article("h", 10)}, answer="", id="q")
    made = assembler(template, rows)
    for room in range(2, 80):
        prompt = made.prompts([query], room)[0]
        words = prompt.text.split()
        assert len(words) <= room
        assert words[-1] == "answer:"
        assert (len(words) == room) or prompt.cut_articles == 0
        if room >= 42:
            assert prompt.text.endswith(template.ask(query.fields, " "))
            assert prompt.cut_articles == 0
        else:
            assert prompt.shots == ()
            assert prompt.dropped_shots == 4
    assert "h9" in made.prompts([query], 30)[0].text
    assert "p20" not in made.prompts([query], 30)[0].text
    with pytest.raises(UserError, match="template alone are 2 tokens, but TASK_.* room for 1"):
        made.check(1)


def test_line_breaks_and_separators_are_the_formats():
    template = Template(question="Q: {q}{br}A:", answer="{a}")
    style = {"line_break": "\n", "separator": "\n##\n", "answer_separator": "\n> "}
    made = assembler(template, ROWS[:1], **style)
    made = dataclasses.replace(made, shots=1).prompts([QUERY], None)[0]
    assert made.text == "Q: question 0\nA:\n> answer 0\n##\nQ: what\nA:"


@pytest.mark.parametrize("text", ["one two  three\nfour", "word", "", "einszweidrei vier"])
def test_shortened_keeps_whole_words_where_it_can(text):
    def count(part):
        return len(part)

    for tokens in range(len(text) + 2):
        kept = shortened(text, tokens, count)
        assert text.startswith(kept)
        assert len(kept) <= tokens
        if tokens >= len(text):
            assert kept == text
    assert shortened("one two", 6, count) == "one"
    assert shortened("one two", 3, count) == "one"
    assert shortened("二三四五", 2, count) == "二三"


def test_a_row_alone_and_rows_together_are_encoded_alike():
    import seqio
    import tensorflow as tf

    vocabulary = seqio.ByteVocabulary()
    made = dataclasses.replace(assembler(), vocabulary=vocabulary, shots=0, pool=None)
    step = Encode(assembler=made, dialect=Dialect())
    row = {"fields": [LONG_QUERY.fields["text"]], "targets": "x", "id": "q", "label": -1}
    data = tf.data.Dataset.from_tensors(row)
    for room in (None, 400, 100):
        lengths = None if room is None else {"inputs": room + 1}
        (got,) = dataclasses.replace(step, sequence_length=lengths)(data).as_numpy_iterator()
        columns = {name: [value] * 2 for name, value in row.items()}
        several = step.examples(columns, step.budget(lengths))
        wanted = made.prompts([LONG_QUERY], room)[0]
        assert got["inputs_pretokenized"].decode() == wanted.text == several[1].question
        assert got["inputs"].tolist() == vocabulary.encode(wanted.text) == several[1].inputs
        assert got["targets"].tolist() == vocabulary.encode("x") == several[1].targets
        assert (got["dropped_shots"], got["cut_articles"]) == (0, wanted.cut_articles)
        assert got["shots"].tolist() == []
        assert not {"fields", "label"} & got.keys()
    assert wanted.cut_articles == 1


def test_settings_that_make_no_format():
    for settings, name in itertools.product(
        ({"shot_pool": 0}, {"kept_shots": -1}, {"article_tokens": 0}, {"bleu_tokenise": "char"}),
        ("format.Format",),
    ):
        with pytest.raises(UserError, match=name):
            Format(**settings)
