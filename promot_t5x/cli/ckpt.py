"""`promot-t5x ckpt …`: what a checkpoint holds, how two differ, whether one is sound.

Reads the project's own checkpoints, their optimiser's state included, and whatever else can be a
base, of which it reads the parameters. Arrays come to the host one after the other.
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

from promot_t5x.checkpoints import manifest as manifests
from promot_t5x.checkpoints import pretrained, restoring, saving
from promot_t5x.checkpoints.formats import read_arrays
from promot_t5x.checkpoints.manifest import BrokenCheckpointError, Manifest
from promot_t5x.cli.flags import Parser
from promot_t5x.errors import UserError
from promot_t5x.progress import Progress

_PROGRAM = "promot-t5x ckpt"
_EXAMPLES = """\
examples:
  promot-t5x ckpt show /data/runs/rte_promot
  promot-t5x ckpt show /data/runs/rte_promot/stage_two/checkpoint_400
  promot-t5x ckpt diff /data/t5_1_1_small/checkpoint_1000000 /data/runs/rte_promot/stage_two
  promot-t5x ckpt verify /data/runs/rte_promot"""
_TARGET = "target/"


def main(argv: Sequence[str]) -> int:
    """Run one action; the exit status, 1 where checkpoints differ or one is damaged."""
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays:
    """The arrays of an opened checkpoint, parameters under their paths in the model.

    **Attributes:**

    - `path`: where the checkpoint is.
    - `shapes`: shape and dtype by path; an optimiser's arrays are under `state/`.
    - `read`: reads arrays by path as they are stored.
    - `manifest`: of the project's own checkpoints.
    """

    path: epath.Path
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    read: Callable[[Sequence[str]], dict[str, Any]]
    manifest: Manifest | None = None

    @property
    def params(self) -> list[str]:
        return sorted(path for path in self.shapes if not path.startswith("state/"))


def open_arrays(path: str) -> Arrays:
    """Open a checkpoint, or the newest of a stage's directory.

    **Raises** `UserError` where there is none, or it cannot be read.
    """
    directory = restoring.absolute(path)
    if steps := restoring.numbered(directory, restoring.PREFIX):
        whole = restoring.complete_steps(directory)
        directory = restoring.step_directory(directory, max(whole or steps))
    if not (directory / manifests.FILE_NAME).exists():
        source = pretrained.open_source(path)
        return Arrays(
            path=directory,
            shapes=source.shapes,
            read=lambda paths: source.read({p: _struct(source.shapes[p]) for p in paths}),
        )
    try:
        manifest = manifests.load(directory)
    except BrokenCheckpointError as error:
        raise UserError(f"{directory} is damaged: {error}") from None
    stored = {path.removeprefix(_TARGET): path for path in manifest.arrays}
    shapes = {
        name: jax.ShapeDtypeStruct(record.shape, np.dtype(record.dtype))
        for name, record in ((n, manifest.arrays[p]) for n, p in stored.items())
    }

    def read(paths: Sequence[str]) -> dict[str, Any]:
        like = {stored[path]: shapes[path] for path in paths}
        try:
            found = restoring.read_verified(directory, like, manifest)
        except BrokenCheckpointError as error:
            raise UserError(f"{directory} is damaged: {error}") from None
        return {path: found[stored[path]] for path in paths}

    return Arrays(path=directory, shapes=shapes, read=read, manifest=manifest)


def show(arguments: argparse.Namespace) -> int:
    """`ckpt show`: the checkpoints below a directory, and the arrays of one."""
    stages = _stages(restoring.absolute(arguments.directory))
    if len(stages) > 1 or (stages and any(len(steps) > 1 for steps in stages.values())):
        for directory, steps in stages.items():
            print(f"{directory}:")
            for step in steps:
                print(f"  {_summary(directory, step)}")
        return 0
    opened = open_arrays(arguments.directory)
    print(f"{opened.path}: {_kind(opened)}")
    if opened.manifest is not None:
        _show_metadata(opened.path, opened.manifest)
    params = opened.params
    rest = sorted(set(opened.shapes) - set(params))
    print(f"\nparameters: {_total(opened, params)}")
    _print_tree(opened, params)
    if rest:
        print(f"\noptimiser's state: {_total(opened, rest)}" + _hint(arguments.all))
        if arguments.all:
            _print_tree(opened, rest)
    return 0


def _hint(shown: bool) -> str:
    return "" if shown else " (--all lists it)"


def _stages(directory: epath.Path) -> dict[epath.Path, list[int]]:
    """The steps of the stages at or below a directory of a run, by stage."""
    below = sorted(directory.iterdir()) if directory.is_dir() else []
    places = [directory, *(place for place in below if place.is_dir())]
    found = {place: restoring.numbered(place, restoring.PREFIX) for place in places}
    return {place: steps for place, steps in found.items() if steps}


def _summary(directory: epath.Path, step: int) -> str:
    step_dir = restoring.step_directory(directory, step)
    name = f"{restoring.PREFIX}{step}"
    try:
        manifest = manifests.read(step_dir)
    except BrokenCheckpointError as error:
        if (step_dir / manifests.FILE_NAME).exists():
            return f"{name}  damaged: {error}"
        state = "unfinished" if restoring.pending_marker(directory, step).exists() else "not ours"
        return f"{name}  {state}"
    metrics = restoring.step_metrics(directory, step)
    parts = [f"{name}  {_bytes(sum(manifest.files.values()))}"]
    parts += [f"{metric} {value:.6g}" for metric, value in sorted(metrics.items())]
    parts += ["pinned"] if (step_dir / saving.PIN_FILE).exists() else []
    parts += ["saved on SIGTERM"] if "temporary" in manifest.metadata else []
    return "  ".join(parts)


def _kind(opened: Arrays) -> str:
    if opened.manifest is None:
        return "a base (optimiser's state not read)"
    return f"step {opened.manifest.step} of a stage"


def _show_metadata(step_dir: epath.Path, manifest: Manifest) -> None:
    told = manifest.metadata
    for origin in told.get("origins", ()):
        print(f"  began with {origin}")
    if "frozen_hash" in told:
        print(f"  content hash of what is frozen: {told['frozen_hash']}")
    for part in ("data", "position", "rng"):
        if part in told:
            print(f"  {part}: {told[part]}")
    metrics = restoring.step_metrics(step_dir.parent, manifest.step)
    for metric, value in sorted(metrics.items()):
        print(f"  {metric}: {value:.6g}")
    print("  saved with " + ", ".join(f"{n} {v}" for n, v in manifest.versions.items()))


def _print_tree(opened: Arrays, paths: Sequence[str]) -> None:
    width = max(map(len, paths), default=0)
    for path in paths:
        leaf = opened.shapes[path]
        shape = str(list(leaf.shape))
        print(f"  {path:{width}}  {leaf.dtype.name:9} {shape:20} {_bytes(_size(leaf)):>10}")


def _total(opened: Arrays, paths: Sequence[str]) -> str:
    leaves = [opened.shapes[path] for path in paths]
    numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
    return f"{len(leaves)} arrays, {numbers:,} numbers, {_bytes(sum(map(_size, leaves)))}"


def diff(arguments: argparse.Namespace) -> int:
    """`ckpt diff`: which arrays differ between two checkpoints, and how much."""
    old, new = open_arrays(arguments.old), open_arrays(arguments.new)
    names = [{p for p in each.shapes if re.search(arguments.match, p)} for each in (old, new)]
    if not arguments.all:  # an optimiser's state only where both have one to compare
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
    return 1 if changed or only[0] or only[1] else 0


def _difference(old: Arrays, new: Arrays, path: str) -> str:
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
    """`ckpt verify`: read everything again and compare what can be compared."""
    status = 0
    for path in arguments.directories:
        stages = _stages(restoring.absolute(path))
        found = [(d, step) for d, steps in stages.items() for step in steps]
        for directory, step in found:
            status |= _verify_step(restoring.step_directory(directory, step))
        if not found:
            status |= _verify_step(restoring.absolute(path))
    return status


def _verify_step(step_dir: epath.Path) -> int:
    try:
        own = (step_dir / manifests.FILE_NAME).exists()
        problems, done = _verify_own(step_dir) if own else _verify_base(step_dir)
    except UserError as error:
        problems, done = [str(error)], ""
    for problem in problems:
        print(f"{step_dir}: {problem}")
    print(
        f"{step_dir}: " + (f"DAMAGED ({len(problems)} problems)" if problems else f"sound, {done}")
    )
    return 1 if problems else 0


def _verify_own(step_dir: epath.Path) -> tuple[list[str], str]:
    try:
        manifest = manifests.load(step_dir)
    except BrokenCheckpointError as error:
        return [str(error)], ""
    problems = manifests.wrong_files(step_dir, manifest.files)
    with _progress(f"verifying {step_dir.name}", len(manifest.arrays)) as step:
        for path, record in manifest.arrays.items():
            wrong = manifests.damage(step_dir / restoring.STATE, {path: record})
            problems += [f"{name} {problem}" for name, problem in wrong.items()]
            step()
    size = sum(manifest.files.values())
    return problems, f"{len(manifest.arrays)} arrays with their checksums, {_bytes(size)}"


def _verify_base(step_dir: epath.Path) -> tuple[list[str], str]:
    """A base has no checksums: every array must be readable and finite."""
    source = pretrained.open_source(str(step_dir))
    problems = []
    with _progress(f"verifying {step_dir.name}", len(source.shapes)) as step:
        for path, leaf in source.shapes.items():
            try:
                array = np.asarray(source.read({path: _struct(leaf)})[path])
                bad = int(np.sum(~np.isfinite(array.astype(np.float32))))
                problems += [f"{path} has {bad} numbers that are not finite"] if bad else []
            except UserError as error:
                problems.append(f"{path}: {error}")
            step()
    size = _bytes(sum(map(_size, source.shapes.values())))
    return problems, f"{len(source.shapes)} arrays readable and finite, {size} (no checksums there)"


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
        description="What a checkpoint holds, how two differ, whether one is sound: the project's "
        "own, with their optimiser's state, and any that can be a base.",
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
    add.add_argument("directory", help="a run's, a stage's or a checkpoint's")
    add.add_argument("--all", action="store_true", help="list the optimiser's state too")
    add.set_defaults(run=show)
    add = actions.add_parser(
        "diff",
        help="which arrays differ, and how much",
        description="Compares two checkpoints of any formats array by array. Exit status 1 if they "
        "differ.",
    )
    add.add_argument("old", help="a checkpoint's directory, or a stage's for its newest")
    add.add_argument("new", help="likewise")
    add.add_argument("--match", default="", help="only arrays whose path matches this pattern")
    add.add_argument("--all", action="store_true", help="compare the optimiser's state too")
    add.set_defaults(run=diff)
    add = actions.add_parser(
        "verify",
        help="read everything again; compare checksums",
        description="Reads every array. The project's own checkpoints have a checksum for each; of "
        "others, arrays must be readable and finite. Exit status 1 if anything is amiss.",
    )
    add.add_argument("directories", nargs="+", help="of runs, stages or checkpoints")
    add.set_defaults(run=verify)
    return parser
