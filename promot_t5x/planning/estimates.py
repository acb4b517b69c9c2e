"""One row of a plan: a program compiled for a slice, or found too large for it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from promot_t5x.planning import cache, compiler, hlo
from promot_t5x.planning.chips import Slice
from promot_t5x.planning.flops import Flops
from promot_t5x.planning.hlo import Collective, Traffic
from promot_t5x.planning.planned_runs import Program
from promot_t5x.planning.roofline import Roofline, roofline
from promot_t5x.progress import duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a program takes on a chip of a slice.

    **Attributes:**

    - `program`, `slice_name`: what was compiled for what.
    - `parameter_bytes`, `optimizer_bytes`: held by a chip.
    - `temporary_bytes`: activations, gradients and everything else that lives for one run of it.
    - `total_bytes`: everything that must be in HBM while it runs; where it does not fit, what it
      would need, or none if the compiler does not say.
    - `fits`: whether the compiler could place it.
    - `flops`: of one run, over all chips.
    - `traffic`, `roofline`: none where the program does not fit. Of `bounds` there is no traffic.
    - `steps`: as configured.
    - `compile_seconds`: on this machine, when it was compiled.
    """

    program: str
    slice_name: str
    parameter_bytes: int
    optimizer_bytes: int
    temporary_bytes: int
    total_bytes: int | None
    fits: bool
    flops: Flops
    traffic: Traffic | None
    roofline: Roofline | None
    steps: int | None
    compile_seconds: float


def estimate(program: Program, slice_: Slice, config: str, say: Callable[[str], None]) -> Estimate:
    """Compile a program for a slice, or remember what came of it before.

    **Arguments:**

    - `config`: the resolved configuration that the program is of.
    - `say`: told what is about to take long.
    """
    chip = slice_.chip
    held = program.parameter_bytes + program.optimizer_bytes + program.waiting_bytes
    name = cache.key(config, program.name, slice_.name, slice_.grid)
    answer = cache.load(name)
    if answer is None and held > chip.hbm_bytes:
        answer = {"needed_bytes": held, "seconds": 0.0, "traffic": None}
    if answer is None:
        answer = _compiled(program, slice_, say)
        cache.save(name, answer)
    traffic = _traffic(answer["traffic"])
    total: int | None = answer.get("needed_bytes")
    if traffic:
        total = answer["total_bytes"] + program.waiting_bytes
    return Estimate(
        program=program.name,
        slice_name=slice_.name,
        parameter_bytes=program.parameter_bytes,
        optimizer_bytes=program.optimizer_bytes,
        temporary_bytes=answer["temporary_bytes"] if traffic else 0,
        total_bytes=total,
        fits=traffic is not None and (total or 0) <= chip.hbm_bytes,
        flops=program.flops,
        traffic=traffic,
        roofline=roofline(slice_, program.flops, traffic) if traffic else None,
        steps=program.steps,
        compile_seconds=answer["seconds"],
    )


def bounds(program: Program, slice_: Slice, config: str, say: Callable[[str], None]) -> Estimate:
    """Tell what a program takes at least, in no time, for it is not compiled.

    HBM is what weights, optimizer and what waits beside them hold; time is what the operations take
    at the chips' peak. The arguments are those of `estimate`.
    """
    del config, say
    held = program.parameter_bytes + program.optimizer_bytes + program.waiting_bytes
    nothing = Traffic(hbm_bytes=0, sent_bytes={}, calls={})
    return Estimate(
        program=program.name,
        slice_name=slice_.name,
        parameter_bytes=program.parameter_bytes,
        optimizer_bytes=program.optimizer_bytes,
        temporary_bytes=0,
        total_bytes=held,
        fits=held <= slice_.chip.hbm_bytes,
        flops=program.flops,
        traffic=None,
        roofline=roofline(slice_, program.flops, nothing),
        steps=program.steps,
        compile_seconds=0.0,
    )


def _compiled(program: Program, slice_: Slice, say: Callable[[str], None]) -> dict[str, Any]:
    lowered = program.lower()
    name = cache.program_key(lowered, slice_.name, slice_.grid)
    answer = cache.load(name)
    if answer is None:
        say(
            f"compiling {program.name} for {slice_.name} … (one to five minutes for 11 B "
            "parameters with scanned layers on two idle cores, seconds for a small one)"
        )
        answer = dataclasses.asdict(compiler.compile(lowered))
        say(f"{program.name} took {duration(answer['seconds'])} to compile")
        cache.save(name, answer)
    text = answer.pop("text", None)
    return answer | {"traffic": _moved(text, slice_) if text else None}


def _moved(text: str, slice_: Slice) -> dict[str, Any]:
    moved = hlo.traffic(text, chips_per_slice=slice_.chips // slice_.slices)
    return {
        "hbm": moved.hbm_bytes,
        "sent": [[*key, size, moved.calls[key]] for key, size in moved.sent_bytes.items()],
    }


def _traffic(kept: Mapping[str, Any] | None) -> Traffic | None:
    if kept is None:
        return None
    sent: Sequence[Any] = kept["sent"]
    return Traffic(
        hbm_bytes=kept["hbm"],
        sent_bytes={Collective(*row[:3]): row[3] for row in sent},
        calls={Collective(*row[:3]): row[4] for row in sent},
    )
