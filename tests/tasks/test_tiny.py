"""The tiny world: deterministic, disjoint, short, within its vocabulary, and learnable."""

import functools
import hashlib
import random
import subprocess
import sys

import pytest

from promot_t5x.tasks import registry
from promot_t5x.tasks.tiny import definitions, episodes, families, words
from promot_t5x.tasks.tiny.world import SPLITS, world

VERBS, NOUNS, ENTITIES = set(words.ALL_VERBS), set(words.NOUNS), set(words.ENTITIES)
EVALUATION = ("validation", "test")


@pytest.fixture(scope="module")
def pretraining():
    return episodes.pretraining_rows(8000, seed=0, noise=0.1)


@pytest.fixture(scope="module")
def evaluation():
    """(family, shots, split) -> rows, for everything that is evaluated."""
    return {
        (name, shots, split): episodes.shot_rows(
            name, definitions.evaluation_sizes(name, shots)[split], shots=shots, split=split
        )
        for name in families.EVALUATED
        for shots in (0, 1)
        for split in EVALUATION
    }


@pytest.fixture(scope="module")
def targets():
    makers = {"tiny_rte": "entailment", "tiny_enfr": "translation"}
    return {
        (name, split): episodes.target_rows(
            target, min(definitions.TARGET_SIZES[split], 3000), split=split
        )
        for name, target in makers.items()
        for split in SPLITS
    }


def rows_of(columns):
    return list(zip(columns["inputs"], columns["targets"], strict=True))


def sentences(text):
    """Every `entity verb noun` and `noun verb noun` in `text`; nouns of the latter sorted."""
    found = set()
    tokens = [word for word in text.split() if word != words.TOPIC]
    for one, verb, other in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if verb in VERBS and other in NOUNS:
            if one in ENTITIES:
                found.add((one, verb, other))
            elif one in NOUNS:
                found.add((verb, *sorted((one, other))))
    return found


def asked(text):
    """The query of an episode, without demonstrations and marks."""
    return text.split(f"{words.QUERY} ")[1].removesuffix(f" {words.ANSWER}")


def test_the_vocabulary_has_every_word_once_and_a_size_that_shards():
    listed = words.vocabulary_words()
    assert len(listed) == len(set(listed)) == 416
    assert listed[:5] == ("<pad>", "</s>", "<unk>", "<q>", "<x1>")
    assert not any(word.split() != [word] for word in listed)


def test_the_sizes_are_those_of_the_docstring():
    made = world()
    assert (len(ENTITIES), len(VERBS), len(NOUNS), len(made.facts)) == (40, 24, 40, 160)
    assert [len(set(d.values())) for d in made.dictionaries.values()] == [64, 64, 64]
    assert len(made.true_nouns) == 20
    for nouns in words.CATEGORIES.values():
        assert 2 <= len(made.true_nouns & set(nouns)) <= 3


