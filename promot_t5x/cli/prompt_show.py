"""Shows where a prompt comes from and how it lies among the words: `promot-t5x prompt show`.

A trained prompt lies far from the words that it may have started from: `show` says how far, by
the norms of its vectors against the embedding's and the words nearest to each by cosine.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats.shape import EMBEDDING
from promot_t5x.checkpoints.opening import open_checkpoint
from promot_t5x.cli import tasks_questions
from promot_t5x.data.lazy import import_seqio
from promot_t5x.errors import UserError
from promot_t5x.tasks import dialects

_ROWS = 16_384  # of the embedding, compared at one time
_FIRST_BYTE = 3  # the id of byte 0


def show(arguments: argparse.Namespace) -> int:
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
    return 0


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
