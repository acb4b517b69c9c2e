"""The paper's tasks on real rows: text as the paper writes it, written here a second time.

The expected strings are made in plain Python from the raw rows of the sample files, not from the
templates of the package.
"""

import collections
import json
import subprocess
import sys

import pytest
from real_rows import SAMPLES

from promot_t5x.tasks import registry
from promot_t5x.tasks.dialects import Dialect
from promot_t5x.tasks.format import Format

pytestmark = pytest.mark.slow

DIALECTS = {
    "both": Dialect(kind="span_corruption", sentinel="both"),
    "targets": Dialect(kind="span_corruption", sentinel="targets"),
    "lm": Dialect(kind="lm"),
    "instruction": Dialect(kind="instruction"),
}


def entailment(words, choices):
    return lambda r: (
        f"{r['premise']} question: {r['hypothesis']} Is it {choices}? answer:",
        words[r["label"]],
    )


def wic(r):
    return (
        f"{r['sentence1']} {r['sentence2']} question: The word {r['word']} is used in the same way "
        "in the two sentences. Is it true or False? answer:",
        "True" if r["label"] == 1 else "False",
    )


def openbookqa(r):
    q = r["question"]
    choices = " ".join(f"{letter}) {q['choice_' + letter]}" for letter in "ABCD")
    return f"Q: {q['stem']} {choices} A:", "ABCD"[r["answerKey"]]


def translate(language, code):
    return lambda r: (f"Translate English to {language}: {r['en']}", r[code])


def summarize(article, summary):
    return lambda r: (f"Article: {r[article]} One sentence summary:", r[summary])


# Tasks whose examples are made in every dialect: labels, aliases and texts. All are in the first.
SHOWN_IN = dict.fromkeys(("rte", "triviaqa", "xsum"), 3)
THREE = "true or false or neither"
VALIDATION, TEST = ("train", "validation"), ("train", "test")
MT = ("validation", "test")
# name: (sample file, its splits for demonstrations and questions, raw row -> question and answer)
TASKS = {
    "cb": ("super_glue_cb", VALIDATION, entailment(["True", "False", "Neither"], THREE)),
    "wic": ("super_glue_wic", VALIDATION, wic),
    "rte": ("super_glue_rte", VALIDATION, entailment(["True", "False"], "true or false")),
    "snli": ("snli", VALIDATION, entailment(["True", "Neither", "False"], THREE)),
    "openbookqa": ("openbookqa", VALIDATION, openbookqa),
    "triviaqa": (
        "trivia_qa",
        VALIDATION,
        lambda r: (f"Q: {r['question']} A:", r["answer"]["value"]),
    ),
    "webquestions": (
        "web_questions",
        TEST,
        lambda r: (f"Q: {r['question']} A:", r["answers"][0]),
    ),
    "wmt16_ende": ("wmt16_translate_de-en", MT, translate("German", "de")),
    "wmt16_enro": ("wmt16_translate_ro-en", MT, translate("Romanian", "ro")),
    "wmt14_enfr": ("wmt14_translate_fr-en", MT, translate("French", "fr")),
    "xsum": ("xsum", ("test_pool_a", "test_pool_b"), summarize("document", "summary")),
    "wikilingua": ("gem_wiki_lingua_english_en", TEST, summarize("source", "target")),
}
PRIMARY = {"triviaqa": "exact_match", "webquestions": "exact_match"} | {
    name: "bleu" for name in TASKS if name.startswith("wmt")
}
PRIMARY |= {"xsum": "rouge2", "wikilingua": "rouge2"}


def raw(name, which):
    file, splits, render = TASKS[name]
    a, b = json.loads((SAMPLES / "splits.json").read_text())[file]["splits"][splits[which]]
    lines = (SAMPLES / f"{file}.jsonl").read_text().split("\n")
    return [(*render(row), row) for row in map(json.loads, lines[a:b])]


def asked_split(name):
    return "test" if TASKS[name][1][1].startswith("test") else "validation"


def examples(task, split, lengths=None):
    return list(task.get_dataset(lengths, split, shuffle=False).as_numpy_iterator())


