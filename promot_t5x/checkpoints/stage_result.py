"""The file in a stage's directory that marks it as finished and names the step it chose."""

import dataclasses
import functools
import json
from collections.abc import Mapping

from etils import epath

from promot_t5x.checkpoints.opening import Parameters
from promot_t5x.checkpoints.paths import step_directory
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.files import read_json, write_atomically

RESULT_FILE = "stage.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage and the checkpoint that it chose.

    **Attributes:**

    - `directory`: of the stage.
    - `step`, `score`: the chosen step and its validation score.
    - `metric`: what the score is, such as `exact_match`.
    - `train_steps`: how many steps the stage was trained; None where an older version wrote it.
    - `selection_split`: by task, the split on whose score the step was chosen.
    """

    directory: epath.Path
    step: int
    score: float | None
    metric: str | None = None
    train_steps: int | None = None
    selection_split: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def write(self) -> None:
        """Mark the stage as finished."""
        fields = dataclasses.asdict(self)
        del fields["directory"]
        text = json.dumps(fields, indent=1)
        write_atomically(self.directory / RESULT_FILE, text + "\n")

    @classmethod
    def read(cls, directory: epath.Path) -> "StageResult | None":
        """Read the result that `write` left in a stage's directory; None before it finished."""
        path = directory / RESULT_FILE
        if not path.exists():
            return None
        return read_json(path, functools.partial(cls, directory=directory))

    def trained(self) -> Parameters:
        """Open what the stage trained, at its chosen step."""
        return Parameters(PromotCheckpoint(step_directory(self.directory, self.step)))