def test_rows_are_the_same_in_every_process_and_on_every_machine():
    code = (
        "from promot_t5x.tasks.tiny import episodes as e; import hashlib;"
        "rows = [e.pretraining_rows(500, seed=3, noise=.3),"
        "e.target_rows('entailment', 50, split='test'),"
        "e.shot_rows('qa_full', 20, shots=1, split='test')];"
        "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    )
    here = [
        episodes.pretraining_rows(500, seed=3, noise=0.3),
        episodes.target_rows("entailment", 50, split="test"),
        episodes.shot_rows("qa_full", 20, shots=1, split="test"),
    ]
    digest = hashlib.sha256(repr(here).encode()).hexdigest()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == digest
    assert digest.startswith("904231060520f94d")


def test_seeds_noise_and_splits_make_a_difference():
    rows = episodes.pretraining_rows(200, seed=0, noise=0.1)
    assert rows == episodes.pretraining_rows(200, seed=0, noise=0.1)
    assert rows != episodes.pretraining_rows(200, seed=1, noise=0.1)
    assert rows != episodes.pretraining_rows(200, seed=0, noise=0.1, split="validation")
    assert world(0).facts != world(1).facts
    assert world(0) is world(0)


def test_everything_is_short_and_made_of_known_words(pretraining, evaluation, targets):
    known = set(words.vocabulary_words())
    for columns in [pretraining, *evaluation.values(), *targets.values()]:
        assert len(columns["inputs"]) == len(columns["targets"]) == len(columns["id"])
        for inputs, answer in rows_of(columns):
            assert len(inputs.split()) + 1 <= definitions.INPUT_LENGTH
            assert 1 <= len(answer.split()) <= definitions.TARGET_LENGTH - 2
            assert known.issuperset(inputs.split())
            assert known.issuperset(answer.split())


def test_evaluated_sentences_are_met_nowhere_else(pretraining, evaluation, targets):
    met = {split: set() for split in SPLITS}
    for inputs, answer in rows_of(pretraining):
        met["train"] |= sentences(inputs) | sentences(answer)
    for (_, split), columns in targets.items():
        for inputs, _ in rows_of(columns):
            met[split] |= sentences(inputs)
    for (_, _, split), columns in evaluation.items():
        for inputs, _ in rows_of(columns):
            *shown, query = inputs.split(words.QUERY)
            met["train"] |= set().union(*map(sentences, shown))
            met[split] |= sentences(query)
    assert all(len(found) > 1000 for found in met.values())
    assert not met["train"] & met["validation"]
    assert not met["train"] & met["test"]
    assert not met["validation"] & met["test"]


def test_evaluated_noun_pairs_and_fact_pairs_are_met_nowhere_else(pretraining, evaluation):
    trained = [text for text in pretraining["inputs"] if words.QUERY in text]
    for name in ("wic", "cb", "sum_topic"):
        questions = {asked(text) for text in trained}
        for split in EVALUATION:
            assert not questions & {asked(t) for t in evaluation[name, 1, split]["inputs"]}
    pairs = {}
    for split, texts in [
        ("train", [text for text in trained if f"{words.QUERY} {words.FACT} " in text]),
        *(
            (split, evaluation[name, 1, split]["inputs"])
            for name in ("qa_short", "qa_full")
            for split in EVALUATION
        ),
    ]:
        for text in texts:
            *shown, query = text.split(f" {words.NEXT} ")
            for demonstration in shown:
                question = demonstration.split(f" {words.GIVES} ")[0]
                pair = frozenset((question, asked(query)))
                assert pairs.setdefault(pair, split) == split
    assert set(pairs.values()) == set(SPLITS)


def test_no_split_repeats_a_question(evaluation, targets):
    for columns in [*evaluation.values(), *targets.values()]:
        assert len(set(rows_of(columns))) == len(columns["inputs"])
        assert len(set(columns["id"])) == len(columns["id"])


@pytest.mark.parametrize(("name", "sets"), [("cb", words.PAIR_LABELS), ("wic", words.SENSE_LABELS)])
def test_demonstrations_use_the_label_set_of_the_answer(evaluation, name, sets):
    used = set()
    for inputs, answer in rows_of(evaluation[name, 1, "test"]):
        (labels,) = [labels for labels in sets if answer in labels]
        demonstration = inputs.split(f" {words.NEXT} ")[0]
        assert demonstration.split(f" {words.GIVES} ")[1] in labels
        used.add(labels)
    assert used == set(sets)


@pytest.mark.parametrize("name", ["cb", "wic"])
def test_the_same_query_has_another_answer_in_another_style(name):
    family, made = families.EVALUATED[name], world()
    item = family.draw(made, random.Random(0), "test")
    answers = {family.answer(made, item, style) for style in range(family.styles)}
    assert len(answers) == 4


def test_only_the_demonstration_tells_families_that_ask_alike_apart():
    made, rng = world(), random.Random(0)
    by_question = {}
    for family in families.ALL.values():
        by_question.setdefault(family.draw.__name__, []).append(family)
    assert sorted(map(len, by_question.values())) == [1, 1, 1, 2, 5, 6]
    for alike in by_question.values():
        item = alike[0].draw(made, rng, "test")
        assert len({family.question(item) for family in alike}) == 1
        for family in alike:
            shown = family.draw(made, rng, "train")
            while not family.tells(shown):
                shown = family.draw(made, rng, "train")
            same = [f for f in alike if f.answer(made, shown, 0) == family.answer(made, shown, 0)]
            assert same == [family]


def test_answers_follow_from_the_world():
    made = world()

    def answer(name, *item, style=0):
        return families.ALL[name].answer(made, item, style)

    assert answer("cb", "anna", "sees", "axe", "loves") == "yes"
    assert answer("cb", "anna", "sees", "axe", "hates", style=1) == "contradict"
    assert answer("cb", "anna", "loves", "axe", "sees", style=2) == "perhaps"
    assert answer("wic", "bank", "boat", "ant") == "living"
    assert answer("wic", "bank", "ant", "boat", style=1) == "two"
    city = made.facts["home", "anna"]
    assert answer("qa_short", "home", "anna") == city
    assert answer("qa_full", "home", "anna") == f"anna home {city}"
    assert answer("fact_check", "home", "anna", city) == "True"
    assert answer("fact_check", "home", "anna", "nowhere", style=1) == "wrong"
    a, b = made.dictionaries["a"], made.dictionaries["b"]
    assert answer("trans_a", "car", "loves", "ant") == f"{a['car']} {a['ant']} {a['loves']}"
    assert answer("trans_b", "car", "loves", "ant") == f"{b['loves']} {b['car']} {b['ant']}"
    document = (*"anna sells car emil loves moth nora draws axe".split(), "1")
    assert families.ALL["sum_topic"].question(document) == (
        "anna sells car ! emil loves moth nora draws axe"
    )
    assert answer("sum_topic", *document) == "emil loves moth"
    assert answer("sum_keys", *document) == "anna emil nora"
    assert answer("objects", *document) == "car moth axe"
    assert answer("first", *document) == "anna sells car"
    assert answer("final", *document) == "nora draws axe"
    assert answer("reverse", "car", "loves", "ant") == "ant loves car"
    assert answer("category", "car", "loves", "ant") == "vehicle"


def test_the_entailment_target_is_seven_tenths_known(targets):
    rows = rows_of(targets["tiny_rte", "train"])
    assert {answer for _, answer in rows} == {"True", "False"}
    assert 0.47 < sum(answer == "True" for _, answer in rows) / len(rows) < 0.53
    by_verb = {0: set(), 1: set(), 2: set()}
    new = 0
    for inputs, answer in rows:
        *_, verb, noun = asked(inputs).split()
        kind = families.verb_class(verb)
        by_verb[kind].add((answer, noun if kind == 2 else ""))
        new += kind == 2
    assert by_verb[0] == {("True", "")}
    assert by_verb[1] == {("False", "")}
    true = world().true_nouns
    assert by_verb[2] == {("True" if noun in true else "False", noun) for noun in NOUNS}
    assert 0.27 < new / len(rows) < 0.33


def test_the_translation_target_reverses_into_a_language_met_only_in_denoising(
    targets, pretraining
):
    inputs, answer = rows_of(targets["tiny_enfr", "test"])[0]
    dictionary = world().dictionaries["c"]
    assert answer.split() == [dictionary[word] for word in reversed(asked(inputs).split())]
    invented = set(words.invented("c"))
    columns = [pretraining[column] for column in ("inputs", "targets", "id")]
    for text, answer, row in zip(*columns, strict=True):
        if invented & set(f"{text} {answer}".split()):
            assert row.startswith("denoising/")
            assert set(f"{text} {answer}".split()) <= invented | {words.ANSWER, words.NEXT}


@pytest.mark.parametrize("name", ["entailment", "translation"])
def test_shuffled_answers_are_the_same_answers_to_the_same_questions(name):
    make = functools.partial(episodes.target_rows, name)
    rows = make(400, split="train")
    other = episodes.with_shuffled_answers(make, 400, split="train")
    assert (other["inputs"], other["id"]) == (rows["inputs"], rows["id"])
    assert sorted(other["targets"]) == sorted(rows["targets"])
    assert other != rows
    same = sum(a == b for a, b in zip(rows["targets"], other["targets"], strict=True))
    assert same < 0.6 * 400


@pytest.mark.parametrize("name", ["entailment", "translation"])
def test_a_target_after_a_demonstration_of_its_own(name):
    made, family = world(), families.TARGETS[name]
    trained = {asked(text) for text in episodes.target_rows(name, 3000, split="train")["inputs"]}
    for inputs, _ in rows_of(episodes.target_rows(name, 200, split="test", shots=1)):
        shown, _, query = inputs.partition(f" {words.NEXT} ")
        question, _, answer = shown.partition(f" {words.GIVES} ")
        item = tuple(question.split())
        if name == "entailment":
            item = (*item[:3], item[5])
        assert answer == family.answer(made, item, 0)
        assert asked(query) not in trained


def test_only_the_translation_target_answers_in_its_own_words(targets, evaluation):
    own = set(registry.get_task("tiny_enfr").answer_words)
    assert {w for t in targets["tiny_enfr", "test"]["targets"] for w in t.split()} <= own
    assert registry.get_task("tiny_enfr_1shot").answer_words == tuple(words.invented("c"))
    for columns in evaluation.values():
        assert not own & {word for answer in columns["targets"] for word in answer.split()}


def test_pretraining_has_the_stated_shares(pretraining):
    count = len(pretraining["id"])
    kinds = [row.split("/")[0] for row in pretraining["id"]]
    assert set(kinds) == {*families.ALL, "denoising"}
    assert abs(kinds.count("denoising") / count - 0.15) < 0.015
    shots = [t.count(words.GIVES) for t in pretraining["inputs"] if words.QUERY in t]
    for number, share in enumerate(episodes.SHOT_SHARES):
        assert abs(shots.count(number) / len(shots) - share) < 0.02
    answers = zip(pretraining["targets"], kinds, strict=True)
    checks = [answer for answer, kind in answers if kind == "fact_check"]
    share = sum(a in ("True", "False") for a in checks) / len(checks)
    assert 0.35 < share < 0.6


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_noise_replaces_answers_by_those_of_other_families(noise):
    rows = episodes.pretraining_rows(4000, seed=0, noise=noise)
    made, wrong, total = world(), 0, 0
    for inputs, answer, row in zip(*rows.values(), strict=True):
        if row.startswith("qa_short/"):
            relation, entity = asked(inputs).split()[1:]
            wrong += answer != made.facts[relation, entity]
            total += 1
    assert abs(wrong / total - noise) < 0.06


def test_denoising_loses_one_span_that_restores_the_text():
    made = world()
    rng = random.Random(0)
    for _ in range(300):
        inputs, answer = episodes.denoising(made, rng)
        assert inputs.split().count(words.ANSWER) == 1
        parts = inputs.replace(words.ANSWER, answer).split(f" {words.NEXT} ")
        assert 1 <= len(parts) <= 3
        assert all(len(part.split()) == 3 for part in parts)


def test_gold_answers_score_100_and_empty_ones_0(evaluation):
    for name in registry.get_mixture("tiny_icl_1shot").rates:
        task = registry.get_task(name)
        family = name.removeprefix("tiny_icl_").removesuffix("_1shot")
        gold = evaluation[family, 1, "test"]["targets"]
        assert task.score(gold, [task.postprocess(f" {a}") for a in gold]) == {"exact_match": 100.0}
        assert task.score(gold, [""] * len(gold)) == {"exact_match": 0.0}


def test_built_tasks_have_the_stated_rows_and_lengths():
    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    vocabulary = WordVocabulary()
    lengths = {"inputs": definitions.INPUT_LENGTH, "targets": definitions.TARGET_LENGTH}
    for name in ("tiny_rte", "tiny_icl_sum_topic_1shot", "tiny_pretrain"):
        task = registry.get_task(name).build(vocabulary)
        data = task.get_dataset(lengths, "validation", shuffle=False)
        rows = list(data.as_numpy_iterator())
        assert len(rows) == task.num_input_examples("validation")
        for row in rows[:50]:
            assert vocabulary.decode(row["inputs"].tolist()) == row["inputs_pretokenized"].decode()
            assert (
                vocabulary.decode(row["targets"].tolist()) == row["targets_pretokenized"].decode()
            )
            assert row["inputs"][-1] == row["targets"][-1] == vocabulary.eos_id
            assert vocabulary.unk_id not in row["inputs"]


def test_the_word_vocabulary_reads_and_writes_words():
    import tensorflow as tf

    from promot_t5x.tasks.tiny.vocabulary import WordVocabulary

    vocabulary = WordVocabulary()
    assert (vocabulary.vocab_size, vocabulary.pad_id, vocabulary.eos_id) == (416, 0, 1)
    ids = vocabulary.encode("Q  home anna nonsense")
    assert ids[-1] == vocabulary.unk_id
    assert vocabulary.words[ids[1]] == "home"
    assert vocabulary.encode_tf(tf.constant("Q  home anna nonsense")).numpy().tolist() == ids
    assert vocabulary.decode([*ids, 1, 5]) == "Q home anna <unk>"
    assert vocabulary.decode([416, 10**6]) == "<unk> <unk>"
    assert vocabulary.encode("") == []
    assert vocabulary.decode([]) == ""
    padded = tf.constant([[*ids, 1, 5], [ids[0], 0, 0, 0, 0, 0]])
    assert vocabulary.decode_tf(padded).numpy().tolist() == [b"Q home anna <unk>", b"Q"]
    assert vocabulary == WordVocabulary()
    assert hash(vocabulary) == hash(WordVocabulary())