def demonstrations(text, query, shown):
    """Splits a prompt into its demonstrations, each of which must be one of `shown`."""
    assert text.endswith(query)
    rest, found = text[: len(text) - len(query)], []
    while rest:
        (one,) = {d for d in shown if rest.startswith(d + "\n\n")}
        found.append(one)
        rest = rest[len(one) + 2 :]
    return found


@pytest.mark.parametrize("shots", [1, 4])
@pytest.mark.parametrize("name", TASKS)
def test_real_rows_read_as_the_paper_writes_them(real_rows, subwords, name, shots):
    rows = raw(name, 1)
    shown = {f"{question} {answer}" for question, answer, _ in raw(name, 0)}
    definition = registry.get_task(f"{name}_{shots}shot")
    task = definition.build(subwords, DIALECTS["lm"])
    made = examples(task, asked_split(name))
    # Every example survives, once, with its own answer.
    left = collections.Counter((question, answer) for question, answer, _ in rows)
    prompts = [row["inputs_pretokenized"].decode() for row in made]
    for prompt, row in zip(prompts, made, strict=True):
        answer = row["answer"].decode()
        (query,) = {q for q, a in +left if a == answer and prompt.endswith(q)}
        left[query, answer] -= 1
        found = demonstrations(prompt, query, shown)
        assert len(found) == len(set(found)) == len(row["shots"]) == shots
        assert not any(one.startswith(f"{query} ") for one in found)
        assert (row["dropped_shots"], row["cut_articles"]) == (0, 0)
    assert not +left
    assert len({row["id"] for row in made}) == len(made) == len(rows)
    check_scores(task, definition, made, "")
    # In other dialects, too: the same demonstrations, sentinels around the query's answer alone.
    others = (
        ("both", "<extra_id_0> ", " <extra_id_0>"),
        ("targets", "<extra_id_0> ", ""),
        ("instruction", "", ""),
    )
    for kind, begin, end in others[: SHOWN_IN.get(name, 1)] if shots == 1 else ():
        task = definition.build(subwords, DIALECTS[kind])
        same = examples(task, asked_split(name))
        texts = [row["inputs_pretokenized"].decode() for row in same]
        assert texts == [prompt + end for prompt in prompts]
        for row, plain in zip(same, made, strict=True):
            assert row["targets_pretokenized"].decode() == begin + plain["answer"].decode()
        if kind == "both":
            check_scores(task, definition, same, begin)


def check_scores(task, definition, made, begin):
    """Gold answers score 100, with sentinels around them too; empty ones 0."""
    primary = PRIMARY.get(definition.base or definition.name, "accuracy")
    wanted = [task.postprocess_fn("-", example=row, is_target=True) for row in made]

    def scores(answers):
        said = [
            task.postprocess_fn(answer, example=row, is_target=False)
            for answer, row in zip(answers, made, strict=True)
        ]
        found = {}
        for metric in task.predict_metric_fns:
            found |= metric(wanted, said)
        return found

    end = " <extra_id_1> more" if begin else ""
    gold = [row["targets_pretokenized"].decode() + end for row in made]
    found = scores(gold)
    assert next(iter(found)) == primary
    assert found == pytest.approx(dict.fromkeys(found, 100.0)), definition.name
    nothing = scores([begin] * len(made))
    assert nothing == dict.fromkeys(nothing, 0.0)
    if definition.references == "answer.aliases":
        for pick in (0, -1):
            assert scores([aliases[pick] for aliases in wanted])[primary] == 100.0


def test_scored_splits_and_lengths_are_the_papers():
    scored = {
        name: registry.get_task(name).scored_split for name in registry.get_mixture("icl").rates
    }
    assert scored == {
        "cb": "validation",
        "wic": "validation",
        "triviaqa": "validation",
        "webquestions": "test",
        "wmt16_ende": "test",
        "wmt16_enro": "test",
        "xsum": "test",
        "wikilingua": "test",
    }
    assert [registry.get_task(name).scored_split for name in ("rte", "wmt14_enfr")] == [
        "validation",
        "test",
    ]
    assert "validation" not in registry.get_task("webquestions").splits
    assert registry.get_task("xsum_3shot").source.names == ("gem/xsum:1.1.0", "xsum:1.1.0")


