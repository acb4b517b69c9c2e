"""The least time that a program can take on a slice, and what it is bound by.

Compute, HBM and the interconnect are taken to overlap perfectly, so the estimate is a bound that
real steps come near to but do not beat; utilisation at that bound is likewise the best there is.
"""

import dataclasses

from promot_t5x.planning.chips import Slice
from promot_t5x.planning.flops import Flops
from promot_t5x.planning.hlo import Traffic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds that a program would take if one resource alone limited it, and utilisation."""

    compute_seconds: float
    hbm_seconds: float
    interconnect_seconds: float
    model_flops_utilisation: float

    @property
    def seconds(self) -> float:
        """The bound of the step: the longest of the three."""
        return max(self.compute_seconds, self.hbm_seconds, self.interconnect_seconds)

    @property
    def bound(self) -> str:
        """Which one it is: `compute`, `HBM` or `interconnect`."""
        times = {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "interconnect": self.interconnect_seconds,
        }
        return max(times, key=lambda name: times[name])


def roofline(slice_: Slice, flops: Flops, traffic: Traffic) -> Roofline:
    """Estimate a program whose work is spread evenly over a slice's chips."""
    chip = slice_.chip
    peak = slice_.chips * chip.peak_flops
    interconnect = 0.0
    for collective, sent in traffic.sent_bytes.items():
        interconnect += sent / (
            chip.dcn_bandwidth if collective.across_slices else chip.ici_bandwidth
        )
    compute = flops.executed / peak
    hbm = traffic.hbm_bytes / chip.hbm_bandwidth
    seconds = max(compute, hbm, interconnect)
    return Roofline(
        compute_seconds=compute,
        hbm_seconds=hbm,
        interconnect_seconds=interconnect,
        model_flops_utilisation=flops.model / (peak * seconds),
    )
