"""Checks of what a configuration says about data, made when it is read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.errors import UserError, did_you_mean

FEATURES = ("inputs", "targets")


def check_positive(source: str, value: Any) -> None:
    """Raise `UserError` unless `value` is an integer above 0; `source` names where it is from."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{source} must be a positive integer, got {value!r}.")


def check_feature_lengths(lengths: Any, required: Sequence[str] = FEATURES) -> None:
    """Raise `UserError` unless `lengths` gives a number of inputs and targets, and no other.

    Features that are not `required` may be left out.
    """
    if not isinstance(lengths, Mapping):
        raise UserError(
            f"TASK_FEATURE_LENGTHS = {lengths!r}: give the longest inputs (the soft prompt "
            'included) and targets in tokens, as in {"inputs": 512, "targets": 8}.'
        )
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


def is_seed(value: Any) -> bool:
    """Whether `value` is a seed that JAX's generators take in 32 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def check_seed(source: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a seed, see `is_seed`; `source` names it."""
    if not is_seed(value):
        raise UserError(f"{source} must be a whole number from 0 to 2**31 - 1, got {value!r}.")


def check_rate(source: str, value: Any) -> None:
    """Raise `UserError` unless `value` is a finite number, not below 0; `source` names it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < math.inf:
        raise UserError(f"{source} must be a finite number, not below 0, got {value!r}.")


def check_choice(source: str, value: Any, choices: Sequence[str]) -> None:
    """Raise `UserError` unless `value` is one of a few; `source` names it."""
    if value not in choices:
        raise UserError(
            f"{source} must be {' or '.join(map(repr, choices))}, got {value!r}."
            f"{did_you_mean(str(value), choices)}"
        )


def check_made(source: str, value: Any) -> None:
    """Raise `UserError` where gin was given a class, without `()`, in place of an object of it."""
    if isinstance(value, type):
        name = value.__name__
        raise UserError(
            f"{source} is the class {name}, not an object of it: write @…{name}() with the "
            "parentheses, which make gin call it."
        )
    if value is None or isinstance(value, (str, int, float)):
        raise UserError(
            f"{source} = {value!r} is no object: write a class and (), as in @decoding.Greedy()."
        )