def test_the_suite_is_one_mixture_for_any_number_of_shots_and_each_task_is_one():
    for shots in (0, 1, 4, 7):
        rates = registry.get_mixture(f"icl_{shots}shot").rates
        assert list(rates) == [f"{name}_{shots}shot" for name in registry.get_mixture("icl").rates]
        assert len(rates) == 8
        assert set(rates.values()) == {1.0}
        assert registry.get_mixture(f"icl_wic_{shots}shot").rates == {f"wic_{shots}shot": 1.0}
    # Others, with a code in place of a name, summarize in the language itself.
    languages = [name for name in registry.names("wikilingua_????*") if not name.endswith("shot")]
    assert len(languages) == 17
    assert "wikilingua_vietnamese" in languages
    assert registry.get_task("wikilingua_thai").source.name == "gem/wiki_lingua_thai_th:1.1.0"


def drawn(tasks, split, vocabulary, format=Format()):  # noqa: B008
    return {
        name: {
            row["id"].decode(): [shot.decode() for shot in row["shots"]]
            for row in examples(registry.get_task(name).build(vocabulary, format=format), split)
        }
        for name in tasks
    }


OTHER_PROCESS = """
import json, sys, seqio
seqio.set_tfds_data_dir_override(sys.argv[1])
from promot_t5x.tasks import registry
task = registry.get_task("cb_4shot").build(seqio.ByteVocabulary())
rows = task.get_dataset(None, "validation", shuffle=True, seed=5)
shots = {r["id"].decode(): [s.decode() for s in r["shots"]] for r in rows.as_numpy_iterator()}
print(json.dumps(shots))
"""


def test_shots_are_those_of_another_process_another_order_and_another_shard(real_rows):
    import seqio

    vocabulary = seqio.ByteVocabulary()
    mine = drawn(["cb_4shot"], "validation", vocabulary)["cb_4shot"]
    code = [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, str(real_rows)]
    theirs = subprocess.run(code, check=True, capture_output=True, text=True)
    other = json.loads(theirs.stdout.splitlines()[-1])
    assert list(other) != list(mine)
    assert other == mine
    task = registry.get_task("cb_4shot").build(vocabulary)
    by_shard = {}
    for index in range(3):
        shard = seqio.ShardInfo(index=index, num_shards=3)
        data = task.get_dataset(None, "validation", shuffle=False, shard_info=shard)
        rows = data.as_numpy_iterator()
        by_shard |= {r["id"].decode(): [s.decode() for s in r["shots"]] for r in rows}
    assert by_shard == mine


def test_shots_change_with_the_seed_and_are_never_the_example_itself(real_rows):
    import seqio

    vocabulary = seqio.ByteVocabulary()
    names = ["cb_4shot", "rte_1shot", "webquestions_4shot"]
    first = drawn(names, "train", vocabulary)
    other = drawn(names, "train", vocabulary, Format(shot_seed=1))
    for name in names:
        assert all(example not in shown for example, shown in first[name].items())
        same = sum(first[name][example] == other[name][example] for example in first[name])
        assert same < len(first[name]) / 10, name
    balanced = Format(balanced_shots=True)
    task = registry.get_task("cb_3shot").build(vocabulary, format=balanced)
    labels = {str(r["idx"]): r["label"] for _, _, r in raw("cb", 0)}
    for row in examples(task, "validation"):
        assert sorted(labels[shot.decode()] for shot in row["shots"]) == [0, 1, 2]


def test_few_rows_to_show_and_a_split_that_is_not_there(real_rows):
    import seqio

    from promot_t5x.errors import UserError

    vocabulary = seqio.ByteVocabulary()
    pool = drawn(["cb_2shot"], "validation", vocabulary, Format(shot_pool=5))["cb_2shot"]
    assert len({shot for shots in pool.values() for shot in shots}) == 5
    dev = drawn(["wmt16_ende_1shot"], "test", vocabulary, Format(shot_split="validation"))
    assert all("-validation." in shot for (shot,) in dev["wmt16_ende_1shot"].values())
    with pytest.raises(UserError, match="'wic_1shot' shows rows of its split 'test', but it has"):
        registry.get_task("wic_1shot").build(vocabulary, format=Format(shot_split="test"))


