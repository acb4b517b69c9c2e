"""Keep answers as they come, one line per batch: a killed run loses the batch at hand alone.

The first line identifies the questions and the weights; answers to anything else are not used.
"""

import contextlib
import io
import json
import os
from typing import Any

from etils import epath

from promot_t5x.files import read_json_lines, write_json_lines


class Journal:
    """The batches answered so far of one plan.

    **Arguments:**

    - `path`: of the file, which exists while the plan is under way.
    - `identity`: of the questions, the plan, the weights and the method of decoding.
    """

    def __init__(self, path: epath.Path, identity: str):
        self._path, self._identity = path, identity

    def read(self) -> dict[int, Any]:
        """Return what `add` has been given by earlier launches, by the number of the batch.

        Makes the file, empty if it was another plan's.
        """
        lines = read_json_lines(self._path)
        first: dict[str, Any] = {"identity": self._identity}
        kept = lines if lines[:1] == [first] else [first]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Written anew without the torn line that a kill may have left at its end.
        write_json_lines(self._path, kept)
        return {int(line["batch"]): line["answers"] for line in kept[1:]}

    def add(self, batch: int, answers: Any) -> None:
        """Append a batch's answers; they are on disk when this returns."""
        with self._path.open("a") as file:
            line = {"batch": batch, "answers": answers}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            # A bucket's file is written when it is closed, and has no descriptor.
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file, once the plan is done and its results lie elsewhere."""
        self._path.unlink(missing_ok=True)
