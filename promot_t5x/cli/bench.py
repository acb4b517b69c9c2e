"""Time training, saves, decoding and reading data on this machine: `promot-t5x bench`.

Ratios of its own rows: nothing is compared across machines. The network is T5 1.1
small with its own vocabulary size and random weights; the examples are random ids.
"""

import argparse
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser

TABLES = ("training", "saves", "decoding", "data")


def main(argv: Sequence[str]) -> int:
    """Print the tables."""
    parser = Parser(prog="promot-t5x bench", description=__doc__)
    parser.add_argument(
        "--steps", type=_positive, default=3, help="training steps timed for each row"
    )
    parser.add_argument("--batch_size", type=_positive, default=4, help="rows of a batch")
    parser.add_argument(
        "--rows",
        type=_positive,
        nargs="+",
        help="rows of the split that is read; several numbers make a table each",
    )
    parser.add_argument("--only", choices=TABLES, help="leave the other tables out")
    flags = parser.parse_args(argv)
    # Help and completion import nothing heavy.
    import jax

    from promot_t5x.bench import data, decoding, saves, training
    from promot_t5x.distributed.partitioning import Partitioner

    Partitioner().check_batch(flags.batch_size, "--batch_size")
    wanted = (flags.only,) if flags.only else TABLES
    print(f"T5 1.1 small, batch {flags.batch_size}, {jax.devices()[0].platform}")
    if "training" in wanted:
        training.show(flags.batch_size, flags.steps)
    if "saves" in wanted:
        saves.show(flags.batch_size, flags.steps)
    if "decoding" in wanted:
        decoding.show(flags.batch_size)
    if "data" in wanted:
        for rows in flags.rows or (data.ROWS,):
            data.show(rows)
    return 0


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
