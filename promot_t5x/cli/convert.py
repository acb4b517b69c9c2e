"""`promot-t5x convert`: a checkpoint of one format into another.

Parses the command line; what it does is imported when it runs.
"""

import argparse
from collections.abc import Sequence

from promot_t5x.checkpoints import pretrained_names
from promot_t5x.checkpoints.conversion import FORMATS
from promot_t5x.cli import flags
from promot_t5x.errors import UserError

PEFT = "peft"  # of adapters alone

_DESCRIPTION = """\
Copies a checkpoint into another format, a few arrays at a time, so that its size does not matter
to memory. SRC may be a checkpoint of this project (a stage's is completed with the base that it
was trained on), of T5X in either format, or of Hugging Face; a directory, a name of `--list`, or
hf://organization/name@revision on Hugging Face's hub.
Its format is detected.

  promot      checkpoint_<step>/ of this project: a whole model, with a checksum an array
  t5x         checkpoint_<step>/ as T5X writes it today (orbax)
  t5x-legacy  checkpoint_<step>/ in T5X's msgpack + zarr format, as the public ones are
  hf          config.json, model.safetensors and a model card, README.md; a prompt goes to
              prompt_adapter/ for peft
  peft        the LoRA adapter that a stage trained, alone; all other formats have it merged

Where DST has no step in its name, the checkpoint is DST/checkpoint_<step>. The model's parameters
and the step are copied; optimizer slots only if asked for. docs/checkpoints.md says what is exact.\
"""

_EXAMPLES = """\
examples:
  promot-t5x convert flan_t5_small /data/flan_t5_small --to hf --tokenizer /data/spiece.model
  promot-t5x convert /data/rte/stage_two /data/rte_t5x --to t5x --remove_prompt
  promot-t5x convert /data/google-mt5-xl /data/mt5_xl --to promot --dtype bfloat16
  promot-t5x convert /data/rte_lora /data/rte_lora_peft --to peft
  promot-t5x convert /data/google-mt5-xl /data/merged --adapter /data/rte_lora_peft --to hf
  promot-t5x convert /data/rte/stage_two export --to hf --remove_prompt --push organization/name
  promot-t5x convert /data/google-mt5-xl --gin            # the gin macros of its shape\
"""


def main(words: Sequence[str]) -> int:
    """Run one command line; returns the exit status."""
    parser = flags.Parser(
        prog="promot-t5x convert",
        usage="promot-t5x convert SRC DST --to FORMAT [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(parser)
    given = parser.parse_args(words)
    if given.list:
        for name in pretrained_names.NAMES:
            print(f"{name:22}{pretrained_names.resolve(name)[0]}")
        return 0
    if given.source is None:
        raise UserError("name the checkpoint to convert. See `promot-t5x convert --help`.")
    from promot_t5x.cli import convert_checkpoint

    if given.gin:
        convert_checkpoint.print_macros(given)
        return 0
    if given.destination is None or given.to is None:
        raise UserError(
            "name the directory to write and its format: promot-t5x convert SRC DST --to "
            f"{{{','.join((*FORMATS, PEFT))}}}."
        )
    if given.to == PEFT:
        convert_checkpoint.export_adapter(given)
        return 0
    convert_checkpoint.convert(given)
    return 0


def _add_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="SRC", help="the checkpoint: a directory or a name")
    add("destination", nargs="?", metavar="DST", help="a directory that does not exist yet")
    add("--to", choices=(*FORMATS, PEFT), help="the format to write")
    add(
        "--adapter",
        action="append",
        default=[],
        metavar="PATH",
        help="merge an adapter into the model: of a stage, a checkpoint or peft; may be repeated",
    )
    add(
        "--remove_prompt",
        action="store_true",
        help="leave the prompt behind: what is written is an ordinary T5; otherwise it comes along",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="round the parameters to this type; without it they stay as they are, bit for bit",
    )
    add(
        "--scanned",
        action="store_true",
        help="with --to t5x or t5x-legacy: the layout of T5X's scalable_t5 networks (stacked "
        "layers, heads apart, a bias in every layer) instead of that of examples/t5",
    )
    add(
        "--bias",
        choices=("shared", "per_layer"),
        help="whether a stack's layers share a position bias (T5, mT5) or have one each (umT5); "
        "shared only where all layers' are equal. Without it, as it is",
    )
    add(
        "--optimizer_state",
        action="store_true",
        help="between T5X's two formats: the optimizer's slots too, everything as it is",
    )
    add(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer files to take along: a directory of Hugging Face's, or a SentencePiece "
        "model; without it those in SRC",
    )
    add(
        "--push",
        metavar="NAME",
        help="with --to hf: upload what was written to this repository of the Hugging Face hub; "
        "the token is HF_TOKEN's, and a repository that does not exist yet is made private",
    )
    add("--gin", action="store_true", help="print SRC's shape as gin macros, and stop")
    add("--list", action="store_true", help="print the bases that have a name, and stop")
