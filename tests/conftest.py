"""Test session: eight virtual CPU devices, shape checks on, no TensorFlow noise."""

import clean_environment
from jaxtyping import install_import_hook

# Fixtures that many files take.
from real_rows import real_rows
from subwords import subwords, vocabulary

__all__ = ["real_rows", "subwords", "vocabulary"]

clean_environment.clean()  # before JAX is imported
# Every array annotation in the package is checked on every call that a test makes.
install_import_hook("promot_t5x", "beartype.beartype")
