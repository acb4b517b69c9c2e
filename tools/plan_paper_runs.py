"""Writes docs/plan.md: what the paper's runs take of which slices, as the compiler says.

`make plan-table` runs it. What was compiled before is remembered (`cache`); from nothing it takes
hours of one core, for compiling an XXL step takes minutes.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from promot_t5x.cli.plan import say
from promot_t5x.planning import compiler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """Rows of the table: programs of a run, as its file has them, on a slice.

    **Attributes:**

    - `run`: a file of gin/paper.
    - `topology`: a slice by name; or `fit`, a kind of chip of which the smallest is looked for.
    - `only`: the programs.
    """

    run: str
    topology: str | None = None
    fit: str | None = None
    only: tuple[str, ...]


TRAINING = ("stage_one", "stage_two", "standard")
SUITE = ("ask icl_1shot",)
ON_64_CHIPS = (
    Planned(run="mt5_xxl_rte", topology="v4-128", only=(*TRAINING, *SUITE)),
    Planned(run="mt5_xxl_enfr", topology="v4-128", only=(*TRAINING, "ask wmt14_enfr with prompt")),
    Planned(run="t5_1_1_xxl_rte", topology="v4-128", only=("stage_one", "stage_two")),
    Planned(run="mt5_xl_rte", topology="v4-128", only=("stage_one", "stage_two")),
)
SMALLEST = tuple(
    Planned(run=run, fit=kind, only=only)
    for run, only in (
        ("mt5_xxl_rte", ("stage_one",)),
        ("mt5_xxl_rte", ("stage_two", "standard")),
        ("mt5_xxl_rte", SUITE),
        ("mt5_xxl_enfr", ("stage_one",)),
        ("mt5_xxl_enfr", ("stage_two", "standard")),
    )
    for kind in ("v5e", "v5p", "v6e")
)

HEAD = """\
# What the paper's runs take

Made by `make plan-table` ({versions}). Every number comes from the TPU compiler, or is
computed from the program that it made; no TPU was used. For other slices and settings ask
`promot-t5x plan`.

Params, optimizer, temporaries: GiB a chip. HBM a chip: all that must be in it, of what a program
may take. TFLOP: of the whole batch, recomputation apart. Step, MFU, time: the best that the slice
allows if compute, HBM and network overlap wholly; a real run comes near at best. Rows named `ask`
decode one batch of 64 with beam search of width 4, inputs and answers at their longest. Times leave
out evaluations.

## The paper's 64 chips
"""
SMALLEST_HEAD = """
## The smallest slices

Found by `promot-t5x plan --fit`, with the most frugal settings: parameters over both axes of the
mesh, everything computed again, microbatches of a row a chip, frozen weights in bfloat16. A larger
slice is faster; `--search` finds what suits it.
"""


def main() -> int:
    """Print the document."""
    compiler.prepare()
    from promot_t5x.planning import table

    print(HEAD.format(versions=_versions()))
    _print(["run", "mesh", *table.HEADINGS], _rows(ON_64_CHIPS))
    print(SMALLEST_HEAD)
    _print(["run", "slice", "mesh", *table.HEADINGS], _rows(SMALLEST))
    return 0


def _rows(planned: Sequence[Planned]) -> Iterator[list[str]]:
    from promot_t5x.planning import chips, planned_runs, settings_search, table

    for each in planned:

        def read(extra: Sequence[str], each: Planned = each) -> planned_runs.Run:
            return planned_runs.read([f"paper/{each.run}.gin"], extra, [])

        if each.fit:
            trial = settings_search.fit(read, chips.find_chip(each.fit), each.only, say)[-1]
        else:
            assert each.topology
            trial = settings_search.plan(read, chips.find_slice(each.topology), each.only, say)
        for estimate in trial.estimates:
            where = [trial.slice_.name] if each.fit else []
            yield [each.run, *where, trial.mesh, *table.row(estimate, trial.slice_)]


def _print(headings: Sequence[str], rows: Iterator[list[str]]) -> None:
    named = [heading or "program" for heading in headings]
    print("| " + " | ".join(named) + " |", "|" + "---|" * len(named), sep="\n")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def _versions() -> str:
    from importlib.metadata import version

    packages: list[Any] = [f"{name} {version(name)}" for name in ("jax", "jaxlib")]
    return ", ".join([*packages, compiler.LIBTPU.replace("==", " ")])


if __name__ == "__main__":
    sys.exit(main())
