"""The real sample rows that may lie beside a checkout, as prepared TFDS directories.

Take the fixture `real_rows`: SeqIO then reads every TFDS task from those directories, offline.
They are prepared once a machine (some 20 seconds) and kept in the temporary directory.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "samples"


@pytest.fixture(scope="module")
def real_rows() -> Iterator[Path]:
    """The TFDS data directory; skips where the sample rows are not beside the checkout."""
    if not (SAMPLES / "prepare_tfds.py").exists():
        pytest.skip("sample rows are not beside this checkout")
    directory = _prepared()
    import seqio

    seqio.set_tfds_data_dir_override(str(directory))
    yield directory
    seqio.set_tfds_data_dir_override(None)


def _prepared() -> Path:
    files = sorted((path.name, path.stat().st_size) for path in SAMPLES.iterdir())
    key = repr((files, version("tensorflow-datasets"), os.getuid()))
    name = f"promot-t5x-rows-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    directory = Path(tempfile.gettempdir()) / name
    # One worker prepares, the others wait; a killed one leaves no directory of the final name.
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            building = Path(f"{directory}.building")
            shutil.rmtree(building, ignore_errors=True)
            _prepare(building)
            building.rename(directory)
    return directory


def _prepare(directory: Path) -> None:
    script = subprocess.run(
        [sys.executable, str(SAMPLES / "prepare_tfds.py"), str(directory)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    failed = [line for line in script.stdout.splitlines() if line.startswith("FAIL")]
    if script.returncode or failed:
        pytest.fail(f"preparing the sample rows failed: {failed or script.stderr[-2000:]}")
