"""`promot-t5x ckpt …`: show, compare and verify checkpoints.

Reads the project's own checkpoints, their optimizer's state included, and every other that
`checkpoints.opening` opens, of which it reads the parameters. Arrays come to the host one after the
other.
"""

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from promot_t5x.checkpoints.adapters import ADAPTER_KEY
from promot_t5x.checkpoints.checksums import find_damage
from promot_t5x.checkpoints.finding import UnfinishedCheckpointError, find_directory, open_stored
from promot_t5x.checkpoints.finite import non_finite
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.formats.hugging_face import HuggingFaceCheckpoint
from promot_t5x.checkpoints.formats.reading import DamagedCheckpointError, NotACheckpointError
from promot_t5x.checkpoints.manifest import (
    BrokenCheckpointError,
    Manifest,
    load_manifest,
    read_manifest,
    wrong_files,
)
from promot_t5x.checkpoints.opening import check_floating
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    PIN_FILE,
    STATE_DIRECTORY,
    step_directory,
    step_of,
)
from promot_t5x.checkpoints.promot_checkpoint import read_verified
from promot_t5x.checkpoints.saving import TEMPORARY
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.checkpoints.steps import complete_steps, stages_below, step_metrics
from promot_t5x.cli.flags import Parser
from promot_t5x.errors import UserError, listed
from promot_t5x.progress import Progress

_PROGRAM = "promot-t5x ckpt"
_EXAMPLES = """\
examples:
  promot-t5x ckpt show /data/runs/rte_promot
  promot-t5x ckpt show /data/runs/rte_promot/stage_two/checkpoint_400
  promot-t5x ckpt diff /data/t5_1_1_small/checkpoint_1000000 /data/runs/rte_promot/stage_two
  promot-t5x ckpt verify /data/runs/rte_promot"""
_TARGET = "target/"


EXIT_DIFFERENT = 1  # or damaged


