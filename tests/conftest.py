"""Test session: eight virtual CPU devices, shape checks on, no TensorFlow noise."""

import gc
from pathlib import Path

import clean_environment
import pytest
from jaxtyping import install_import_hook

# Fixtures that many files take.
from real_rows import real_rows
from subwords import subwords, vocabulary

__all__ = ["real_rows", "subwords", "vocabulary"]

clean_environment.clean()  # before JAX is imported
# Tracing makes so many objects that a tenth of a run's time would be looking for dead ones.
gc.set_threshold(100_000, 20, 20)


def _modules_with_arrays() -> list[str]:
    """Return the names of the package's modules that annotate arrays."""
    root = Path(__file__).parents[1]
    return [
        ".".join((package, *path.relative_to(root / folder).with_suffix("").parts))
        for folder, package in (("promot_t5x", "promot_t5x"), ("tasks", "promot_t5x.tasks"))
        for path in (root / folder).rglob("*.py")
        if "jaxtyping" in path.read_text()
    ]


# Every array annotation in the package is checked on every call that a test makes. The other
# modules are left alone: checks on each of their functions cost more than all that they compute.
install_import_hook(_modules_with_arrays(), "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
