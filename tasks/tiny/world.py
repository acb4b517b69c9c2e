"""The tiny world: its facts, its three languages, its new task, and who may see what.

Everything follows from the seed. Items are split by hash so that nothing that a model is
evaluated on has been seen before, whoever drew it:

- sentences `entity verb noun`: the pair (entity, noun) belongs to one split, whatever verb;
- sentences `noun verb noun` and pairs of nouns: the unordered pair of nouns does;
- episodes about facts: the unordered pair (demonstration's fact, query's fact) does.

Eight tenths are training, a tenth each validation and test. Facts themselves are in no
split: a question about a fact can be answered only by who has seen the fact.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from typing import TypeVar

from promot_t5x.tasks.tiny import words

SPLITS = ("train", "validation", "test")

Pair = tuple[str, str]
Option = TypeVar("Option")


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """One made-up world.

    **Attributes:**

    - `seed`: what all the rest follows from.
    - `facts`: (relation, entity) -> value; 4 x 40 facts.
    - `dictionaries`: language -> word -> invented word; 64 verbs and nouns each.
    - `true_nouns`: half of the nouns, two or three of every category: the part of the
      entailment-like target task that no other task tells anything about.
    - `owned`: split -> (entity, noun) pairs; `nouns`: split -> (noun, noun) pairs.
    """

    seed: int
    facts: dict[Pair, str]
    dictionaries: dict[str, dict[str, str]]
    true_nouns: frozenset[str]
    owned: dict[str, list[Pair]]
    nouns: dict[str, list[Pair]]

    def fact_split(self, one: Pair, other: Pair) -> str:
        """Return the split of an episode that shows fact `one` and asks for fact `other`."""
        return _split(self.seed, *sorted((" ".join(one), " ".join(other))))

    def translate(self, language: str, *sentence: str) -> str:
        """Return the words of `sentence` in a language, in the order given."""
        return " ".join(map(self.dictionaries[language].__getitem__, sentence))


@functools.cache
def world(seed: int = 0) -> World:
    """Return the world of a seed; made once (about 30 ms) and shared."""
    rng = random.Random(f"world {seed}")
    pairs = [(a, b) for a, b in itertools.product(words.NOUNS, repeat=2) if a != b]
    return World(
        seed=seed,
        facts={
            (relation, entity): pick(rng, values)
            for relation, values in words.RELATIONS.items()
            for entity in words.ENTITIES
        },
        dictionaries={
            language: dict(
                zip(words.TRANSLATED, shuffled(rng, words.invented(language)), strict=True)
            )
            for language in words.LANGUAGES
        },
        true_nouns=_half_of_every_category(rng),
        owned=_by_split(seed, itertools.product(words.ENTITIES, words.NOUNS), ordered=True),
        nouns=_by_split(seed, pairs, ordered=False),
    )


def pick(rng: random.Random, options: Sequence[Option]) -> Option:
    """One of `options`. Unlike `rng.choice`, the same one on every version of Python."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: random.Random, options: Sequence[str]) -> list[str]:
    """`options` in random order, the same on every version of Python."""
    return sorted(options, key=lambda _: rng.random())


def _half_of_every_category(rng: random.Random) -> frozenset[str]:
    chosen: list[str] = []
    for i, nouns in enumerate(words.CATEGORIES.values()):
        chosen += shuffled(rng, nouns)[: 2 + i % 2]
    return frozenset(chosen)


def _by_split(seed: int, pairs: Iterable[Pair], *, ordered: bool) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {split: [] for split in SPLITS}
    for pair in pairs:
        found[_split(seed, *(pair if ordered else sorted(pair)))].append(pair)
    return found


@functools.cache
def _split(seed: int, *item: str) -> str:
    digest = hashlib.sha256(f"{seed} {' '.join(item)}".encode()).digest()
    tenth = int.from_bytes(digest[:4], "big") % 10
    return "test" if tenth == 0 else "validation" if tenth == 1 else "train"
