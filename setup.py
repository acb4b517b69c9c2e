"""Package layout; everything else about the package is in pyproject.toml.

Three directories of the repository are installed inside the package: `tasks/` as
`promot_t5x.tasks`, `launch/` as `promot_t5x.launch`, and `gin/` (no Python in it) as
`promot_t5x/gin`.
"""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
GIN = "promot_t5x.gin"


def gin_packages() -> list[str]:
    """`gin/` and its subdirectories as data-only packages: setuptools copies nothing else."""
    directories = sorted({path.parent.relative_to(HERE) for path in HERE.glob("gin/**/*.gin")})
    return [".".join(("promot_t5x", *directory.parts)) for directory in directories]


setup(
    packages=[
        *find_packages(include=["promot_t5x", "promot_t5x.*"]),
        "promot_t5x.launch",
        "promot_t5x.tasks",
        *(f"promot_t5x.tasks.{name}" for name in find_packages("tasks")),
        *gin_packages(),
    ],
    package_dir={"promot_t5x.launch": "launch", "promot_t5x.tasks": "tasks", GIN: "gin"},
    package_data={
        "": ["*.gin"],
        "promot_t5x": ["py.typed"],
        "promot_t5x.report": ["*.css", "*.js"],
        "promot_t5x.tasks.tiny": ["base/*"],
    },
)
