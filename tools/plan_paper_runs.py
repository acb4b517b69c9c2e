"""Writes docs/plan.md: what the paper's runs take of which slices, as the compiler says.

`make plan-table` runs it. What was compiled before is remembered (`cache`); from nothing it takes
hours of one core, for compiling an XXL step takes minutes.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from promot_t5x.cli.plan import say
from promot_t5x.data.batch_rows import Shape
from promot_t5x.planning import compiler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """Rows of the table: programs of a run, as its file has them, on a slice.

    **Attributes:**

    - `run`: a file of gin/paper.
    - `topology`: a slice by name; or `fit`, a kind of chip of which the smallest is looked for.
    - `only`: the programs.
    - `settings`: gin statements in place of what the file says.
    - `packed`: the shape of the batches; their largest if None.
    """

    run: str
    topology: str | None = None
    fit: str | None = None
    only: tuple[str, ...]
    settings: tuple[str, ...] = ()
    packed: Shape | None = None


TRAINING = ("stage_one", "stage_two", "standard")
SUITE = ("ask icl_1shot",)
# What 64 examples of RTE behind a prompt of 100 lie in, on a mesh whose data axis is 8.
PACKED = Shape(24, 612, 16)
AS_SHIPPED = (
    Planned(run="mt5_xxl_rte", topology="v4-128", only=("stage_two",)),
    Planned(run="mt5_xxl_rte", topology="v4-128", only=("stage_two",), packed=PACKED),
    Planned(run="mt5_xxl_enfr_1shot", topology="v4-128", only=("stage_two",)),
)
# The mesh that gin/paper had before, one example a row.
BEFORE = ("NUM_PARTITIONS = 4", "PACK = False")
ON_64_CHIPS = tuple(
    Planned(run=run, topology="v4-128", only=only, settings=BEFORE)
    for run, only in (
        ("mt5_xxl_rte", (*TRAINING, *SUITE)),
        ("mt5_xxl_enfr", (*TRAINING, "ask wmt14_enfr with prompt")),
        ("t5_1_1_xxl_rte", ("stage_one", "stage_two")),
        ("mt5_xl_rte", ("stage_one", "stage_two")),
    )
)
SMALLEST = tuple(
    Planned(run=run, fit=kind, only=only, settings=("PACK = False",))
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

## The paper's 64 chips, as shipped

A step of `PACK = 'batch'` has a few shapes; each row is one of them, as rows x inputs x targets.
The largest is the batch one example a row, which most steps of a task do not need.
"""
BEFORE_HEAD = """
## The paper's 64 chips, with a model over four

With `NUM_PARTITIONS = 4` and `PACK = False`, one example a row: stage two needs nearly twice the
memory and more time.
"""
SMALLEST_HEAD = """
## The smallest slices

Found by `promot-t5x plan --fit`, with the most frugal settings: parameters over both axes of the
mesh, everything computed again, microbatches of a row a chip, frozen weights in bfloat16, one
example a row. A larger slice is faster; `--search` finds what suits it.
"""


def main() -> int:
    """Print the document."""
    compiler.prepare()
    from promot_t5x.planning import table

    print(HEAD.format(versions=_versions()))
    _print(["run", "mesh", "shape", *table.HEADINGS], _rows(AS_SHIPPED))
    print(BEFORE_HEAD)
    _print(["run", "mesh", *table.HEADINGS], _rows(ON_64_CHIPS))
    print(SMALLEST_HEAD)
    _print(["run", "slice", "mesh", *table.HEADINGS], _rows(SMALLEST))
    return 0


def _rows(planned: Sequence[Planned]) -> Iterator[list[str]]:
    from promot_t5x.planning import chips, planned_runs, settings_search, table

    for each in planned:

        def read(extra: Sequence[str], each: Planned = each) -> planned_runs.Run:
            bindings = [*each.settings, *extra]
            return planned_runs.read([f"paper/{each.run}.gin"], bindings, [], each.packed)

        if each.fit:
            trial = settings_search.fit(read, chips.find_chip(each.fit), each.only, say)[-1]
        else:
            assert each.topology
            trial = settings_search.plan(read, chips.find_slice(each.topology), each.only, say)
        for estimate in trial.estimates:
            where = [trial.slice_.name] if each.fit else []
            shape = [] if each.settings else [str(each.packed or _whole(trial, estimate.program))]
            yield [each.run, *where, trial.mesh, *shape, *table.row(estimate, trial.slice_)]


def _whole(trial: Any, name: str) -> Shape:
    data = next(stage for stage in trial.run.stages if stage.name == name).train_dataset
    return Shape(data.batch_size, **data.task_feature_lengths)


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
