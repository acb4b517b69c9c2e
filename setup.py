"""Builds the package; everything that it says of itself is in pyproject.toml.

`promot_t5x/tasks`, `launch` and `gin` are links to the directories beside the package, so that a
plain checkout, an editable install, tools that read the source and a wheel see one package.
"""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = Path(__file__).parent / "promot_t5x"
LINKS = [PACKAGE / name for name in ("tasks", "launch", "gin")]

for link in LINKS:
    if not link.is_dir():
        raise SystemExit(
            f"{link} is no directory: this copy was unpacked without its symbolic links. Clone the "
            "repository with git (on Windows with core.symlinks=true), or unpack the archive with "
            "a program that keeps links."
        )

setup(
    packages=find_packages(include=["promot_t5x", "promot_t5x.*"]),
    package_data={
        "promot_t5x": ["py.typed", "gin/**/*.gin"],
        "promot_t5x.report": ["*.css", "*.js"],
        "promot_t5x.tasks.tiny": ["base/*"],
    },
)
