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
    """Make an environment with all that the tests' own has but this package; returns its `bin`."""
    site = directory / "others" / "site-packages"  # the name tells libraries from users' code
    site.mkdir(parents=True)
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "promot_t5x" not in entry.name and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    home = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (home / "lib" / version / "site-packages" / "others.pth").write_text(f"{site}\n")
    return home / "bin"
