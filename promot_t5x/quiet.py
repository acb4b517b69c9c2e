"""Keeps what native libraries say about themselves at start-up off stderr.

TensorFlow 2.21 logs its build options while it is imported, before any setting of its logging
takes effect; no environment variable stops it.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

_CHATTER = re.compile(rb"I0000 |WARNING: All log messages before absl::InitializeLog\(\)")


def set_defaults() -> None:
    """Ask the libraries to log errors only, unless the user's environment says otherwise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Hold back the process's stderr; let all but the known chatter through at the end."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            for line in held:
                if not _CHATTER.match(line):
                    os.write(2, line)
