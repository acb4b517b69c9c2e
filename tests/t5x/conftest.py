"""Where upstream is: T5X_PATH names checkouts of t5x, airio and jestimator, ":" between them."""

import os
import subprocess
import sys

import pytest
from upstream_helpers import environment


@pytest.fixture(scope="session", autouse=True)
def upstream():
    """Fail at once, with T5X's own words, where it cannot be imported."""
    if not os.environ.get("T5X_PATH"):
        pytest.exit("Set T5X_PATH to the checkouts of T5X and what it needs: see docs/t5x.md.", 2)
    done = subprocess.run(
        [sys.executable, "-c", "import t5x.train, t5x.eval, t5x.infer"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.exit(f"T5X cannot be imported (T5X_PATH): {done.stderr[-3000:]}", 2)
