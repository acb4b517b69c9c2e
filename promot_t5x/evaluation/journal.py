"""Keep answers as they come, one line per batch: a killed run loses the batch at hand alone.

The first line identifies the questions and the weights; answers to anything else are not used.
Every line ends with its checksum, and a damaged one does not count.
"""

import contextlib
import hashlib
import io
import json
import os
from typing import Any

from etils import epath

from promot_t5x.files import write_atomically


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
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        first = _line({"identity": self._identity})
        kept = list(filter(_is_whole, lines)) if lines[:1] == [first] else [first]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Written anew without the torn line that a kill may have left at its end.
        write_atomically(self._path, b"".join(line + b"\n" for line in kept))
        rows = [json.loads(line)[0] for line in kept[1:]]
        return {int(row["batch"]): row["answers"] for row in rows}

    def add(self, batch: int, answers: Any) -> None:
        """Append a batch's answers; they are on disk when this returns."""
        with self._path.open("ab") as file:
            file.write(_line({"batch": batch, "answers": answers}) + b"\n")
            file.flush()
            # A bucket's file is written when it is closed, and has no descriptor.
            with contextlib.suppress(AttributeError, io.UnsupportedOperation):
                os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the file, once the plan is done and its results lie elsewhere."""
        self._path.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> bytes:
    return _sealed(json.dumps(row, ensure_ascii=False).encode())


def _sealed(body: bytes) -> bytes:
    return b'[%s, "%s"]' % (body, hashlib.sha256(body).hexdigest().encode())


def _is_whole(line: bytes) -> bool:
    return line == _sealed(line[1:].rpartition(b', "')[0])
