"""A small model planned for a slice of every kind of chip, and what that was last recorded to take.

`python tests/helpers/plan_helpers.py` prints the numbers; `--record` keeps them in plans.json.
"""

import json
import sys
from pathlib import Path

RECORD = Path(__file__).parent / "plans.json"
# Every kind of chip, and every kind of program: each takes half a minute to compile. All slices
# have four chips.
PROGRAMS = {
    "v4-8": ("stage_one",),
    "v5litepod-4": ("ask rte",),
    "v5p-8": ("stage_two",),
    "v6e-4": ("stage_two",),
}
FILES = ["models/mt5.gin", "runs/promot.gin"]
BINDINGS = [
    *(f"{name} = {size}" for name, size in {
        "EMBED_DIM": 256, "NUM_HEADS": 4, "HEAD_DIM": 64, "MLP_DIM": 512, "NUM_EMBEDDINGS": 4096,
        "NUM_ENCODER_LAYERS": 4, "NUM_DECODER_LAYERS": 4, "NUM_PARTITIONS": 2, "BATCH_SIZE": 16,
        "SCAN_LAYERS": True, "DROPOUT_RATE": 0.0,
    }.items()),
    "REMAT_POLICY = 'full'",
    "PROMPT_FROZEN_DTYPE = 'bfloat16'",
    "MIXTURE_OR_TASK_NAME = 'rte'",
    "TASK_FEATURE_LENGTHS = {'inputs': 256, 'targets': 8}",
]  # fmt: skip


def measure() -> dict[str, dict[str, dict[str, float]]]:
    """{slice: {program: {HBM bytes of a chip, FLOPs of the step}}}."""
    from promot_t5x.planning import compiler

    compiler.prepare()
    from promot_t5x.planning import chips, planned_runs, settings_search

    def read(extra):
        return planned_runs.read(FILES, [*BINDINGS, *extra], [])

    found = {}
    for name, programs in PROGRAMS.items():
        trial = settings_search.plan(read, chips.find_slice(name), programs, lambda text: None)
        found[name] = {
            each.program: {
                "hbm_bytes": each.total_bytes,
                "temporary_bytes": each.temporary_bytes,
                "flops": each.flops.executed,
                "sent_bytes": sum(each.traffic.sent_bytes.values()),
            }
            for each in trial.estimates
        }
    return found


if __name__ == "__main__":
    text = json.dumps(measure(), indent=1, sort_keys=True)
    if sys.argv[1:] == ["--record"]:
        RECORD.write_text(text + "\n")
    print(text)
