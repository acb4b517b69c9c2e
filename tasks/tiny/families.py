"""The families of questions that the tiny world asks: how an item is drawn and answered.

An item is a tuple of words. The same item often belongs to several families, so that only a
demonstration tells which answer is wanted; where a family has several *styles* (sets of label
words), the demonstration tells the style as well.
"""

import dataclasses
import random
from collections.abc import Callable

from promot_t5x.tasks.tiny import words
from promot_t5x.tasks.tiny.world import World, pick

Item = tuple[str, ...]

_VERB_CLASS = {verb: i for i, verbs in enumerate(words.VERBS) for verb in verbs}
_SENSE = {noun: int(words.CATEGORY_OF[noun] not in words.LIVING) for noun in words.NOUNS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of question.

    Attributes:
      weight: its share of the pretraining episodes, relative to the other families; targets are
        in none.
      draw: (world, rng, split) -> item.
      question: item -> text.
      answer: (world, item, style) -> text.
      styles: how many sets of label words there are; 1 where answers have no labels.
      about_facts: whether items are facts, which all splits share.
      tells: whether an item, when demonstrated, tells this family from the others that ask
        in the same way; only such items are demonstrated.

    """

    weight: float = 0.0
    draw: Callable[[World, random.Random, str], Item]
    question: Callable[[Item], str]
    answer: Callable[[World, Item, int], str]
    styles: int = 1
    about_facts: bool = False
    tells: Callable[[Item], bool] = lambda _: True


def draw_pair(world: World, rng: random.Random, split: str) -> Item:
    """(entity, verb, noun, other verb): premise and hypothesis of the CB-like family."""
    entity, noun = pick(rng, world.owned[split])
    verb, other = _two(rng, words.ALL_VERBS)
    return entity, verb, noun, other


def ask_pair(item: Item) -> str:
    """`anna sees apple / anna loves apple`."""
    entity, verb, noun, other = item
    return f"{entity} {verb} {noun} {words.VERSUS} {entity} {other} {noun}"


def verb_class(verb: str) -> int:
    """0, 1 or 2: what the CB-like family asks about the hypothesis's verb."""
    return _VERB_CLASS[verb]


def draw_sentence(world: World, rng: random.Random, split: str) -> Item:
    """(noun, verb, noun)."""
    subject, other = pick(rng, world.nouns[split])
    return subject, pick(rng, words.ALL_VERBS), other


def _draw_senses(world: World, rng: random.Random, split: str) -> Item:
    return pick(rng, words.AMBIGUOUS), *pick(rng, world.nouns[split])


def _draw_entailment(world: World, rng: random.Random, split: str) -> Item:
    """As `draw_pair`, the hypothesis's verb of class 2 in 30% and of 0 or 1 in 35% each."""
    entity, verb, noun, _ = draw_pair(world, rng, split)
    kind = 2 if rng.random() < 0.3 else int(rng.random() < 0.5)
    return entity, verb, noun, pick(rng, [v for v in words.VERBS[kind] if v != verb])


def _answer_entailment(world: World, item: Item, _style: int) -> str:
    *_, noun, verb = item
    kind = verb_class(verb)
    return "True" if kind == 0 or (kind == 2 and noun in world.true_nouns) else "False"


def _draw_fact(world: World, rng: random.Random, split: str) -> Item:
    return pick(rng, tuple(words.RELATIONS)), pick(rng, words.ENTITIES)


def _draw_claim(world: World, rng: random.Random, split: str) -> Item:
    relation, entity = _draw_fact(world, rng, split)
    value = world.facts[relation, entity]
    if rng.random() < 0.5:
        value = pick(rng, [v for v in words.RELATIONS[relation] if v != value])
    return relation, entity, value


def _draw_document(world: World, rng: random.Random, split: str) -> Item:
    """Three sentences of different subjects, then the number of the topic sentence."""
    pairs: dict[str, str] = {}
    while len(pairs) < 3:
        entity, noun = pick(rng, world.owned[split])
        pairs.setdefault(entity, noun)
    sentences = (w for e, n in pairs.items() for w in (e, pick(rng, words.ALL_VERBS), n))
    return *sentences, pick(rng, "012")


def _ask_document(item: Item) -> str:
    text = list(item[:9])
    text.insert(3 * int(item[9]), words.TOPIC)
    return " ".join(text)


def _ask_senses(item: Item) -> str:
    word, one, other = item
    return f"{word} {one} {words.VERSUS} {word} {other}"


def _ask_fact(item: Item) -> str:
    return f"{words.FACT} {item[0]} {item[1]}"


def _ask_claim(item: Item) -> str:
    return " ".join((*item, words.CHECK))


def _answer_claim(world: World, item: Item, style: int) -> str:
    return words.CHECK_LABELS[style][int(world.facts[item[0], item[1]] != item[2])]


def _topic(item: Item) -> str:
    start = 3 * int(item[9])
    return " ".join(item[start : start + 3])


def _two(rng: random.Random, options: tuple[str, ...]) -> tuple[str, str]:
    first, second = pick(rng, options), pick(rng, options)
    return (first, second) if first != second else _two(rng, options)


def _of_fact(answer: Callable[[World, Item, int], str]) -> Family:
    return Family(weight=1.5, draw=_draw_fact, question=_ask_fact, answer=answer, about_facts=True)


def _of_sentence(weight: float, answer: Callable[[World, Item], str]) -> Family:
    return Family(
        weight=weight, draw=draw_sentence, question=" ".join, answer=lambda w, i, _: answer(w, i)
    )


def _of_document(weight: float, answer: Callable[[Item], str], topics: str = "012") -> Family:
    """Return a family that asks something of a short document.

    `topics` says where the topic may be in a demonstration. Were the first sentence the topic, its
    demonstration would not tell "the topic" from "the first sentence".
    """
    return Family(
        weight=weight,
        draw=_draw_document,
        question=_ask_document,
        answer=lambda _world, item, _style: answer(item),
        tells=lambda item: item[9] in topics,
    )


EVALUATED = {
    "cb": Family(
        weight=1.0,
        draw=draw_pair,
        question=ask_pair,
        answer=lambda _, item, style: words.PAIR_LABELS[style][verb_class(item[3])],
        styles=len(words.PAIR_LABELS),
    ),
    "wic": Family(
        weight=1.0,
        draw=_draw_senses,
        question=_ask_senses,
        answer=lambda _, item, style: words.SENSE_LABELS[style][_SENSE[item[2]]],
        styles=len(words.SENSE_LABELS),
    ),
    "qa_short": _of_fact(lambda world, item, _: world.facts[item[0], item[1]]),
    "qa_full": _of_fact(
        lambda world, item, _: f"{item[1]} {item[0]} {world.facts[item[0], item[1]]}"
    ),
    "trans_a": _of_sentence(1.5, lambda world, i: world.translate("a", i[0], i[2], i[1])),
    "trans_b": _of_sentence(1.5, lambda world, i: world.translate("b", i[1], i[0], i[2])),
    "sum_topic": _of_document(1.5, _topic, "1"),
    "sum_keys": _of_document(1.0, lambda item: " ".join(item[:9:3])),
}
ALL = EVALUATED | {
    "copy": _of_sentence(0.7, lambda _, item: " ".join(item)),
    "reverse": _of_sentence(0.7, lambda _, item: " ".join(item[::-1])),
    "last": _of_sentence(0.4, lambda _, item: item[2]),
    "category": _of_sentence(0.5, lambda _, item: words.CATEGORY_OF[item[0]]),
    "first": _of_document(0.5, lambda item: " ".join(item[:3]), "12"),
    "final": _of_document(0.5, lambda item: " ".join(item[6:9]), "01"),
    "objects": _of_document(0.7, lambda item: " ".join(item[2:9:3])),
    "fact_check": Family(
        weight=0.8,
        draw=_draw_claim,
        question=_ask_claim,
        answer=_answer_claim,
        styles=len(words.CHECK_LABELS),
    ),
}
# What is fine-tuned on, and met nowhere in pretraining.
TARGETS = {
    # The hypothesis's verb decides in 70% (class 0 True, 1 False: known from the CB-like family);
    # with a verb of class 2 the noun decides, by a halving of the nouns that is new.
    "entailment": Family(draw=_draw_entailment, question=ask_pair, answer=_answer_entailment),
    # The reversed sentence in language C.
    "translation": Family(
        draw=draw_sentence,
        question=" ".join,
        answer=lambda world, item, _: world.translate("c", *item[::-1]),
    ),
}
