"""The package as a release: a clone as git hands it out, and environments that have no network."""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGED = ("promot_t5x", "tasks", "launch", "gin", "setup.py", "README.md", "pyproject.toml",
            "LICENSE", "constraints.txt")  # fmt: skip


def copy_of_the_clone(directory: Path) -> Path:
    """What git would hand out of the package, links included."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *PACKAGED],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    names = [name for name in names if name and (ROOT / name).exists()]
    subprocess.run(["cp", "-P", "--parents", *names, str(directory)], cwd=ROOT, check=True)
    return directory


def bare_environment(directory: Path) -> Path:
    """Make an environment that sees the tests' own packages and installs into itself alone.

    An editable install in the tests' own is not seen: `.pth` files there are not read.

    Returns its `bin`.
    """
    home = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = f"{sysconfig.get_path('purelib')}\n"
    (home / "lib" / version / "site-packages" / "others.pth").write_text(others)
    return home / "bin"
