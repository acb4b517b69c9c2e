"""The parts of `docs/demo.md` that are made from the world and from the base's card.

    python -m tools.demo_page docs/demo.md

writes them between their marks, `<!-- name -->` and `<!-- end -->`.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from promot_t5x.tasks import tiny
from promot_t5x.tasks.tiny import episodes, families

TARGETS = {"tiny_rte": "entailment", "tiny_enfr": "translation"}


def parts() -> dict[str, str]:
    """Each generated part by the name of its mark."""
    return {"suite": suite(), "targets": targets(), "base": base()}


def suite() -> str:
    """Tabulate the first test question of each in-context task."""
    rows = []
    for name in families.EVALUATED:
        made = episodes.shot_rows(name, 1, shots=1, split="test")
        rows.append((f"`{name}`", *_asked(made)))
    return _table(("task", "as asked", "answer"), rows)


def targets() -> str:
    """Tabulate the first test questions of each target."""
    rows = []
    for name, family in TARGETS.items():
        made = episodes.target_rows(family, 2, split="test")
        rows += [(f"`{name}`", *_asked(made, i)) for i in range(2)]
    return _table(("task", "as asked", "answer"), rows)


def base() -> str:
    """Hash and scores of the shipped base."""
    card = json.loads((Path(tiny.__file__).parent / "base" / "card.json").read_text())
    names = list(families.EVALUATED)
    rows = []
    for mixture, scores in card["scores"].items():
        shots = mixture.removeprefix("tiny_icl_")
        found = [scores[f"tiny_icl_{name}_{shots}"] for name in names]
        rows.append((shots, *(f"{s:.1f}" for s in (*found, sum(found) / len(found)))))
    return (
        f"Content hash `{card['hash']}`; exact match on the test split, in percent:\n\n"
        + _table(("", *names, "mean"), rows)
    )


def _asked(rows: episodes.Rows, index: int = 0) -> tuple[str, str]:
    return f"`{rows['inputs'][index]}`", f"`{rows['targets'][index]}`"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str) -> str:
    """Return the page with every generated part up to date."""
    for name, made in parts().items():
        start, end = f"<!-- {name} -->\n", "\n<!-- end -->"
        before, found, rest = text.partition(start)
        if not found:
            raise ValueError(f"the page has no mark {start.strip()}")
        text = before + start + made + end + rest.partition(end)[2]
    return text


def main(argv: Sequence[str]) -> int:
    """Fill the page in place."""
    (path,) = map(Path, argv)
    path.write_text(filled(path.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
