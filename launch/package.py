"""The package as other machines get it: a wheel of exactly what runs here, and its versions."""

import re
import sys
from pathlib import Path

import promot_t5x
from promot_t5x.errors import UserError
from promot_t5x.launch.commands import Shell

ROOT = Path(promot_t5x.__file__).resolve().parent.parent
CONSTRAINTS = "constraints.txt"
_SOURCES = (
    "promot_t5x", "tasks", "launch", "gin", "setup.py", "pyproject.toml", "README.md", "LICENSE",
)  # fmt: skip


def stage(directory: Path, wheel: str | None, shell: Shell) -> str:
    """Put the package's wheel and constraints into `directory`; the wheel's file name.

    **Arguments:**

    - `wheel`: a wheel of the package; without one it is built from the clone that runs here, as it
      is now.

    **Raises** `UserError` where there is neither.
    """
    if wheel is None:
        if not (ROOT / "setup.py").exists():
            raise UserError(
                f"The package runs from {ROOT}, which is no clone that a wheel could be built "
                "from: give --wheel=FILE."
            )
        # Of a copy: what earlier builds have left in the clone would get into the wheel.
        copy = directory / "source"
        # By the setuptools that is installed here, so that no package index is asked.
        build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        build += ["--wheel-dir", str(directory)]
        for words in (
            ["mkdir", str(copy)],
            ["cp", "-r", *(str(ROOT / name) for name in _SOURCES), str(copy)],
            [sys.executable, *build, str(copy)],
            ["rm", "-r", str(copy)],
        ):
            if shell.run(words).status:
                raise UserError("The package's wheel could not be built; the reason is above.")
    else:
        if not re.fullmatch(r"promot_t5x-.*\.whl", Path(wheel).name) or not Path(wheel).is_file():
            raise UserError(f"--wheel={wheel!r} is no wheel of promot_t5x.")
        shell.run(["cp", wheel, str(directory)])
    if (ROOT / CONSTRAINTS).exists():
        shell.run(["cp", str(ROOT / CONSTRAINTS), str(directory)])
    if shell.dry:
        return f"promot_t5x-{promot_t5x.__version__}-py3-none-any.whl"
    (built,) = directory.glob("promot_t5x-*.whl")
    return built.name
