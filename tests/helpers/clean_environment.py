"""The environment that tests and their processes see: nothing in it changes what programs do.

Tests run inside jobs of Slurm and pods of Kubernetes, behind proxies, beside other users of JAX,
in terminals of any width. What a shell has left of those is taken away before anything starts.
Locale, time zone, HOME and TMPDIR stay the user's: the suite holds in all of them.
"""

import os
import re
from importlib.metadata import version

_LEFT_BY_OTHERS = re.compile(
    r"(JAX|TPU|MEGASCALE|SLURM|TF|TFDS|GRPC|GOOGLE)_.*"
    r"|.*_(proxy|PROXY)"
    r"|PYTHON(DEVMODE|INSPECT|OPTIMIZE|VERBOSE|WARNINGS)"
    r"|(FORCE|PYTHON)_COLORS?|LINES"
    # The launchers print *** for the value of a secret, wherever it stands.
    r"|(?i:.*(TOKEN|KEY|SECRET|PASSWORD|CREDENTIALS?))"
)


def clean() -> None:
    """Change this process's environment; its children inherit it."""
    for name in [name for name in os.environ if _LEFT_BY_OTHERS.fullmatch(name)]:
        del os.environ[name]
    # Most of a test's time is compilation, so XLA does less of it; the numbers must hold anyway.
    os.environ["XLA_FLAGS"] = xla_flags(8, optimized=False)
    os.environ |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "COLUMNS": "80"}


def xla_flags(devices: int = 1, *, optimized: bool = True) -> str:
    """XLA's flags for so many virtual CPU devices.

    Which instructions it may use is the user's choice: `XLA_FLAGS=--xla_cpu_max_isa=SSE4_2`.
    """
    given = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in given if flag.startswith("--xla_cpu_max_isa=")]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    # A machine that stands still for a minute must not make XLA abort the process.
    flags.append("--xla_cpu_collective_call_terminate_timeout_seconds=600")
    if not optimized:
        flags.append("--xla_backend_optimization_level=0")
        flags.append("--xla_llvm_disable_expensive_passes=true")
        flags.append("--xla_cpu_parallel_codegen_split_count=1")
        if version("jaxlib").startswith("0.10."):  # later ones do not know the flag
            flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)
