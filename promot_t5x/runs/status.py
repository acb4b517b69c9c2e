"""Where a run is, by its files alone: read from any machine that sees its directory.

The configuration says which stages there are and how many steps each takes; the stages' own files
say how far they are; `owner.json` says who is at it. Nothing is claimed and nothing written.
"""

import ast
import contextlib
import dataclasses
import datetime
import json
import re
from collections.abc import Iterator, Mapping

from etils import epath

from promot_t5x.checkpoints.paths import MANIFEST_FILE, step_directory
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.config import gin_reader
from promot_t5x.errors import UserError
from promot_t5x.runs import ownership, run_directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageStatus:
    """How far a stage is.

    **Attributes:**

    - `name`: its directory below the run's, as in `seed_0/stage_one`; `.` where it is the run's.
    - `step`, `total`: the newest step whose numbers were written, and the last one.
    - `rate`: training steps a second, at the newest step; None before there is one.
    - `result`: of a finished stage.
    - `saved`: the newest complete checkpoint's step, and when it was written, in UTC.
    """

    name: str
    step: int
    total: int
    rate: float | None
    result: StageResult | None
    saved: tuple[int, datetime.datetime] | None

    @property
    def left(self) -> int:
        """Steps that are still to train."""
        return max(self.total - self.step, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run is.

    **Attributes:**

    - `directory`: of the run.
    - `owner`, `alive`: the run that writes there, and whether it lives.
    - `stages`: in the order in which they run; empty for `eval` and `infer`.
    - `compared`: whether the table of a whole run is there; None where there will be none.
    """

    directory: epath.Path
    owner: ownership.Owner | None
    alive: bool
    stages: tuple[StageStatus, ...]
    compared: bool | None

    @property
    def seconds_left(self) -> float | None:
        """Time that training still takes at the pace so far; None while there is no pace.

        A stage that has not begun is taken to run at the pace of the newest one that has.
        """
        seconds, pace = 0.0, None
        for stage in self.stages:
            pace = stage.rate or pace
            if stage.left and pace is None:
                return None
            seconds += stage.left / pace if pace else 0.0
        return seconds


def read(directory: epath.Path) -> RunStatus:
    """Read where a run is.

    **Arguments:**

    - `directory`: its MODEL_DIR, or another directory of results, local or a bucket's.

    **Raises:** `UserError` where no run has been.
    """
    config = directory / run_directory.CONFIG
    try:
        text = config.read_text()
    except OSError as error:
        raise UserError(
            f"{directory} holds no run: there is no {run_directory.CONFIG}. Name a MODEL_DIR (or "
            "EVAL_OUTPUT_DIR, INFER_OUTPUT_DIR), on a host that sees it."
        ) from error
    bindings = gin_reader.plain_bindings(text, str(config))
    owner, alive = ownership.look(directory)
    is_whole = "promot.promot.stages" in bindings
    return RunStatus(
        directory=directory,
        owner=owner,
        alive=alive,
        stages=tuple(_stage(directory, name, total) for name, total in _planned(bindings)),
        compared=(directory / "report.md").exists() if is_whole else None,
    )


def _planned(bindings: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Yield each stage's directory below the run's, and its steps."""
    if "train.train.stage" in bindings:
        (scope,) = _scopes(_resolved(bindings, "train.train.stage"))
        yield ".", int(_of_stage(bindings, scope, "train_steps"))
    if "promot.promot.stages" not in bindings:
        return
    seeds = ast.literal_eval(_resolved(bindings, "promot.promot.seeds") or "None")
    homes = [""] if seeds is None else [f"seed_{seed}/" for seed in seeds]
    scopes = _scopes(_resolved(bindings, "promot.promot.stages"))
    for home in homes:
        for scope in scopes:
            name = ast.literal_eval(_of_stage(bindings, scope, "name"))
            yield f"{home}{name}", int(_of_stage(bindings, scope, "train_steps"))


def _resolved(bindings: Mapping[str, str], name: str) -> str:
    value = bindings.get(name, "")
    while value.startswith("%"):
        value = bindings[value.removeprefix("%")]
    return value


def _scopes(value: str) -> list[str]:
    """`[@one/stages.Stage(), @stages.Stage()]` -> `["one/", ""]`."""
    return re.findall(r"@((?:[\w.]+/)*)[\w.]*\bStage\(\)", value)


def _of_stage(bindings: Mapping[str, str], scope: str, parameter: str) -> str:
    own = f"{scope}stages.Stage.{parameter}"
    return _resolved(bindings, own if own in bindings else f"stages.Stage.{parameter}")


def _stage(home: epath.Path, name: str, total: int) -> StageStatus:
    directory = home if name == "." else home / name
    result = StageResult.read(directory)
    steps = complete_steps(directory)
    saved = None
    with contextlib.suppress(OSError):  # the run may remove it at this moment
        if steps:
            written = (step_directory(directory, steps[-1]) / MANIFEST_FILE).stat().mtime
            saved = (steps[-1], datetime.datetime.fromtimestamp(written, datetime.UTC))
    step, rate = _newest(directory / "train" / "timing.jsonl")
    step = max([step, *steps, (result.train_steps or result.step) if result else 0])
    return StageStatus(name=name, step=step, total=total, rate=rate, result=result, saved=saved)


def _newest(timing: epath.Path) -> tuple[int, float | None]:
    """Return the newest step with its pace; a line that is just being written does not count."""
    found: tuple[int, float | None] = (0, None)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in timing.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError):
                row = json.loads(line)
                found = (row["step"], row["steps_per_second"])
    return found
