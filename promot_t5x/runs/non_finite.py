"""Steps whose numbers are not finite: what is said of one, and how many may be skipped."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from promot_t5x.checkpoints.saving import Checkpoints
from promot_t5x.errors import NonFiniteError, listed
from promot_t5x.training.step import Finite

_EXAMPLES_SHOWN = 8


@dataclasses.dataclass(kw_only=True)
class NonFiniteSteps:
    """Ends a stage at a step that is not finite, or counts it where it was skipped.

    **Attributes:**

    - `arrays`: paths of the trainable arrays, in the order of `Finite`.
    - `limit`: how many steps in a row may be skipped; the compiled step skips if it is above 0.
    - `examples`: names the examples of a step's batch.
    - `newest`: says which checkpoint is the newest.
    - `report`: prints a line.
    - `skipped`, `in_a_row`: how many were skipped in this launch, and in the steps just before.
    """

    arrays: Sequence[str]
    limit: int
    examples: Callable[[int], Sequence[str]]
    newest: Callable[[], str]
    report: Callable[[str], None]
    skipped: int = 0
    in_a_row: int = 0

    def check(self, step: int, metrics: Mapping[str, float], finite: Finite) -> dict[str, float]:
        """Take in a step whose numbers have come from the device.

        **Arguments:**

        - `metrics`: of the step.
        - `finite`: host arrays.

        **Returns:** what the step's row says besides its metrics: where steps may be skipped,
        whether this one was.

        **Raises:** `NonFiniteError` where it is not finite and may not be skipped.
        """
        if bool(finite.everywhere()):
            self.in_a_row = 0
            return {"skipped": 0.0} if self.limit else {}
        problem = self._problem(step, metrics, finite)
        if self.in_a_row == self.limit:
            said = f" {self.limit} steps before it were skipped already." if self.limit else ""
            raise NonFiniteError(
                f"{problem}{said} {self.newest()} Lower the learning rate, use float32 "
                "activations, look at those examples, or let up to n such steps in a row be "
                "skipped with SKIP_NON_FINITE_STEPS = n.",
                self._named(~np.asarray(finite.arrays())),
            )
        self.in_a_row += 1
        self.skipped += 1
        self.report(f"skipped: {problem} {self.in_a_row} in a row, {self.skipped} so far.")
        return {"skipped": 1.0}

    def _problem(self, step: int, metrics: Mapping[str, float], finite: Finite) -> str:
        wrong = [
            f"{name} {metrics[key]}"
            for name, key, is_finite in (
                ("loss", "loss", finite.loss),
                ("gradient norm", "grad_norm", finite.gradients.all()),
            )
            if not is_finite
        ]
        for name, found in (("gradients", finite.gradients), ("parameters", finite.parameters)):
            flags = np.ones(1, bool) if found is None else np.asarray(found)
            if not flags.all():
                of = f"{np.count_nonzero(~flags)} of {len(flags)} arrays"
                wrong.append(f"{name} of {of} ({listed(self._named(~flags), 3)})")
        examples = listed(self.examples(step), _EXAMPLES_SHOWN)
        return f"step {step} is not finite: {', '.join(wrong)}. Its batch held {examples}."

    def _named(self, chosen: Bool[np.ndarray, " arrays"]) -> list[str]:
        return [name for name, is_named in zip(self.arrays, chosen, strict=True) if is_named]


def newest_checkpoint(saver: Checkpoints) -> str:
    """Return a sentence on the newest checkpoint, once the save under way is done."""
    newest = saver.latest()
    if newest is None:
        return "Nothing was saved of this stage yet."
    return f"The newest checkpoint is that of step {newest}, from before, in {saver.directory}."
