"""The file in a stage's directory that marks it as finished and names the step it chose."""

import dataclasses
import json

from etils import epath

from promot_t5x.checkpoints.opening import Parameters
from promot_t5x.checkpoints.paths import step_directory
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.files import write_atomically

RESULT_FILE = "stage.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage: its directory, its chosen step, and that step's validation score."""

    directory: epath.Path
    step: int
    score: float | None

    def write(self) -> None:
        """Mark the stage as finished."""
        text = json.dumps({"step": self.step, "score": self.score}, indent=1)
        write_atomically(self.directory / RESULT_FILE, text + "\n")

    @classmethod
    def read(cls, directory: epath.Path) -> "StageResult | None":
        """Read the result that `write` left in a stage's directory; None before it finished."""
        path = directory / RESULT_FILE
        if not path.exists():
            return None
        return cls(directory=directory, **json.loads(path.read_text()))

    def trained(self) -> Parameters:
        """Open what the stage trained, at its chosen step."""
        return Parameters(PromotCheckpoint(step_directory(self.directory, self.step)))
