"""Checks of what a configuration says about data, made when it is read."""

from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError, did_you_mean

FEATURES = ("inputs", "targets")


def check_positive(source: str, value: Any) -> None:
    """Raise `UserError` unless `value` is an integer above 0; `source` names where it is from."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{source} must be a positive integer, got {value!r}.")


def check_feature_lengths(lengths: Mapping[str, int], required: Sequence[str] = FEATURES) -> None:
    """Raise `UserError` unless `lengths` gives a number of inputs and targets, and no other.

    Features that are not `required` may be left out.
    """
    given = f"TASK_FEATURE_LENGTHS = {dict(lengths)!r}"
    for name in lengths:
        if name not in FEATURES:
            raise UserError(
                f"{given}: there is no feature {name!r}, only 'inputs' and 'targets'."
                f"{did_you_mean(name, FEATURES)}"
            )
    for name in FEATURES:
        if name not in lengths and name not in required:
            continue
        if name not in lengths:
            raise UserError(f"{given} says nothing of {name!r}: add how many tokens they may take.")
        check_positive(f"{given}: {name!r}", lengths[name])
