"""The versions of what a run rests on, for the files that say how something was made."""

import contextlib
from importlib import metadata

_PACKAGES = (
    "promot_t5x",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "seqio",
    "sacrebleu",
    "rouge-score",
)


def installed() -> dict[str, str]:
    """Name to version of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
