"""Test session: eight virtual CPU devices, shape checks on, no TensorFlow noise."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a test's time is compilation, so XLA does less of it; the numbers must hold all the same.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from jaxtyping import install_import_hook

# Fixtures that many files take.
from real_rows import real_rows
from subwords import subwords, vocabulary

__all__ = ["real_rows", "subwords", "vocabulary"]

# Every array annotation in the package is checked on every call that a test makes.
install_import_hook("promot_t5x", "beartype.beartype")
