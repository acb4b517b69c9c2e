"""`promot-t5x prompt …`: show, export and import prompt files.

Parses the command line; the actions are in modules that are imported when they run.
"""

import argparse
from collections.abc import Sequence

from promot_t5x.cli.flags import Parser, add_gin_flags, rewrite_gin_flags, run_action

_PROGRAM = "promot-t5x prompt"
_EXAMPLES = """\
examples:
  promot-t5x prompt show /data/rte/stage_one/prompt.npz
  promot-t5x prompt show prompt.npz --base /data/mt5_xl/checkpoint_1000000 \\
      --gin_file=models/mt5_xl.gin
  promot-t5x prompt export /data/rte/stage_one/prompt.npz /data/rte.npy
  promot-t5x prompt export /data/rte/stage_one/prompt.npz /data/rte_adapter --peft
  promot-t5x prompt import /data/sst2.npy /data/sst2.npz --task glue_sst2_v200
  promot-t5x prompt import /data/sst2_adapter /data/sst2.npz --task glue_sst2_v200"""


def main(argv: Sequence[str]) -> int:
    """Run one action; return the exit status."""
    return run_action(_parser().parse_args(rewrite_gin_flags(argv)))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=_PROGRAM,
        description="Prompt files: .npz describes itself, .npy is prompt-tuning's form.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = actions.add_parser(
        "show",
        help="where a prompt comes from, and how it lies among the words",
        description="Shows what a prompt file says, and the norms of its vectors. With a base, the "
        "norms of its embeddings and, for each vector, the nearest of them by cosine; with a "
        "model's gin file, as words.",
    )
    add.add_argument("file", help="a prompt file of any form")
    add.add_argument("--base", help="the checkpoint that it was trained with")
    add.add_argument("--nearest", type=int, default=5, help="words shown (default 5)")
    add.add_argument("--config", action="store_true", help="show the run's configuration")
    add_gin_flags(add)
    add.set_defaults(run="promot_t5x.cli.prompt_show:show")
    add = actions.add_parser(
        "export",
        help="write a prompt as other programs read it",
        description="Writes .npy files as google-research/prompt-tuning reads them, [length, "
        "embedding] of one task each, or a .npz. Several prompts go to <stem>.<task>.npy. With "
        "--peft a directory that Hugging Face's peft loads as a prompt-tuning adapter.",
    )
    add.add_argument("file", help="a prompt file of any form")
    add.add_argument("to", help="the file to write; its suffix, .npy or .npz, is the form")
    add.add_argument(
        "--peft",
        action="store_true",
        help="write a directory for peft instead; several prompts go to <to>/<task>",
    )
    add.add_argument("--base", help="with --peft: the Hugging Face model it belongs to, noted")
    add.set_defaults(run="promot_t5x.cli.prompt_files:export")
    add = actions.add_parser(
        "import",
        help="make a self-describing file of other programs' prompts",
        description="Reads prompts of any form (prompt-tuning's dumps have no suffix; adapters of "
        "Hugging Face's peft are directories) and joins them, in order, into one .npz.",
    )
    add.add_argument("files", nargs="+", help="prompt files, or adapters of peft")
    add.add_argument("to", help="the .npz to write")
    add.add_argument("--task", action="append", default=[], help="a prompt's task; once for each")
    add.add_argument("--base", help="the checkpoint that they were trained with, for the record")
    add.set_defaults(run="promot_t5x.cli.prompt_files:import_")
    return parser
