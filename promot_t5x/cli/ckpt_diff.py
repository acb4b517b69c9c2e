"""Compares two checkpoints array by array: `promot-t5x ckpt diff`."""

import argparse
import re

import numpy as np

from promot_t5x.cli.ckpt_arrays import (
    EXIT_DIFFERENT,
    StoredArrays,
    counted_progress,
    open_arrays,
)


def diff(arguments: argparse.Namespace) -> int:
    """Say which arrays differ between two checkpoints, and how much: `ckpt diff`."""
    old, new = open_arrays(arguments.old), open_arrays(arguments.new)
    names = [{p for p in each.shapes if re.search(arguments.match, p)} for each in (old, new)]
    if not arguments.all:  # an optimizer's state only where both have one to compare
        names = [{p for p in each if not p.startswith("state/")} for each in names]
    only = [sorted(names[0] - names[1]), sorted(names[1] - names[0])]
    both = sorted(names[0] & names[1])
    print(f"- {old.path}\n+ {new.path}")
    for sign, paths in zip("-+", only, strict=True):
        for path in paths:
            print(f"{sign} {path}: only there")
    changed = 0
    with counted_progress("comparing", len(both)) as step:
        for path in both:
            line = _difference(old, new, path)
            if line:
                changed += 1
                print(f"! {path}: {line}")
            step()
    counts = f"{len(both) - changed} arrays equal, {changed} differ"
    print(f"{counts}, {len(only[0])} only in the first, {len(only[1])} only in the second")
    return EXIT_DIFFERENT if changed or only[0] or only[1] else 0


def _difference(old: StoredArrays, new: StoredArrays, path: str) -> str:
    kinds = [f"{e.shapes[path].dtype.name}{list(e.shapes[path].shape)}" for e in (old, new)]
    if old.shapes[path].shape != new.shapes[path].shape:
        return " -> ".join(kinds)
    a, b = (np.asarray(each.read([path])[path]) for each in (old, new))
    if a.dtype == b.dtype and a.tobytes() == b.tobytes():
        return ""
    kind = "" if a.dtype == b.dtype else " -> ".join(kinds) + ", "
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    gap = np.abs(a - b)
    largest, scale = float(np.max(gap)), float(np.max(np.abs(a)))
    relative = f" ({largest / scale:.2e} of the largest)" if scale else ""
    moved = np.linalg.norm(gap) / max(float(np.linalg.norm(a)), 1e-30)
    share = np.mean(a != b)
    return (
        f"{kind}{share:.1%} of {a.size:,} numbers, by at most {largest:.3e}{relative}, norm of "
        f"the change {moved:.2e} of the norm"
    )