@pytest.mark.parametrize("name", ["xsum_4shot", "wikilingua_1shot", "rte_4shot", "triviaqa_1shot"])
def test_prompts_that_are_too_long_keep_query_cue_and_sentinel(real_rows, subwords, name):
    base = name.split("_")[0]
    rows = raw(base, 1)
    cue = {"xsum": "summary:", "wikilingua": "summary:", "rte": "answer:", "triviaqa": "A:"}[base]
    definition = registry.get_task(name)
    task = definition.build(subwords, DIALECTS["both"])
    lost = collections.Counter()
    for room in (1500, 400, 60):
        lengths = {"inputs": room, "targets": 8}
        made = examples(task, asked_split(base), lengths)
        assert len(made) == len(rows)
        for row in made:
            text = row["inputs_pretokenized"].decode()
            assert text.endswith(f"{cue} <extra_id_0>")
            assert len(row["inputs"]) <= room
            assert row["inputs"].tolist()[-2:] == [subwords.encode("<extra_id_0>")[-1], 1]
            assert row["shots"].size + row["dropped_shots"] == definition.shots
            if not row["cut_articles"]:
                assert any(text.endswith(f"{query} <extra_id_0>") for query, _, _ in rows)
            lost[room, "dropped"] += bool(row["dropped_shots"])
            lost[room, "cut"] += bool(row["cut_articles"])
    assert lost[60, "dropped"] == len(rows) or base == "triviaqa"
    assert lost[1500, "dropped"] <= lost[400, "dropped"] <= lost[60, "dropped"]
    assert (lost[400, "cut"] > 0) == (base in ("xsum", "wikilingua"))


def test_shuffled_labels_are_a_permutation_that_every_reader_sees(real_rows):
    import seqio

    vocabulary = seqio.ByteVocabulary()
    truth = {str(r["idx"]): answer for _, answer, r in raw("rte", 0)}
    task = registry.get_task("rte_shuffled_labels").build(vocabulary)

    def labels(**options):
        rows = task.get_dataset(None, "train", **options).as_numpy_iterator()
        return {row["id"].decode(): row["answer"].decode() for row in rows}

    given = labels(shuffle=False)
    assert given.keys() == truth.keys()
    assert sorted(given.values()) == sorted(truth.values())
    agree = sum(given[i] == truth[i] for i in truth)
    assert 30 < agree < 70
    assert labels(shuffle=True, seed=3) == given
    halves = [seqio.ShardInfo(index=index, num_shards=2) for index in (0, 1)]
    half, other = (labels(shuffle=False, shard_info=half) for half in halves)
    assert half | other == given
    assert len(half) == len(other) == len(given) / 2
    plain = registry.get_task("rte").build(vocabulary)
    texts = [
        [row["inputs_pretokenized"] for row in examples(each, "train")] for each in (plain, task)
    ]
    assert texts[0] == texts[1]


def test_rows_without_a_gold_label_are_left_out(monkeypatch):
    import seqio

    from promot_t5x.tasks.sources import dataset_of

    rows = [{"premise": "a", "hypothesis": "b", "label": n, "row_id": str(n)} for n in (0, -1, 2)]

    class Source:
        def __call__(self):
            return seqio.FunctionDataSource(
                lambda split, shuffle_files, seed=None: dataset_of(rows), splits=["validation"]
            )

    import dataclasses

    definition = dataclasses.replace(registry.get_task("snli"), source=Source())
    made = examples(definition.build(seqio.ByteVocabulary()), "validation")
    assert [row["answer"] for row in made] == [b"True", b"False"]


def test_xsum_is_read_from_gem_where_that_is_prepared(tmp_path, monkeypatch):
    import seqio

    made = registry.get_task("xsum").source
    for name in ("xsum/1.1.0", "gem/xsum/1.1.0"):
        seqio.set_tfds_data_dir_override(str(tmp_path))
        try:
            before = made().tfds_dataset.name
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / "dataset_info.json").write_text("{}")
            assert made().tfds_dataset.name == name.replace("/1.1.0", ":1.1.0")
        finally:
            seqio.set_tfds_data_dir_override(None)
        assert before == ("gem/xsum:1.1.0" if name.startswith("xsum") else "xsum:1.1.0")


def test_gems_summaries_are_found_under_their_own_name():
    from promot_t5x.tasks.sources import dataset_of
    from promot_t5x.tasks.suite import with_summary

    (row,) = with_summary(dataset_of([{"document": "d", "target": "t"}])).as_numpy_iterator()
    assert row["summary"] == b"t"
