"""Put the base that `gin/demo/pretrain.gin` made where the demonstration reads it.

    python -m promot_t5x.tasks.tiny.ship runs/demo_pretrain/calibrate

The base travels in the repository as one file that T5X could read too.
"""

import sys
from collections.abc import Sequence

from etils import epath

from promot_t5x import bases, hashing
from promot_t5x.formats import t5x_writing
from promot_t5x.weights import StageResult

BASE = epath.Path(__file__).parent / "base"


def main(argv: Sequence[str]) -> int:
    """Ship the chosen checkpoint of a finished stage; prints the content hash."""
    (stage,) = argv
    result = StageResult.read(epath.Path(stage))
    if result is None:
        print(f"{stage} is not the directory of a finished stage", file=sys.stderr)
        return 2
    params = bases.read_params(result.directory / f"checkpoint_{result.step}")
    t5x_writing.write_inline(BASE, params, result.step)
    print(f"{BASE}: step {result.step}, content hash {hashing.content_hash(params)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
