"""TPU chips in numbers, and slices of them by the names that Cloud TPU gives them.

Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read on 2026-11-25, except for the HBM that a
program may use, which is what the compiler itself allows (libtpu 0.0.42).
"""

import dataclasses
import math
import re
from collections.abc import Mapping

from promot_t5x.errors import UserError, did_you_mean

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of chip.

    **Attributes:**

    - `name`: as in a slice's name.
    - `peak_flops`: of bfloat16, a second.
    - `hbm_bytes`: what a program may take of it.
    - `hbm_bandwidth`: bytes a second.
    - `ici_bandwidth`: bytes a second that a chip sends along one axis of the torus, in both
      directions together; a collective over one mesh axis gets this much.
    - `dcn_bandwidth`: bytes a second and chip between slices.
    - `cores`: TensorCores that the number in the name counts for one chip.
    - `shapes`: chips of a slice -> the grid that they form.
    - `chips_per_host`: the grid of chips that one host holds, at most.
    - `compiler_options`: what the compiler needs to know to see a chip as one device.
    """

    name: str
    peak_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float
    cores: int
    shapes: Mapping[int, tuple[int, ...]]
    chips_per_host: tuple[int, int, int]
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)


# Grids of v4 and v5p are three-dimensional; a torus from 4x4x4 on.
_CUBES = {
    math.prod(shape): shape
    for shape in (
        (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8),
        (8, 8, 16), (8, 16, 16),
    )
}  # fmt: skip
_SQUARES = {
    math.prod(shape): shape
    for shape in ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
}
_MEGACORE = {"chip_config_name": "megacore"}

CHIPS = {
    chip.name: chip
    for chip in (
        # 2,400 Gbit/s over six links each way.
        Chip(
            name="v4",
            peak_flops=275e12,
            hbm_bytes=int(30.75 * GIB),
            hbm_bandwidth=1200e9,
            ici_bandwidth=100e9,
            dcn_bandwidth=6.25e9,
            cores=2,
            shapes=_CUBES,
            chips_per_host=(2, 2, 1),
            compiler_options=_MEGACORE,
        ),
        # 400 GB/s over four links, both ways; two 100 Gbit/s cards for eight chips.
        Chip(
            name="v5e",
            peak_flops=197e12,
            hbm_bytes=int(15.75 * GIB),
            hbm_bandwidth=819e9,
            ici_bandwidth=100e9,
            dcn_bandwidth=3.125e9,
            cores=1,
            shapes=_SQUARES,
            chips_per_host=(2, 2, 1),
        ),
        # 1,200 GB/s over six links, both ways; 50 Gbit/s a chip between slices.
        Chip(
            name="v5p",
            peak_flops=459e12,
            hbm_bytes=int(95.74 * GIB),
            hbm_bandwidth=2765e9,
            ici_bandwidth=200e9,
            dcn_bandwidth=6.25e9,
            cores=2,
            shapes=_CUBES,
            chips_per_host=(2, 2, 1),
            compiler_options=_MEGACORE,
        ),
        # 800 GB/s over four links, both ways; four 200 Gbit/s cards for eight chips.
        Chip(
            name="v6e",
            peak_flops=918e12,
            hbm_bytes=int(31.25 * GIB),
            hbm_bandwidth=1638e9,
            ici_bandwidth=200e9,
            dcn_bandwidth=12.5e9,
            cores=1,
            shapes=_SQUARES,
            chips_per_host=(2, 2, 1),
        ),
    )
}  # fmt: skip
_SPELLINGS = {"v5litepod": "v5e", **{name: name for name in CHIPS}}
_NAME = re.compile(r"([a-z0-9]+?)-(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Chips that one job gets: one slice, or several equal ones joined by the data center's net.

    **Attributes:**

    - `chip`: their kind.
    - `grid`: how the chips of one slice are arranged.
    - `slices`: how many.
    """

    chip: Chip
    grid: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """The number of chips of all slices together."""
        return math.prod(self.grid) * self.slices

    @property
    def name(self) -> str:
        """As Cloud TPU spells it, with the number of slices in front if there are several."""
        one = f"{self.chip.name}-{math.prod(self.grid) * self.chip.cores}"
        return one if self.slices == 1 else f"{self.slices}x {one}"


def find_slice(name: str, slices: int = 1) -> Slice:
    """Find the slice that Cloud TPU calls by a name.

    **Arguments:**

    - `name`: such as `v4-128`, `v5p-128` (both count TensorCores), `v5litepod-16`, `v5e-16` or
      `v6e-16` (chips).

    **Raises** `UserError` for a name that Cloud TPU does not offer.
    """
    match = _NAME.fullmatch(name)
    chip = find_chip(match[1] if match else name)
    offered = [f"{chip.name}-{count * chip.cores}" for count in chip.shapes]
    shape = chip.shapes.get(int(match[2]) // chip.cores) if match else None
    if match is None or shape is None or int(match[2]) % chip.cores:
        raise UserError(
            f"--topology={name}: there is no such slice. Slices of {chip.name}: "
            f"{', '.join(offered)}."
        )
    if slices < 1:
        raise UserError(f"--slices={slices}: give 1 or more.")
    return Slice(chip=chip, grid=shape, slices=slices)


def find_chip(name: str) -> Chip:
    """Find the chip of a name such as `v4`; `UserError` where there is none."""
    if name not in _SPELLINGS:
        raise UserError(
            f"{name!r} is not a kind of TPU chip that can be planned for: "
            f"{', '.join(_SPELLINGS)}.{did_you_mean(name, _SPELLINGS)}"
        )
    return CHIPS[_SPELLINGS[name]]


def sizes_of(chip: Chip) -> list[Slice]:
    """Every slice of a kind, the smallest first."""
    return [Slice(chip=chip, grid=chip.shapes[count]) for count in sorted(chip.shapes)]
