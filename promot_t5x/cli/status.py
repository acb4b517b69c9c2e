"""`promot-t5x status MODEL_DIR`: where a run is, by its files alone."""

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from promot_t5x.cli.flags import Parser
from promot_t5x.paths import user_path
from promot_t5x.progress import duration

if TYPE_CHECKING:
    from promot_t5x.runs import status

_EXAMPLES = """\
examples:
  promot-t5x status /data/rte_promot
  promot-t5x status gs://my-bucket/rte_promot"""


def main(argv: Sequence[str]) -> int:
    """Print where the run is; 0 wherever that can be read."""
    parser = Parser(
        prog="promot-t5x status",
        description="Shows where a run is: who is at it and whether that process lives, every "
        "stage with its step, the last save, and the training time left at the pace so far. Reads "
        "files only, from any host that sees them, while the run goes on or after it. For a run on "
        "another host it watches for a heartbeat, twelve seconds at most.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="local or gs://")
    directory = user_path(parser.parse_args(argv).model_dir, "MODEL_DIR")
    from promot_t5x.runs import status

    found = list(_lines(status.read(directory)))
    width = max(len(name) for name, _ in found)
    for name, text in found:
        print(f"{name:{width}}  {text}")
    return 0


# The annotation is text, because `runs` imports JAX, which no help page needs.
def _lines(run: "status.RunStatus") -> Iterator[tuple[str, str]]:
    yield "run", str(run.directory)
    yield "owner", _owner(run)
    if run.alive and run.owner and run.owner.where:
        yield "now", f"{run.owner.where}, at heartbeat {run.owner.heartbeat}"
    for stage in run.stages:
        yield stage.name, _stage(stage)
    if run.compared is not None:
        yield "comparison", "done: report.md" if run.compared else "not done"
    saves = [(*reversed(stage.saved), stage.name) for stage in run.stages if stage.saved]
    if saves:
        when, step, name = max(saves)
        yield "last save", f"{name}, step {step}, {when:%Y-%m-%d %H:%M:%S} UTC"
    if steps := sum(stage.left for stage in run.stages):
        seconds = run.seconds_left
        time = "unknown before the first steps" if seconds is None else duration(seconds)
        yield "time left", f"{time}: {steps} training steps, without evaluations"


def _owner(run: "status.RunStatus") -> str:
    if run.owner is None:
        return "none: no process is at it"
    state = "alive" if run.alive else "dead or suspended: the same command resumes the run"
    return f"{run.owner}; {state}"


def _stage(stage: "status.StageStatus") -> str:
    if stage.result is not None and not stage.left:
        score = "" if stage.result.score is None else f", score {stage.result.score:.2f}"
        return f"done, {stage.step} steps; chose step {stage.result.step}{score}"
    if not stage.step:
        return f"not begun, {stage.total} steps"
    pace = "" if stage.rate is None else f", {stage.rate:.1f} steps/s"
    return f"step {stage.step} of {stage.total}{pace}"
