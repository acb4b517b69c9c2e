"""`promot-t5x prompt …`: show, export and import prompt files.

A trained prompt lies far from the words that it may have started from: `show` says how far, by
the norms of its vectors against the embedding's and the words nearest to each by cosine.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats import peft
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import tasks_questions
from promot_t5x.cli.flags import Parser, add_gin_flags, rewrite_gin_flags
from promot_t5x.data.lazy import import_seqio
from promot_t5x.errors import UserError
from promot_t5x.tasks import dialects

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
_ROWS = 16_384  # of the embedding, compared at one time
_FIRST_BYTE = 3  # the id of byte 0


def main(argv: Sequence[str]) -> int:
    """Run one action; return the exit status."""
    arguments = _parser().parse_args(rewrite_gin_flags(argv))
    arguments.run(arguments)
    return 0


def show(arguments: argparse.Namespace) -> None:
    """Show where a prompt comes from, and how it lies among the words: `prompt show`."""
    prompts, info = prompt_file.load_prompt(arguments.file)
    count, length, width = prompts.shape
    print(f"{arguments.file}: prompts {count}, length {length}, embedding {width}, float32")
    for field in dataclasses.fields(info):
        value = getattr(info, field.name)
        if value and field.name not in ("tasks", "config"):
            print(f"  {field.name}: {value}")
    if info.config:
        lines = info.config.rstrip().splitlines()
        print(
            f"  config: {len(lines)} lines" + ("" if arguments.config else " (--config shows it)")
        )
        if arguments.config:
            print("\n".join(f"    {line}" for line in lines))
    table = _embedding(arguments.base, width) if arguments.base else None
    if table is not None:
        print(f"  norms of the base's {len(table):,} embeddings: {_spread(_norms(table))}")
    vocabulary = _vocabulary(arguments)
    for number, vectors in enumerate(prompts):
        task = info.tasks[number] if number < len(info.tasks) else f"prompt {number}"
        print(f"  {task}: norms of the vectors {_spread(_norms(vectors))}")
        if table is not None:
            _show_nearest(vectors, table, vocabulary, arguments.nearest)


def export(arguments: argparse.Namespace) -> None:
    """Write a prompt as other programs read it: `prompt export`."""
    if arguments.base and not arguments.peft:
        raise UserError("prompt export notes a --base in adapters only: add --peft.")
    prompts, info = prompt_file.load_prompt(arguments.file)
    if len(info.tasks) != len(prompts):
        info = dataclasses.replace(info, tasks=_names(len(prompts)))
    if arguments.peft:
        written = peft.save_adapters(arguments.to, prompts, info.tasks, base_model=arguments.base)
    else:
        written = [*prompt_file.save_prompt(arguments.to, prompts, info)]
    for path in written:
        print(path)


def import_(arguments: argparse.Namespace) -> None:
    """Join prompts of other programs into a file that describes itself: `prompt import`."""
    prompts, info = prompt_file.load_prompt(arguments.files)
    tasks = tuple(arguments.task) or info.tasks
    if len(tasks) != len(prompts):
        raise UserError(
            f"{len(prompts)} prompts, but the tasks {list(tasks)}: name one task for each, in "
            "order, with --task."
        )
    if not str(arguments.to).endswith(".npz"):
        raise UserError(f"{arguments.to}: a self-describing prompt file's name ends in .npz.")
    info = dataclasses.replace(info, tasks=tasks, base_path=arguments.base or info.base_path)
    for path in prompt_file.save_prompt(arguments.to, prompts, info):
        print(path)


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"prompt_{number}" for number in range(count))


def _embedding(base: str, width: int) -> Float[np.ndarray, "vocab width"]:
    parameters = open_checkpoint(base)
    shape = parameters.shapes[EMBEDDING].shape
    if shape[1] != width:
        raise UserError(
            f"The vectors have {width} numbers and the embeddings of {base} {shape[1]}: it is not "
            "the model that they were trained with."
        )
    wanted = {EMBEDDING: jax.ShapeDtypeStruct(shape, np.float32)}
    table: np.ndarray = parameters.read(wanted)[EMBEDDING]
    return table


def _vocabulary(arguments: argparse.Namespace) -> Any:
    """Return the vocabulary of the model that the gin files configure, if there are any."""
    if not (arguments.gin_file or arguments.gin_bindings):
        return None
    return tasks_questions.configured_model(arguments).vocabulary


def _norms(vectors: Float[np.ndarray, "n width"]) -> Float[np.ndarray, " n"]:
    norms: np.ndarray = np.linalg.norm(vectors, axis=-1)
    return norms


def _spread(values: Float[np.ndarray, " n"]) -> str:
    return (
        f"{values.mean():.4g} ± {values.std():.3g} "
        f"(least {values.min():.4g}, most {values.max():.4g})"
    )


def nearest(
    vectors: Float[np.ndarray, "length width"], table: Float[np.ndarray, "vocab width"], count: int
) -> tuple[Int[np.ndarray, "length k"], Float[np.ndarray, "length k"]]:
    """Return the rows of a table that are nearest to each vector by cosine, and the cosines.

    **Arguments:**

    - `vectors`: of a prompt.
    - `table`: the embedding.
    - `count`: how many rows are returned for each vector, the nearest first.
    """
    unit = vectors / np.maximum(_norms(vectors), 1e-30)[:, None]
    cosines = np.concatenate(
        [
            unit @ (rows / np.maximum(_norms(rows), 1e-30)[:, None]).T
            for rows in (table[i : i + _ROWS] for i in range(0, len(table), _ROWS))
        ],
        axis=1,
    )
    order = np.argsort(-cosines, axis=1)[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def _show_nearest(vectors: Any, table: Any, vocabulary: Any, count: int) -> None:
    ids, cosines = nearest(vectors, table, count)
    for position, (row, near) in enumerate(zip(ids, cosines, strict=True)):
        words = [_word(vocabulary, int(id_)) for id_ in row]
        pairs = zip(words, near, strict=True)
        print(f"    {position:3}  " + "  ".join(f"{word} {cosine:.2f}" for word, cosine in pairs))


def _word(vocabulary: Any, id_: int) -> str:
    if vocabulary is None or id_ >= vocabulary.vocab_size:
        return f"#{id_}"
    special = {vocabulary.pad_id: "<pad>", vocabulary.eos_id: "</s>", vocabulary.unk_id: "<unk>"}
    if id_ in special:
        return special[id_]
    if text := dialects.decode(vocabulary, [id_]):
        return repr(text)
    if isinstance(vocabulary, import_seqio().ByteVocabulary):
        return f"<0x{id_ - _FIRST_BYTE:02X}>"  # a part of a character
    return f"#{id_}"


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
    add.set_defaults(run=show)
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
    add.set_defaults(run=export)
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
    add.set_defaults(run=import_)
    return parser
