"""The package as other machines get it: a wheel of exactly what runs here, and its versions."""

import re
import sys
from pathlib import Path

from promot_t5x.launch.commands import Shell

import promot_t5x
from promot_t5x.errors import UserError

ROOT = Path(promot_t5x.__file__).resolve().parent.parent
CONSTRAINTS = "constraints.txt"


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
        build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory)]
        done = shell.run([sys.executable, *build, str(ROOT)])
        if done.status:
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
