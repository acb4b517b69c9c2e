"""The TPU compiler on a machine without TPUs: devices to compile for, and what it answers.

The compiler is libtpu, from PyPI. JAX tries a libtpu that it can import first whenever it starts,
which on a machine without TPUs is slow and noisy; so it is kept in a directory of its own that
only planning looks into, unless TPU_LIBRARY_PATH names another.
"""

import dataclasses
import importlib.util
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from promot_t5x.errors import UserError
from promot_t5x.planning.chips import Slice

LIBTPU = "libtpu==0.0.42.1"  # the version that jax 0.10.2 asks for
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED")
_NEEDS = re.compile(r"[Uu]sed ([\d.]+)([KMGT])|\(([\d.]+)([KMGT])\) exceeds available HBM")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def directory() -> Path:
    """Where libtpu lies apart from what the environment imports."""
    return Path(sys.prefix) / "libtpu"


def library() -> Path | None:
    """Find the compiler's library, if this machine has it."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    candidates = [Path(named)] if named else [directory() / "libtpu" / "libtpu.so"]
    package = importlib.util.find_spec("libtpu")
    if package and package.origin:
        candidates.append(Path(package.origin).parent / "libtpu.so")
    return next((path for path in candidates if path.is_file()), None)


def prepare() -> None:
    """Set the environment that the compiler wants; to be called before JAX starts.

    **Raises** `UserError` where the compiler is not installed.
    """
    found = library()
    if found is None:
        raise UserError(
            "planning needs the TPU compiler, which is not on this machine: "
            f"`{sys.executable} -m pip install --no-deps --target {directory()} {LIBTPU}` puts it "
            "where planning finds it and JAX does not; or name a libtpu.so in TPU_LIBRARY_PATH."
        )
    os.environ["TPU_LIBRARY_PATH"] = str(found)
    os.environ["JAX_PLATFORMS"] = "cpu"
    # It would ask the machine for its TPUs, write logs about their absence, and allow one user.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")


def devices(slice_: Slice) -> list[Any]:
    """Return the slice's devices, one a chip; programs can be compiled for them, not run."""
    from jax.experimental import topologies

    chip, grid = slice_.chip, (*slice_.grid, 1)[:3]
    per_host = tuple(min(most, size) for most, size in zip(chip.chips_per_host, grid, strict=True))
    options: dict[str, Any] = {**chip.compiler_options, "chips_per_host_bounds": per_host}
    if slice_.slices > 1:
        options["num_slices"] = slice_.slices
    shape = "x".join(map(str, slice_.grid))
    return topologies.get_topology_desc(
        platform="tpu", topology_name=f"{chip.name}:{shape}", **options
    ).devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says of a program, for one chip.

    **Attributes:**

    - `temporary_bytes`, `total_bytes`: of HBM. The total is what the runtime sets aside: arguments,
      results that do not replace an argument, temporaries and the code.
    - `text`: the optimized program.
    - `seconds`: that compiling took.
    """

    temporary_bytes: int
    total_bytes: int
    text: str
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class TooLarge:
    """The program does not fit; `needed_bytes` of HBM where the compiler says how many."""

    needed_bytes: int | None
    seconds: float


def compile(lowered: Any) -> Compiled | TooLarge:
    """Compile a lowered program for the devices that it was lowered for."""
    import jax

    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not _OUT_OF_MEMORY.search(str(error)):
            raise
        return TooLarge(needed_bytes=needed(str(error)), seconds=time.monotonic() - began)
    memory = compiled.memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        temporary_bytes=memory.temp_size_in_bytes,
        total_bytes=memory.argument_size_in_bytes
        + results
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        text=compiled.as_text(),
        seconds=time.monotonic() - began,
    )


def needed(message: str) -> int | None:
    """Read the bytes of HBM that an out-of-memory message says the program would take."""
    match = _NEEDS.search(message)
    if match is None:
        return None
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    return int(float(number) * _UNITS[unit])
