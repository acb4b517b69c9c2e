"""The accelerators of a run: the ones that it found, compared with those that were asked for.

JAX falls back to the CPU where it finds no accelerator, with a warning at most. A launcher that
paid for one therefore says so by `--require_devices`, and the run refuses to start on another.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping

from promot_t5x.errors import UserError, did_you_mean

_FLAG = "--require_devices"
_NAMES = ("platform", "kind", "count", "processes")
_GPU_PLATFORMS = ("cuda", "rocm", "gpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Devices:
    """The devices of a run, over all of its processes.

    **Attributes:**

    - `platform`: `cpu`, `gpu` or `tpu`.
    - `kind`: JAX's name of the first device, as in `TPU v4`.
    - `count`: devices of all processes.
    - `processes`: processes of the run.
    """

    platform: str
    kind: str
    count: int
    processes: int

    def __str__(self) -> str:
        plural = "es" if self.processes > 1 else ""
        return (
            f"{self.count} x {self.kind} (platform {self.platform}) in {self.processes} "
            f"process{plural}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirement:
    """The devices that a run was asked to use; what is None or empty is not compared.

    **Attributes:**

    - `platform`: `cpu`, `gpu` or `tpu`.
    - `kinds`: alternatives for the device kind. On GPUs one word of JAX's name is enough (`h100`);
      on TPUs the name must be the whole one, because `TPU v5` and `TPU v5 lite` differ.
    - `count`: devices of all processes.
    - `processes`: processes of the run.
    """

    platform: str | None = None
    kinds: tuple[str, ...] = ()
    count: int | None = None
    processes: int | None = None

    def __str__(self) -> str:
        values = (self.platform, "|".join(self.kinds) or None, self.count, self.processes)
        return ",".join(f"{n}={v}" for n, v in zip(_NAMES, values, strict=True) if v is not None)

    @property
    def flag(self) -> str:
        """The command-line flag that passes the requirement on to a run."""
        return f"{_FLAG}={self}"

    def check(self, found: Devices) -> None:
        """Compare the devices of a run with the required ones.

        **Raises:** `UserError` that names both, and likely causes.
        """
        if self.is_met_by(found):
            return
        causes = {
            "tpu": "The machine's image may lack the TPU runtime of this generation, or the "
            "environment lacks libtpu (pip install 'promot-t5x[tpu]').",
            "gpu": "The environment may lack JAX's CUDA plugin (pip install 'promot-t5x[cuda]'), "
            "or the job has fewer GPUs than it asked for.",
        }
        raise UserError(
            f"This run asked for {self} ({_FLAG}), and JAX found {found}. "
            f"{causes.get(self.platform or '', '')} Nothing was started.".replace("  ", " ")
        )

    def is_met_by(self, found: Devices) -> bool:
        """Whether the devices found are the required ones."""
        wanted = [kind.lower() for kind in self.kinds]
        kind = found.kind.lower()
        names = set(re.findall(r"[a-z0-9]+", kind)) if found.platform == "gpu" else {kind}
        return (
            self.platform in (None, found.platform)
            and (not wanted or any(name in names for name in wanted))
            and self.count in (None, found.count)
            and self.processes in (None, found.processes)
        )


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--require_devices`."""
    parser.add_argument(
        _FLAG,
        metavar="platform=P,kind=K,count=N,processes=M",
        help="refuse to run on other devices than these; any part may be left out",
    )


def parse(text: str) -> Requirement:
    """Read the value of `--require_devices`.

    **Raises:** `UserError` for a part that is not known, and a count that is no positive number.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in _NAMES or not equals or not value or name in given:
            raise UserError(
                f"{_FLAG}={text}: {part!r} is not one of platform=P, kind=K, count=N and "
                f"processes=M, each at most once.{did_you_mean(name, _NAMES)}"
            )
        given[name] = value
    for name in ("count", "processes"):
        if not re.fullmatch(r"[1-9]\d*", given.get(name, "1")):
            raise UserError(f"{_FLAG}={text}: {name} must be a positive integer.")
    return Requirement(
        platform=given.get("platform"),
        kinds=tuple(given["kind"].split("|")) if "kind" in given else (),
        count=int(given["count"]) if "count" in given else None,
        processes=int(given["processes"]) if "processes" in given else None,
    )


def implied(environ: Mapping[str, str]) -> Requirement:
    """Read from the environment of a Slurm job what it must find: a job that has GPUs uses them.

    `JAX_PLATFORMS` says that something else is meant.
    """
    has_gpus = environ.get("SLURM_GPUS_ON_NODE", "0") != "0" or "SLURM_JOB_GPUS" in environ
    if has_gpus and "JAX_PLATFORMS" not in environ:
        return Requirement(platform="gpu")
    return Requirement()


def found() -> Devices:
    """Ask JAX for the devices of the run, which starts its backends.

    **Raises:** `UserError` where JAX has none, as with a `JAX_PLATFORMS` that is not installed.
    """
    import jax

    try:
        first = jax.devices()[0]
    except RuntimeError as error:
        raise UserError(f"JAX finds no devices: {error}") from error
    platform = "gpu" if first.platform in _GPU_PLATFORMS else first.platform
    return Devices(
        platform=platform,
        kind=first.device_kind,
        count=jax.device_count(),
        processes=jax.process_count(),
    )


def announce(required: str | None) -> None:
    """Find the devices of this run, compare them with the required ones, and show them.

    **Arguments:**

    - `required`: the value of `--require_devices`; None where it was not given.

    **Raises:** `UserError` where the devices are others.
    """
    wanted = parse(required) if required is not None else implied(os.environ)
    devices = found()
    wanted.check(devices)
    from promot_t5x.distributed import processes

    if processes.is_primary():
        print(f"promot-t5x: devices: {devices}", file=sys.stderr, flush=True)
