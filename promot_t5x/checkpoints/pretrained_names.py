"""Pretrained checkpoints that go by a name: `INITIAL_CHECKPOINT_PATH = 'mt5_xxl'`.

The public ones are those of T5X's model page, under the names of their directories there.
"""

import importlib.util
from pathlib import Path

_BUCKET = "gs://t5-data/pretrained_models/t5x"
_SIZES = ("small", "base", "large", "xl", "xxl")


def _tiny_world() -> Path:
    # Found without importing the package's tasks, which a checkpoint does not need.
    spec = importlib.util.find_spec("promot_t5x.tasks.tiny")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "base"


def _public() -> dict[str, tuple[str, ...]]:
    steps = {
        "t5_small": 1_000_000,
        "t5_base": 999_900,
        "t5_large": 1_000_700,
        "t5_3B": 1_000_000,
        "t5_11B": 1_000_000,
        **{f"t5_1_1_{size}": 1_000_000 for size in _SIZES},
        **{f"t5_1_1_lm100k_{size}": 1_100_000 for size in _SIZES},
        "flan_t5_small": 1_198_000,
        "flan_t5_base": 1_184_000,
        "flan_t5_large": 1_164_000,
        "flan_t5_xl": 1_138_000,
        "flan_t5_xxl": 1_114_000,
        **{f"mt5_{size}": 1_000_000 for size in _SIZES},
        **{f"byt5_{size}": 1_000_000 for size in _SIZES},
    }
    places: dict[str, tuple[str, ...]] = {
        name: (f"{_BUCKET}/{name}/checkpoint_{step}",) for name, step in steps.items()
    }
    for size in _SIZES:
        places[f"mt5_lm_adapted_{size}"] = (f"{_BUCKET}/mt5_lm_adapted/{size}/checkpoint_1100000",)
    for size in ("small", "base", "xl", "xxl"):
        # The model page, T5X's own gin files and its users each give another place.
        places[f"umt5_{size}"] = (
            f"{_BUCKET}/umt5/{size}/checkpoint_1000000",
            f"{_BUCKET}/umt5_{size}/checkpoint_1000000",
            f"gs://t5-data/t5-data/pretrained_models/t5x/umt5_{size}/checkpoint_1000000",
        )
    return places


# The demonstration's pretrained checkpoint, made by gin/demo/pretrain.gin.
SHIPPED = {"tiny_world": _tiny_world}
# Name -> where the checkpoint may be, likeliest first.
PUBLIC = _public()
NAMES = (*SHIPPED, *PUBLIC)


def resolve(reference: str) -> tuple[str, ...]:
    """Return where a named checkpoint may be, likeliest first; any other reference as it is."""
    if reference in SHIPPED:
        return (str(SHIPPED[reference]()),)
    return PUBLIC.get(reference, (reference,))
