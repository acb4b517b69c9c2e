"""Lists the checkpoints of a run, or shows the arrays of one: `promot-t5x ckpt show`."""

import argparse
from collections.abc import Sequence

import numpy as np
from etils import epath

from promot_t5x.checkpoints.adapters import ADAPTER_KEY
from promot_t5x.checkpoints.finding import UnfinishedCheckpointError, open_stored
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError, NotACheckpointError
from promot_t5x.checkpoints.manifest import (
    BrokenCheckpointError,
    Manifest,
    read_manifest,
)
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    PIN_FILE,
    step_of,
)
from promot_t5x.checkpoints.saving import TEMPORARY
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.checkpoints.steps import step_metrics
from promot_t5x.cli.ckpt_arrays import (
    StoredArrays,
    bytes_text,
    find_checkpoints,
    open_directory,
    size_of,
)


def show(arguments: argparse.Namespace) -> int:
    """List the checkpoints below a directory, or show the arrays of one: `ckpt show`."""
    found = find_checkpoints(arguments.directory)
    if len(found) > 1:
        for stage in dict.fromkeys(place.parent for place in found):
            print(f"{stage}:")
            result = StageResult.read(stage)
            for place in (place for place in found if place.parent == stage):
                is_chosen = result is not None and result.step == step_of(place.name)
                print(f"  {_summary(place)}" + ("  chosen" if is_chosen else ""))
        return 0
    opened = open_directory(found[0])
    print(f"{opened.path}: {opened.kind}")
    if opened.manifest is not None:
        _show_metadata(opened.path, opened.manifest)
    params = opened.params
    rest = sorted(set(opened.shapes) - set(params))
    print(f"\nparameters: {_total(opened, params)}")
    _print_tree(opened, params)
    if rest:
        print(f"\noptimizer's state: {_total(opened, rest)}" + _hint(arguments.all))
        if arguments.all:
            _print_tree(opened, rest)
    return 0


def _hint(shown: bool) -> str:
    return "" if shown else " (--all lists it)"


def _summary(step_dir: epath.Path) -> str:
    """Return a line on one of several checkpoints."""
    try:
        manifest = read_manifest(step_dir)
    except BrokenCheckpointError as error:
        if (step_dir / MANIFEST_FILE).exists():
            return f"{step_dir.name}  damaged: {error}"
        return f"{step_dir.name}  {_state_without_manifest(step_dir)}"
    metrics = step_metrics(step_dir.parent, manifest.step)
    parts = [f"{step_dir.name}  {bytes_text(sum(manifest.files.values()))}"]
    parts += [f"{metric} {value:.6g}" for metric, value in sorted(metrics.items())]
    parts += ["pinned"] if (step_dir / PIN_FILE).exists() else []
    parts += ["saved on SIGTERM"] if TEMPORARY in manifest.metadata else []
    return "  ".join(parts)


def _state_without_manifest(step_dir: epath.Path) -> str:
    try:
        return f"format {open_stored(step_dir).format}"
    except UnfinishedCheckpointError:
        return "unfinished"
    except NotACheckpointError:
        return "not a checkpoint"
    except DamagedCheckpointError as error:
        return str(error).removeprefix(f"{step_dir} is ")


def _show_metadata(step_dir: epath.Path, manifest: Manifest) -> None:
    metadata = manifest.metadata
    for origin in metadata.get("origins", ()):
        print(f"  began with {origin}")
    if "frozen_hash" in metadata:
        print(f"  content hash of what is frozen: {metadata['frozen_hash']}")
    for part in (ADAPTER_KEY, "data", "position", "rng"):
        if part in metadata:
            print(f"  {part}: {metadata[part]}")
    metrics = step_metrics(step_dir.parent, manifest.step)
    for metric, value in sorted(metrics.items()):
        print(f"  {metric}: {value:.6g}")
    print("  saved with " + ", ".join(f"{n} {v}" for n, v in manifest.versions.items()))


def _print_tree(opened: StoredArrays, paths: Sequence[str]) -> None:
    width = max(map(len, paths), default=0)
    for path in paths:
        leaf = opened.shapes[path]
        shape = str(list(leaf.shape))
        print(f"  {path:{width}}  {leaf.dtype.name:9} {shape:20} {bytes_text(size_of(leaf)):>10}")


def _total(opened: StoredArrays, paths: Sequence[str]) -> str:
    leaves = [opened.shapes[path] for path in paths]
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"{len(leaves)} arrays, {numbers:,} numbers, {bytes_text(sum(map(size_of, leaves)))}"
