"""Accelerators by the names that clouds give them: one table of TPU generations.

A runtime version is the image that a Cloud TPU VM starts from. Each generation needs its own; with
another one the VM starts, and JAX finds no TPU on it. Source of the versions:
cloud.google.com/tpu/docs/runtimes; of the device kinds: JAX's `pallas/mosaic/tpu_info.py`.
"""

import dataclasses
import re

from promot_t5x.distributed.devices import Requirement
from promot_t5x.errors import UserError, did_you_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuGeneration:
    """One generation of TPUs.

    **Attributes:**

    - `name`: the name that `promot-t5x plan` uses.
    - `cloud_prefix`: the prefix of gcloud's accelerator types.
    - `runtime_version`: the image of its VMs.
    - `device_kinds`: the names that JAX may give to one of its devices.
    - `count_per_device`: how much the number in an accelerator type counts for one JAX device. The
      number counts TensorCores up to v5p, of which JAX sees two as one device on v4 and v5p.
    - `gke_accelerator`: the prefix of GKE's node label.
    - `devices_per_chip`: what JAX makes of one chip of a GKE topology.
    """

    name: str
    cloud_prefix: str
    runtime_version: str
    device_kinds: tuple[str, ...]
    count_per_device: int
    gke_accelerator: str
    devices_per_chip: int = 1


TPU_GENERATIONS = (
    TpuGeneration(
        name="v2",
        cloud_prefix="v2",
        runtime_version="tpu-ubuntu2204-base",
        device_kinds=("TPU v2",),
        count_per_device=1,
        gke_accelerator="tpu-v2",
        devices_per_chip=2,
    ),
    TpuGeneration(
        name="v3",
        cloud_prefix="v3",
        runtime_version="tpu-ubuntu2204-base",
        device_kinds=("TPU v3",),
        count_per_device=1,
        gke_accelerator="tpu-v3",
        devices_per_chip=2,
    ),
    TpuGeneration(
        name="v4",
        cloud_prefix="v4",
        runtime_version="tpu-ubuntu2204-base",
        device_kinds=("TPU v4",),
        count_per_device=2,
        gke_accelerator="tpu-v4",
    ),
    TpuGeneration(
        name="v5e",
        cloud_prefix="v5litepod",
        runtime_version="v2-alpha-tpuv5-lite",
        device_kinds=("TPU v5 lite", "TPU v5e"),
        count_per_device=1,
        gke_accelerator="tpu-v5-lite",
    ),
    TpuGeneration(
        name="v5p",
        cloud_prefix="v5p",
        runtime_version="v2-alpha-tpuv5",
        device_kinds=("TPU v5", "TPU v5p"),
        count_per_device=2,
        gke_accelerator="tpu-v5p",
    ),
    TpuGeneration(
        name="v6e",
        cloud_prefix="v6e",
        runtime_version="v2-alpha-tpuv6e",
        device_kinds=("TPU v6 lite", "TPU v6e"),
        count_per_device=1,
        gke_accelerator="tpu-v6e",
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuSlice:
    """A slice of Cloud TPU.

    **Attributes:**

    - `generation`: the generation of its chips.
    - `count`: the number in its accelerator type.
    """

    generation: TpuGeneration
    count: int

    @property
    def accelerator_type(self) -> str:
        """The name that gcloud takes, as in `v5litepod-16`."""
        return f"{self.generation.cloud_prefix}-{self.count}"

    def requirement(self, slices: int) -> Requirement:
        """Return what a run on so many such slices must find."""
        return Requirement(
            platform="tpu",
            kinds=self.generation.device_kinds,
            count=slices * self.count // self.generation.count_per_device,
        )


def find_tpu_slice(accelerator_type: str) -> TpuSlice:
    """Find a slice by a name such as `v4-128`, `v5litepod-16` or `v5e-16`.

    **Raises:** `UserError` for a name of no known generation, and a number that is none.
    """
    match = re.fullmatch(r"([a-z0-9]+?)-([1-9]\d*)", accelerator_type)
    names = {g.cloud_prefix: g for g in TPU_GENERATIONS} | {g.name: g for g in TPU_GENERATIONS}
    prefix = match[1] if match else accelerator_type.partition("-")[0]
    generation = names.get(prefix)
    if match is None or generation is None:
        raise UserError(
            f"--accelerator_type={accelerator_type}: there is no such slice; give a generation and "
            f"its size, as in v4-128, of {', '.join(names)}.{did_you_mean(prefix, names)}"
        )
    count = int(match[2])
    if count % generation.count_per_device:
        raise UserError(
            f"--accelerator_type={accelerator_type}: the number counts TensorCores, of which a "
            f"chip of {generation.name} has {generation.count_per_device}."
        )
    return TpuSlice(generation=generation, count=count)


def gke_requirement(accelerator: str, chips: int, processes: int) -> Requirement:
    """Return what a run on GKE nodes must find.

    **Arguments:**

    - `accelerator`: the nodes' label, as in `tpu-v5-lite-podslice` or `nvidia-h100-80gb`. Of an
      unknown generation of TPUs only the platform is required.
    - `chips`: TPU chips or GPUs of the whole run.
    - `processes`: processes of the whole run.
    """
    if not accelerator.startswith("tpu"):
        # `nvidia-h100-80gb` is an "NVIDIA H100 80GB HBM3" to JAX, `nvidia-tesla-t4` a "Tesla T4".
        model = re.search(r"(?:^|-)([a-z]+\d+)(?:-|$)", accelerator)
        kinds = (model[1],) if model else ()
        return Requirement(platform="gpu", kinds=kinds, count=chips, processes=processes)
    for generation in TPU_GENERATIONS:
        if accelerator.startswith(generation.gke_accelerator + "-"):
            return Requirement(
                platform="tpu",
                kinds=generation.device_kinds,
                count=chips * generation.devices_per_chip,
                processes=processes,
            )
    return Requirement(platform="tpu", processes=processes)
