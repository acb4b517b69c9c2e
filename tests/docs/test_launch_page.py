"""docs/launch.md: what it shows of the launchers is what they print.

`python tests/test_docs_launch.py` writes the page anew after a change of theirs.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from promot_t5x import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "launch.md"
BLOCK = re.compile(r"(```console\n\$ (promot-t5x launch [^\n]*)\n)(.*?)(```)", re.DOTALL)


def printed(command: str) -> str:
    """What a command line of the page prints, in a real shell, without this machine's paths."""
    program = shlex.join([sys.executable, "-m", "promot_t5x"])
    done = subprocess.run(
        ["bash", "-c", command.replace("promot-t5x", program, 1)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
    )
    text = done.stdout.replace(sys.executable, "python").replace(str(ROOT), "/clone")
    return text.replace(f"-{__version__}-", "-VERSION-")


def renewed(page: str) -> str:
    return BLOCK.sub(lambda found: found[1] + printed(found[2].strip()) + found[4], page)


def test_the_page_shows_what_the_launchers_print():
    page = PAGE.read_text()
    assert len(BLOCK.findall(page)) == 5
    assert renewed(page) == page, f"run: python {Path(__file__).relative_to(ROOT)}"
    assert "hf_example" not in renewed(page).replace("HF_TOKEN=hf_example --", "")


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text()))