def main(argv: Sequence[str]) -> int:
    """Run one action.

    **Returns:** the exit status, 1 where checkpoints differ or one is damaged.

    **Raises:** `UserError` for what is no checkpoint, or cannot be read.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredArrays:
    """The arrays of an opened checkpoint, parameters under their paths in the model.

    **Attributes:**

    - `path`: where the checkpoint is.
    - `kind`: what it is, for people.
    - `shapes`: shape and dtype by path; an optimizer's arrays are under `state/`.
    - `read`: reads arrays by path as they are stored.
    - `manifest`: of the project's own checkpoints.
    """

    path: epath.Path
    kind: str
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[Sequence[str]], dict[str, Any]]
    manifest: Manifest | None = None

    @property
    def params(self) -> list[str]:
        """The paths of the parameters."""
        return sorted(path for path in self.shapes if not path.startswith("state/"))


def find_checkpoints(path: str) -> list[epath.Path]:
    """Return the directories of the checkpoints that a path means, complete or not.

    **Arguments:**

    - `path`: a name, or the directory of a checkpoint, of a stage, of a run or of a run with
      several seeds.

    **Raises:** `NotACheckpointError` where there is nothing at the path.
    """
    directory = find_directory(path)
    stages = {} if step_of(directory.name) is not None else stages_below(directory)
    found = [step_directory(stage, step) for stage, steps in stages.items() for step in steps]
    return found or [directory]


def open_arrays(path: str) -> StoredArrays:
    """Open one checkpoint: that of a path, or the newest of the one stage there.

    **Raises:** `UserError` where there is none, where there are several stages, or where it cannot
    be read.
    """
    found = find_checkpoints(path)
    stages = list(dict.fromkeys(place.parent for place in found))
    if len(stages) > 1:
        raise UserError(f"{path} holds the checkpoints of several stages: {listed(stages)}.")
    complete = complete_steps(stages[0])
    if len(found) == 1 or not complete:
        return _open_arrays(found[-1])
    return _open_arrays(step_directory(stages[0], complete[-1]))


def _open_arrays(directory: epath.Path) -> StoredArrays:
    if not (directory / MANIFEST_FILE).exists():
        stored = open_stored(directory)
        files = stored.files if isinstance(stored, HuggingFaceCheckpoint) else []
        return StoredArrays(
            path=directory,
            kind=f"a checkpoint of the format {stored.format}, parameters only"
            + (f", from {listed(files)}" if files else ""),
            shapes=stored.shapes,
            read=lambda paths: stored.read({p: _struct(stored.shapes[p]) for p in paths}),
        )
    try:
        manifest = load_manifest(directory)
    except BrokenCheckpointError as error:
        raise DamagedCheckpointError(f"{directory} is damaged: {error}") from None
    names = {path.removeprefix(_TARGET): path for path in manifest.arrays}
    shapes = {name: manifest.arrays[path].struct for name, path in names.items()}

    def read(paths: Sequence[str]) -> dict[str, Any]:
        like = {names[path]: shapes[path] for path in paths}
        try:
            found = read_verified(directory, like, manifest)
        except BrokenCheckpointError as error:
            raise DamagedCheckpointError(f"{directory} is damaged: {error}") from None
        return {path: found[names[path]] for path in paths}

    return StoredArrays(
        path=directory,
        kind=f"step {manifest.step} of a stage",
        shapes=shapes,
        read=read,
        manifest=manifest,
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
    opened = _open_arrays(found[0])
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
    parts = [f"{step_dir.name}  {_bytes(sum(manifest.files.values()))}"]
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
        print(f"  {path:{width}}  {leaf.dtype.name:9} {shape:20} {_bytes(_size(leaf)):>10}")


def _total(opened: StoredArrays, paths: Sequence[str]) -> str:
    leaves = [opened.shapes[path] for path in paths]
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"{len(leaves)} arrays, {numbers:,} numbers, {_bytes(sum(map(_size, leaves)))}"


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
    with _progress("comparing", len(both)) as step:
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


def verify(arguments: argparse.Namespace) -> int:
    """Read everything again and compare what can be compared: `ckpt verify`."""
    found = []
    for path in arguments.directories:
        places = find_checkpoints(path)
        if len(places) == 1 and not (places[0] / MANIFEST_FILE).exists():
            # What is no checkpoint is said before the first one is read, which may take hours.
            with contextlib.suppress(DamagedCheckpointError, UnfinishedCheckpointError):
                open_stored(places[0])
        found += places
    return max(map(_verify, found))


def _verify(step_dir: epath.Path) -> int:
    try:
        own = (step_dir / MANIFEST_FILE).exists()
        problems, done = _verify_own(step_dir) if own else _verify_other(step_dir)
    except UnfinishedCheckpointError as error:
        print(f"{step_dir}: unfinished, does not count. {error}")
        return 0
    except NotACheckpointError as error:
        print(f"{step_dir}: not a checkpoint. {error}")
        return EXIT_DIFFERENT
    except DamagedCheckpointError as error:
        problems, done = [str(error)], ""
    for problem in problems:
        print(f"{step_dir}: {problem}")
    result = f"DAMAGED ({len(problems)} problems)" if problems else f"sound, {done}"
    print(f"{step_dir}: {result}")
    return EXIT_DIFFERENT if problems else 0


def _verify_own(step_dir: epath.Path) -> tuple[list[str], str]:
    try:
        manifest = load_manifest(step_dir)
    except BrokenCheckpointError as error:
        return [str(error)], ""
    problems = wrong_files(step_dir, manifest.files)
    with _progress(f"verifying {step_dir.name}", len(manifest.arrays)) as step:
        for path, record in manifest.arrays.items():
            wrong = find_damage(step_dir / STATE_DIRECTORY, {path: record}, check_finite=True)
            problems += [f"{name} {problem}" for name, problem in wrong.items()]
            step()
    size = sum(manifest.files.values())
    return problems, f"{len(manifest.arrays)} arrays with their checksums, {_bytes(size)}"


def _verify_other(directory: epath.Path) -> tuple[list[str], str]:
    """Other formats have no checksums: every array must be readable, and its numbers finite."""
    stored = open_stored(directory)
    problems = []
    with _progress(f"verifying {directory.name}", len(stored.shapes)) as step:
        for path, leaf in stored.shapes.items():
            try:
                check_floating({path: leaf}, directory)
                array = np.asarray(stored.read({path: _struct(leaf)})[path])
                if non_finite({path: array}):
                    count = int(np.sum(~np.isfinite(array)))
                    problems.append(f"{path} has {count} numbers that are not finite")
            except UserError as error:
                problems.append(f"{path}: {error}")
            step()
    size = _bytes(sum(map(_size, stored.shapes.values())))
    return problems, f"{len(stored.shapes)} arrays readable and finite, {size} (no checksums there)"


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    progress, done = Progress(label, total), 0

    def step() -> None:
        nonlocal done
        done += 1
        progress.update(done)

    yield step
    progress.close()


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _size(leaf: Any) -> int:
    return read_arrays.local_bytes(_struct(leaf))


def _bytes(size: int) -> str:
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Inspects, compares and verifies checkpoints: the project's own, with their "
        "optimizer's state, and any other that a run can start from.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = actions.add_parser(
        "show",
        help="steps, metrics and origins; tree, shapes, dtypes, sizes",
        description="Lists the checkpoints of a run or a stage, or shows one: where it came from, "
        "what it says of the run, and its arrays.",
    )
    add.add_argument(
        "directory", help="of a run, a stage or a checkpoint; or a name, such as mt5_small"
    )
    add.add_argument("--all", action="store_true", help="list the optimizer's state too")
    add.set_defaults(run=show)
    add = actions.add_parser(
        "diff",
        help="which arrays differ, and how much",
        description="Compares two checkpoints of any formats array by array. Exit status 1 if they "
        "differ.",
    )
    add.add_argument("old", help="a checkpoint's directory or name, or a stage's for its newest")
    add.add_argument("new", help="likewise")
    add.add_argument("--match", default="", help="only arrays whose path matches this pattern")
    add.add_argument("--all", action="store_true", help="compare the optimizer's state too")
    add.set_defaults(run=diff)
    add = actions.add_parser(
        "verify",
        help="read everything again; compare checksums",
        description="Reads every array. The project's own checkpoints have a checksum for each; of "
        "others, arrays must be readable. All numbers must be finite. Exit status 1 if a "
        "checkpoint is damaged, 2 if there is none.",
    )
    add.add_argument("directories", nargs="+", help="of runs, stages or checkpoints; or names")
    add.set_defaults(run=verify)
    return parser
