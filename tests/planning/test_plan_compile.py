"""The TPU compiler takes a small model for every kind of chip, and what it needs has not grown.

`make plan-record` renews the record after a change that is meant.
"""

import json
import os
import subprocess
import sys

import plan_helpers
import pytest

from promot_t5x.planning import compiler

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        compiler.library() is None, reason="no TPU compiler here; `make test` installs it"
    ),
]
ALLOWED = 1.05


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """One process for everything: what takes time is compiling."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    environment["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    done = subprocess.run(
        [sys.executable, plan_helpers.__file__], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("slice_", "program"),
    [(slice_, each) for slice_, programs in plan_helpers.PROGRAMS.items() for each in programs],
)
def test_nothing_has_grown(measured, slice_, program):
    recorded = json.loads(plan_helpers.RECORD.read_text())[slice_][program]
    now = measured[slice_][program]
    assert now.keys() == recorded.keys()
    for what, before in recorded.items():
        assert now[what] <= ALLOWED * before, (
            f"{program} for {slice_}: {what} is {now[what]:,.0f}, recorded {before:,.0f}"
        )


def test_stage_one_takes_less_than_stage_two(measured):
    one, two = measured["v4-8"]["stage_one"], measured["v5p-8"]["stage_two"]
    assert one["hbm_bytes"] < 0.7 * two["hbm_bytes"]
    assert one["flops"] < 0.8 * two["flops"]
    assert one["sent_bytes"] < two["sent_bytes"]
