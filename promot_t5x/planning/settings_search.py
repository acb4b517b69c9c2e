"""Looking for settings: the fastest on a slice, and the smallest slice that a run fits on.

Compiling a large model takes minutes, so few settings are tried, in the order that decides the
most: how the mesh is cut first, at full recomputation; then less recomputation on the best mesh.
What cannot fit because its weights alone are too large is not compiled.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from promot_t5x.errors import UserError
from promot_t5x.planning import compiler
from promot_t5x.planning.chips import Chip, Slice, sizes_of
from promot_t5x.planning.estimates import Estimate, estimate
from promot_t5x.planning.planned_runs import Run, chosen, on_devices, programs

OVER_DATA = "partitioning.standard_logical_axis_rules.parameter_partitioning_dims"
MODEL_AXES = (1, 2, 4, 8)
REMAT_POLICIES = ("full", "minimal", "none")
Reader = Callable[[Sequence[str]], Run]
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """Settings that were tried on a slice, and what came of each of the run's programs.

    `bindings` are gin statements that set them; `refused` says why they make no program.
    """

    slice_: Slice
    bindings: tuple[str, ...]
    run: Run
    estimates: Sequence[Estimate] = ()
    refused: str | None = None

    @property
    def fits(self) -> bool:
        """Whether every program of the run can be compiled and fits in memory."""
        return self.refused is None and all(each.fits for each in self.estimates)

    @property
    def seconds(self) -> float:
        """The least time of all training steps; where none trains, of a batch of each kind."""
        if not self.fits:
            return math.inf
        trained = [each for each in self.estimates if each.steps]
        return sum(
            each.roofline.seconds * (each.steps or 1)
            for each in trained or self.estimates
            if each.roofline
        )

    @property
    def mesh(self) -> str:
        """`data 16 x model 4`: the axes of more than one device."""
        sizes = on_devices(self.run, compiler.devices(self.slice_)).mesh.shape
        return " x ".join(f"{name} {n}" for name, n in sizes.items() if n > 1) or "1 chip"

    @property
    def settings(self) -> str:
        """The settings in short, for people."""
        return _short(self.bindings)

    @property
    def flags(self) -> str:
        """The settings as words of a command line."""
        return " ".join(_flag(binding) for binding in self.bindings)


def plan(
    read: Reader,
    slice_: Slice,
    only: Sequence[str],
    say: Say,
    estimated: Callable[..., Estimate] = estimate,
) -> Trial:
    """Plan every program of the run as it is configured; raise `UserError` as the run would.

    **Arguments:**

    - `estimated`: `estimates.estimate`, or `estimates.bounds`, which does not compile.
    """
    run = read([])
    found = [
        estimated(program, slice_, run.text, say)
        for program in chosen(programs(run, compiler.devices(slice_)), only)
    ]
    return Trial(slice_=slice_, bindings=(), run=run, estimates=found)


def attempt(
    read: Reader, slice_: Slice, bindings: Sequence[str], only: Sequence[str], say: Say
) -> Trial:
    """Plan the run with some settings; stops at the first program that does not fit."""
    say(f"{slice_.name} with {_short(bindings)}")
    run = read(bindings)
    found: list[Estimate] = []
    refused = None
    try:
        for program in chosen(programs(run, compiler.devices(slice_)), only):
            found.append(estimate(program, slice_, run.text, say))
            if not found[-1].fits:
                break
    except UserError as error:  # the mesh does not divide the batch or a parameter
        refused = str(error)
    return Trial(slice_=slice_, bindings=tuple(bindings), run=run, estimates=found, refused=refused)


def search(read: Reader, slice_: Slice, only: Sequence[str], say: Say) -> list[Trial]:
    """Try meshes, then recomputation, then microbatches and smaller frozen weights if need be.

    Returns every trial, the best first: those that fit by their time, then the others.
    """
    saving = _SavedPlans(read([]))
    meshes = [
        attempt(read, slice_, (*mesh, *saving.remat("full")), only, say) for mesh in _meshes(slice_)
    ]
    trials = list(meshes)
    if not any(trial.fits for trial in meshes):
        trials += _squeezed(read, slice_, only, say)
    best = min(trials, key=lambda trial: trial.seconds)
    if best.fits:
        kept = [b for b in best.bindings if not b.startswith("REMAT_POLICY")]
        for policy in REMAT_POLICIES[1:]:
            trials.append(attempt(read, slice_, (*kept, *saving.remat(policy)), only, say))
            if not trials[-1].fits:
                break  # what recomputes less needs more still
    return sorted(trials, key=lambda trial: (trial.seconds, trial.refused is not None))


def fit(read: Reader, chip: Chip, only: Sequence[str], say: Say) -> list[Trial]:
    """Try slices of a kind, the smallest first, each at its most frugal; the last one fits.

    **Raises** `UserError` where the run fits on none.
    """
    trials: list[Trial] = []
    for slice_ in sizes_of(chip):
        for trial in _squeezed(read, slice_, only, say):
            trials.append(trial)
            if trial.fits:
                return trials
    raise UserError(f"the run fits on no slice of {chip.name}, however frugal the settings.")


def _squeezed(read: Reader, slice_: Slice, only: Sequence[str], say: Say) -> Iterator[Trial]:
    """Find the settings that take the least memory, for each way to cut the mesh.

    A model split far is tried first: it gathers least of its vocabulary at a time. What only
    decodes leaves its weights where they are, for it would gather them at every token.
    """
    run = read([])
    saving = _SavedPlans(run)
    trained = [stage for stage in run.stages if not only or stage.name in only]
    for model in sorted(MODEL_AXES, reverse=True):
        if slice_.chips % model:
            continue
        settings = [f"NUM_PARTITIONS = {model}", *saving.remat("full"), *saving.frozen()]
        if trained:
            batch = min(stage.train_dataset.batch_size for stage in trained)
            rows = max(1, batch * model // slice_.chips)
            settings += [f"{OVER_DATA} = 2", *saving.microbatches(rows)]
        yield attempt(read, slice_, settings, only, say)


def _meshes(slice_: Slice) -> Iterator[tuple[str, str]]:
    for over in (1, 2):
        for model in MODEL_AXES:
            if slice_.chips % model == 0:
                yield f"NUM_PARTITIONS = {model}", f"{OVER_DATA} = {over}"


@dataclasses.dataclass(frozen=True)
class _SavedPlans:
    """Bindings of the macros that a run has for what saves memory."""

    run: Run

    def remat(self, policy: str) -> tuple[str, ...]:
        return self._bind(f"REMAT_POLICY = '{policy}'")

    def microbatches(self, count: int) -> tuple[str, ...]:
        return self._bind(f"MICROBATCHES = {count}")

    def frozen(self) -> tuple[str, ...]:
        return self._bind("FROZEN_DTYPE = 'bfloat16'") + self._bind(
            "PROMPT_FROZEN_DTYPE = 'bfloat16'"
        )

    def _bind(self, binding: str) -> tuple[str, ...]:
        return (binding,) if binding.partition(" = ")[0] in self.run.macros else ()


def _short(bindings: Sequence[str]) -> str:
    return ", ".join(binding.rpartition(".")[2] for binding in bindings)


def _flag(binding: str) -> str:
    name, _, value = binding.partition(" = ")
    if "." in name:
        return f"--gin_bindings='{binding}'"
    return f"--gin.{name}='\"{value[1:-1]}\"'" if value[0] == "'" else f"--gin.{name}={value}"
