"""Bases that go by a name: `INITIAL_CHECKPOINT_PATH = 'tiny_world'`."""

import importlib.util
from pathlib import Path


def resolve(reference: str) -> str:
    """The path of a named base; any other reference as it is."""
    return str(SHIPPED[reference]()) if reference in SHIPPED else reference


def _tiny_world() -> Path:
    # Found without importing the package's tasks, which a base does not need.
    spec = importlib.util.find_spec("promot_t5x.tasks.tiny")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "base"


# The demonstration's base, made by gin/demo/pretrain.gin.
SHIPPED = {"tiny_world": _tiny_world}
