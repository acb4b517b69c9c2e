"""The words of the tiny world, fixed for every seed, and their order in the vocabulary.

Which value a fact has, which invented word translates which, and which nouns make the new
task true depends on the world's seed (`world.py`); the words themselves do not, so that one
vocabulary serves every world.
"""

import itertools

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
QUERY, ANSWER = "<q>", "<x1>"
GIVES, NEXT, VERSUS, TOPIC, FACT, CHECK = "=>", ";", "/", "!", "Q", "?"

ENTITIES = tuple(
    "anna boris carla daniel elena felix greta hugo irina jonas katja leo maria nils olga "
    "peter quentin rita simon tanja ulrich vera walter xenia yann zoe adam bella conrad dora "
    "emil frida gustav hanna ivan julia karl lena martin nora".split()
)
# Three classes of verbs: the hypothesis `x <verb> y` holds, does not, or may hold.
VERBS = (
    tuple("loves likes adores wants enjoys praises trusts keeps".split()),
    tuple("hates dislikes loathes rejects avoids blames fears sells".split()),
    tuple("sees finds holds draws moves counts names weighs".split()),
)
ALL_VERBS = tuple(itertools.chain.from_iterable(VERBS))
# Category -> nouns; the first four categories are the living ones.
CATEGORIES = {
    "fruit": tuple("apple pear plum cherry lemon".split()),
    "animal": tuple("horse rabbit goat mouse tiger".split()),
    "flower": tuple("tulip lily daisy orchid poppy".split()),
    "insect": tuple("beetle moth wasp cricket ant".split()),
    "tool": tuple("hammer saw drill wrench axe".split()),
    "vehicle": tuple("car train bicycle boat tram".split()),
    "furniture": tuple("table chair shelf sofa desk".split()),
    "clothing": tuple("coat shirt scarf glove hat".split()),
}
LIVING = ("fruit", "animal", "flower", "insect")
NOUNS = tuple(itertools.chain.from_iterable(CATEGORIES.values()))
CATEGORY_OF = {noun: category for category, nouns in CATEGORIES.items() for noun in nouns}
AMBIGUOUS = tuple("bank spring seal match pitch crane bark bow".split())
# Relation -> the values that it can have.
RELATIONS = {
    "home": tuple(
        "paris london berlin madrid rome vienna prague oslo lisbon dublin athens warsaw "
        "sofia zagreb bern".split()
    ),
    "job": tuple(
        "baker doctor teacher farmer painter lawyer sailor tailor miner nurse pilot cook "
        "judge smith clerk".split()
    ),
    "sport": tuple(
        "tennis rowing chess boxing fencing hockey golf rugby judo sailing skiing diving "
        "cycling archery polo".split()
    ),
    "color": tuple(
        "red blue green black white purple brown orange pink grey yellow silver golden "
        "violet beige".split()
    ),
}
# Sets of label words: a demonstration shows which set an episode answers with.
PAIR_LABELS = (
    ("yes", "no", "maybe"),
    ("entail", "contradict", "neutral"),
    ("sure", "never", "perhaps"),
    ("agree", "deny", "unknown"),
)
SENSE_LABELS = (("living", "made"), ("one", "two"), ("left", "right"), ("high", "low"))
# Twice, so that half of the fact checks are answered with True or False.
CHECK_LABELS = (("True", "False"), ("correct", "wrong"), ("True", "False"), ("valid", "bogus"))

LANGUAGES = {"a": "rin", "b": "lum", "c": "nix"}
TRANSLATED = ALL_VERBS + NOUNS


def invented(language: str) -> tuple[str, ...]:
    """Return the 64 invented words of a language (`a`, `b` or `c`), in alphabetical order."""
    stems = itertools.product("bdfghjklmnprstvz", "aeou")
    return tuple("".join(stem) + LANGUAGES[language] for stem in stems)


def vocabulary_words() -> tuple[str, ...]:
    """All words by id: pad 0, EOS 1, unknown 2; filled up to a multiple of 32."""
    labels = itertools.chain.from_iterable(PAIR_LABELS + SENSE_LABELS + CHECK_LABELS)
    words = [PAD, EOS, UNKNOWN, QUERY, ANSWER, GIVES, NEXT, VERSUS, TOPIC, FACT, CHECK]
    words += [*dict.fromkeys(labels), *ENTITIES, *ALL_VERBS, *NOUNS, *CATEGORIES, *AMBIGUOUS]
    words += [*RELATIONS, *itertools.chain.from_iterable(RELATIONS.values())]
    words += itertools.chain.from_iterable(invented(language) for language in LANGUAGES)
    return (*words, *(f"<unused_{i}>" for i in range(-len(words) % 32)))
