"""Put the base that `gin/demo/pretrain.gin` made where the demonstration reads it.

    python -m tools.ship_demo_base runs/demo_pretrain

The base travels in the repository as one file that T5X could read too, and beside it

- `recipe.gin`: the resolved configuration of the run that made it;
- `training.jsonl`: the loss of its first steps, and of every so many after them, by stage;
- `card.json`: its content hash, its scores, and what it was made with.
"""

import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from promot_t5x import versions
from promot_t5x.checkpoints import hashing
from promot_t5x.checkpoints.formats import t5x_writing
from promot_t5x.checkpoints.stage_result import StageResult
from promot_t5x.cli import main as cli
from promot_t5x.files import read_json_lines, write_atomically, write_json_lines
from promot_t5x.tasks import tiny

BASE = epath.Path(tiny.__file__).parent / "base"
STAGES = ("learn", "calibrate")
SUITES = ("tiny_icl_1shot", "tiny_icl_0shot")
FIRST, EVERY = 20, 20  # steps of the training log that are kept


def ship(run: epath.Path, result: StageResult) -> dict[str, Any]:
    """Put a finished run's chosen checkpoint, recipe, log and card into `BASE`; the card."""
    shutil.rmtree(BASE, ignore_errors=True)
    params = result.trained().read_tree()
    t5x_writing.write_inline(BASE, params, result.step)
    write_atomically(BASE / "recipe.gin", (run / "config.gin").read_text())
    write_json_lines(
        BASE / "training.jsonl",
        [
            {"stage": stage, "step": row["step"], "loss": row["loss_sum"]}
            for stage in STAGES
            for row in read_json_lines(run / stage / "train" / "metrics.jsonl")
            if row["step"] <= FIRST or row["step"] % EVERY == 0
        ],
    )
    card = {
        "hash": hashing.content_hash(params),
        "stage": result.directory.name,
        "step": result.step,
        "platform": platform_name(),
        "versions": versions.installed(),
        "tokens": token_hashes(run),
        "scores": scores(),
    }
    write_atomically(BASE / "card.json", json.dumps(card, indent=1) + "\n")
    return card


def platform_name() -> str:
    """Name the system and the kind of processor: part of what a run's numbers depend on."""
    cpu = "AVX-512" if _has_avx512() else "no AVX-512"
    return f"{platform.system()} {platform.machine()}, {cpu}"


def _has_avx512() -> bool:
    path = epath.Path("/proc/cpuinfo")
    return path.exists() and "avx512f" in path.read_text()


def token_hashes(run: epath.Path) -> dict[str, str]:
    """Read the content hash of each token store that a run trained on, by task and split."""
    stores = [json.loads(path.read_text()) for path in (run / "token_cache").glob("*/store.json")]
    return {meta["name"]: meta["content_hash"] for meta in stores}


def scores(suites: Sequence[str] = SUITES) -> Mapping[str, Mapping[str, float]]:
    """Measure the shipped base's exact match on the test split, {mixture: {task: percent}}."""
    found: dict[str, dict[str, float]] = {}
    for suite in suites:
        with tempfile.TemporaryDirectory() as output:
            words = {
                "CHECKPOINT_PATH": "tiny_world",
                "EVAL_OUTPUT_DIR": output,
                "MIXTURE_OR_TASK_NAME": suite,
                "TASK_FEATURE_LENGTHS": {"inputs": 48, "targets": 6},
                "SPLIT": "test",
                "BATCH_SIZE": 200,
            }
            status = cli.main(
                [
                    "eval",
                    "--gin_file=demo/model.gin",
                    "--gin_file=runs/eval.gin",
                    "--gin.DECODING=@decoding.Greedy()",
                    *(f"--gin.{name}={value!r}" for name, value in words.items()),
                ]
            )
            if status:
                raise RuntimeError(f"the evaluation of {suite} ended with status {status}")
            directory = epath.Path(output) / "inference_eval"
            found[suite] = {
                path.name.removesuffix("-metrics.jsonl"): read_json_lines(path)[-1]["exact_match"]
                for path in sorted(directory.glob("*-metrics.jsonl"))
            }
    return found


def main(argv: Sequence[str]) -> int:
    """Ship a finished run; prints the content hash and the scores."""
    (run,) = map(epath.Path, argv)
    result = StageResult.read(run / STAGES[-1])
    if result is None:
        print(f"{run} is not the directory of a finished run", file=sys.stderr)
        return 2
    card = ship(run, result)
    print(f"{BASE}: stage {card['stage']}, step {card['step']}, content hash {card['hash']}")
    for suite, by_task in card["scores"].items():
        print(f"{suite}: mean {sum(by_task.values()) / len(by_task):.1f}, {by_task}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
