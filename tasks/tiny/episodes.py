"""Episodes of the tiny world: demonstrations, a query and its answer, as rows of text.

    demonstration => answer ; demonstration => answer ; <q> query <x1>

Demonstrations always come from the training split, the query from the split that is asked
for. Rows are a function of the arguments, so the same on every machine.
"""

import itertools
import random
from collections.abc import Callable, Iterator

from promot_t5x.tasks.tiny import families, words
from promot_t5x.tasks.tiny.families import Family, Item
from promot_t5x.tasks.tiny.world import World, pick, shuffled, world

# (inputs, targets)
Asked = tuple[str, str]
# Columns of equal length: inputs, targets, id.
Rows = dict[str, list[str]]

DENOISING_SHARE = 0.15
# Shares of pretraining episodes with 0, 1 and 2 demonstrations.
SHOT_SHARES = (0.15, 0.55, 0.30)
_DRAWS_PER_ROW = 50


def query(question: str) -> str:
    """Return the encoder's text for a question without demonstrations."""
    return f"{words.QUERY} {question} {words.ANSWER}"


def episode(
    made: World, rng: random.Random, family: Family, *, split: str, shots: int, style: int
) -> Asked:
    """Return a query of `family` after `shots` demonstrations, all in one style."""
    asked = family.draw(made, rng, split)
    shown: list[Item] = []
    while len(shown) < shots:
        item = family.draw(made, rng, "train")
        if item != asked and item not in shown and _may_show(made, family, item, asked, split):
            shown.append(item)
    text = "".join(
        f"{family.question(item)} {words.GIVES} {family.answer(made, item, style)} {words.NEXT} "
        for item in shown
    )
    return text + query(family.question(asked)), family.answer(made, asked, style)


def denoising(made: World, rng: random.Random) -> Asked:
    """Text of one to three parts with one span of one to three words missing.

    `anna home paris ; <x1> job baker` -> `boris`. The text is facts, training sentences of
    either kind, or training sentences in language C, which is met nowhere else.
    """
    draw = pick(rng, (_fact_text, _entity_text, _noun_text, _language_c_text, _fact_text))
    parts = [draw(made, rng) for _ in range(1 + int(3 * rng.random()))]
    chosen = pick(rng, range(len(parts)))
    start = pick(rng, range(3))
    stop = 1 + pick(rng, range(start, 3))
    part = parts[chosen]
    parts[chosen] = (*part[:start], words.ANSWER, *part[stop:])
    text = f" {words.NEXT} ".join(" ".join(part) for part in parts)
    return text, " ".join(part[start:stop])


def pretraining_rows(count: int, *, seed: int, noise: float, split: str = "train") -> Rows:
    """Episodes of all families, and denoising.

    **Arguments:**

    - `count`: number of rows.
    - `seed`: another seed, other episodes of the same world.
    - `noise`: probability that the query's answer is replaced by that of an unrelated random
      question; it keeps the pretrained model's answers from being certain.
    - `split`: where the queries come from.
    """
    made, rng = world(), random.Random(f"pretraining {seed} {split}")
    table = list(families.ALL)
    weighted = [name for name in table for _ in range(round(10 * families.ALL[name].weight))]
    rows: Rows = {"inputs": [], "targets": [], "id": []}
    for i in range(count):
        if rng.random() < DENOISING_SHARE:
            name, (inputs, targets) = "denoising", denoising(made, rng)
        else:
            name = pick(rng, weighted)
            inputs, targets = _random_episode(made, rng, families.ALL[name], split)
            if rng.random() < noise:
                other = families.ALL[pick(rng, [n for n in table if n != name])]
                targets = _random_episode(made, rng, other, split)[1]
        _append(rows, inputs, targets, f"{name}/{i}")
    return rows


def shot_rows(name: str, count: int, *, shots: int, split: str) -> Rows:
    """Distinct evaluation episodes of one family, its styles in turn."""
    made, rng = world(), random.Random(f"{name} {shots} {split}")
    family = families.EVALUATED[name]

    def asked() -> Iterator[Asked]:
        while True:
            for style in range(family.styles):
                yield episode(made, rng, family, split=split, shots=shots, style=style)

    return _distinct(asked(), count)


def target_rows(name: str, count: int, *, split: str, shots: int = 0) -> Rows:
    """Distinct questions of a target (`entailment` or `translation`), after `shots` of its own."""
    made, rng = world(), random.Random(f"{name} {shots} {split}" if shots else f"{name} {split}")
    family = families.TARGETS[name]

    def asked() -> Iterator[Asked]:
        while True:
            yield episode(made, rng, family, split=split, shots=shots, style=0)

    return _distinct(asked(), count)


def with_shuffled_answers(make: Callable[..., Rows], count: int, *, split: str) -> Rows:
    """Return the rows of `make`, their answers permuted among them: the format without the task."""
    rows = make(count, split=split)
    return {**rows, "targets": shuffled(random.Random(f"answers {split}"), rows["targets"])}


def _random_episode(made: World, rng: random.Random, family: Family, split: str) -> Asked:
    draw = rng.random()
    shots = 0 if draw < SHOT_SHARES[0] else 1 if draw < sum(SHOT_SHARES[:2]) else 2
    style = pick(rng, range(family.styles))
    return episode(made, rng, family, split=split, shots=shots, style=style)


def _may_show(made: World, family: Family, item: Item, asked: Item, split: str) -> bool:
    if not family.about_facts:
        return family.tells(item)
    return made.fact_split((item[0], item[1]), (asked[0], asked[1])) == split


def _fact_text(made: World, rng: random.Random) -> Item:
    relation, entity = pick(rng, tuple(words.RELATIONS)), pick(rng, words.ENTITIES)
    return entity, relation, made.facts[relation, entity]


def _entity_text(made: World, rng: random.Random) -> Item:
    return families.draw_pair(made, rng, "train")[:3]


def _noun_text(made: World, rng: random.Random) -> Item:
    return families.draw_sentence(made, rng, "train")


def _language_c_text(made: World, rng: random.Random) -> Item:
    return tuple(made.translate("c", *_noun_text(made, rng)[::-1]).split())


def _distinct(asked: Iterator[Asked], count: int) -> Rows:
    rows: Rows = {"inputs": [], "targets": [], "id": []}
    seen: set[Asked] = set()
    for inputs, targets in itertools.islice(asked, _DRAWS_PER_ROW * count):
        if (inputs, targets) not in seen:
            seen.add((inputs, targets))
            _append(rows, inputs, targets, str(len(rows["id"])))
        if len(seen) == count:
            return rows
    raise ValueError(f"{count} distinct questions are wanted but only {len(seen)} were found")


def _append(rows: Rows, inputs: str, targets: str, example_id: str) -> None:
    rows["inputs"].append(inputs)
    rows["targets"].append(targets)
    rows["id"].append(example_id)
