"""A trained prompt as a small file.

`.npz` describes itself: the vectors with their tasks, the pretrained checkpoint that they were
trained on and how. `.npy` is what google-research/prompt-tuning reads: one task's [length, embed]
float32 array in C order. Its own dumps, which have no suffix, are read too, and so are adapters of
peft and the prompt that a checkpoint holds, of this project's or T5X's.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from promot_t5x.checkpoints.formats import peft
from promot_t5x.checkpoints.formats.reading import refuse_stand_in
from promot_t5x.checkpoints.opening import check_finite, open_checkpoint
from promot_t5x.errors import UserError
from promot_t5x.files import write_atomically
from promot_t5x.network.prompt import PROMPT_PATH
from promot_t5x.paths import user_path

FILE_NAME = "prompt.npz"  # in the directory of a stage that trained a prompt
FORMAT = "promot_t5x prompt 1"
_NPY_MAGIC = b"\x93NUMPY"
_ZIP_MAGIC = b"PK"

Prompts = Float[np.ndarray, "tasks length embed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptInfo:
    """Where a prompt comes from. What a file does not say is None or empty.

    **Attributes:**

    - `tasks`: the task of each prompt, in order.
    - `base_hash`: the content hash of the model that it was trained on.
    - `base_path`: where that model was.
    - `initialiser`: how it was initialized; files hold the field under this spelling.
    - `config`: the text of the run's configuration.
    - `step`: the training step.
    """

    tasks: tuple[str, ...] = ()
    base_hash: str | None = None
    base_path: str | None = None
    initialiser: str | None = None
    config: str | None = None
    step: int | None = None


def save_prompt(
    path: str | os.PathLike[str], prompt: Float[Any, "tasks length embed"], info: PromptInfo
) -> tuple[epath.Path, ...]:
    """Write prompts; a kill leaves a file complete or as it was.

    **Arguments:**

    - `path`: ends in `.npz`, or in `.npy` for prompt-tuning's form, in which several prompts go to
      one file each: `<stem>.<task>.npy`.
    - `prompt`: float32.
    - `info`: names one task for each prompt.

    **Returns:** the files written.

    **Raises:** `UserError` for another suffix, and for two tasks of one name.
    """
    place, array = user_path(path, "the prompt file"), np.ascontiguousarray(prompt)
    if array.dtype != np.float32:
        raise ValueError(f"a prompt is float32, not {array.dtype}")
    if len(info.tasks) != len(array):
        raise ValueError(f"{len(array)} prompts, but the tasks {list(info.tasks)}")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.suffix == ".npz":
        fields = {"format": FORMAT, "length": array.shape[1], **dataclasses.asdict(info)}
        buffer = io.BytesIO()
        np.savez(buffer, prompt=array, info=np.array(json.dumps(fields)))
        write_atomically(place, buffer.getvalue())
        return (place,)
    if place.suffix != ".npy":
        raise UserError(
            f"{path}: a prompt file's name ends in .npz (self-describing) or .npy "
            "(prompt-tuning's form)"
        )
    if len(array) == 1:
        targets = [place]
    else:
        targets = [place.parent / f"{place.stem}.{task}.npy" for task in info.tasks]
        if len(set(targets)) < len(targets):
            raise UserError(f"{path}: the tasks {list(info.tasks)} are not all different")
    for target, vectors in zip(targets, array, strict=True):
        buffer = io.BytesIO()
        np.save(buffer, vectors)
        write_atomically(target, buffer.getvalue())
    return tuple(targets)


def load_prompt(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    shape: tuple[int | None, int | None, int | None] | None = None,
) -> tuple[Float[np.ndarray, "tasks length embed"], PromptInfo]:
    """Read prompts, of any form whatever the file is called.

    **Arguments:**

    - `path`: a file, a stage's directory, an adapter of peft or a checkpoint; or several, whose
      prompts are joined in their order.
    - `shape`: the (tasks, length, embed) that they must have; None for any.

    **Returns:** float32 [tasks, length, embed], and what the file says of them; of several files,
    what all of them say alike, and their tasks.

    **Raises:** `UserError` where there is no prompt, one of another shape (both shapes are named),
    or one that holds numbers that are not finite.
    """
    if not isinstance(path, str | os.PathLike):
        array, info = _join([load_prompt(p) for p in path], [str(p) for p in path])
    else:
        array, info = _load(user_path(path, "the prompt file"))
    wanted = shape or (None, None, None)
    if any(w is not None and w != n for w, n in zip(wanted, array.shape, strict=True)):
        text = ", ".join("any" if w is None else str(w) for w in wanted)
        raise UserError(
            f"{path} holds prompts of shape {list(array.shape)} (tasks, length, "
            f"embedding); the run needs [{text}]: set NUM_PROMPTS and PROMPT_LENGTH to the file's, "
            "or name another file"
        )
    return array, info


def _load(path: epath.Path) -> tuple[Prompts, PromptInfo]:
    array, info = _load_directory(path) if path.is_dir() else _load_file(path)
    check_finite({"the prompt": array}, path)
    return array, info


def _load_directory(path: epath.Path) -> tuple[Prompts, PromptInfo]:
    if (path / FILE_NAME).exists():
        return _load_file(path / FILE_NAME)
    if (path / peft.CONFIG_FILE).exists():
        return peft.load_adapter(path)[None], PromptInfo()
    parameters = open_checkpoint(path, partial=True)
    if PROMPT_PATH not in parameters.shapes:
        raise UserError(f"{path} holds no prompt")
    shape = jax.ShapeDtypeStruct(parameters.shapes[PROMPT_PATH].shape, np.float32)
    return parameters.read({PROMPT_PATH: shape})[PROMPT_PATH], PromptInfo()


def _load_file(path: epath.Path) -> tuple[Prompts, PromptInfo]:
    refuse_stand_in(path)
    if not path.is_file():
        raise UserError(f"There is no prompt file {path}")
    if path.name == peft.WEIGHTS_FILE:
        return peft.load_adapter(path.parent)[None], PromptInfo()
    with path.open("rb") as file:
        magic = file.read(len(_NPY_MAGIC))
        file.seek(0)
        try:
            if magic == _NPY_MAGIC:
                array, info = _float32(np.load(file, allow_pickle=False)), PromptInfo()
            elif magic.startswith(_ZIP_MAGIC):
                array, info = _load_described(file)
            else:
                raise ValueError("it is neither .npz nor .npy")
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a prompt file: {error}") from error
    if array.ndim not in (2, 3) or array.dtype.kind != "f" or not array.size:
        raise UserError(
            f"{path} holds {array.dtype} {list(array.shape)}; a prompt is float32 "
            "[length, embedding] or [tasks, length, embedding]"
        )
    array = np.ascontiguousarray(array, np.float32)
    return (array[None] if array.ndim == 2 else array), info


def _float32(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """Read bfloat16, which numpy.save writes as two bytes without a name; else change nothing."""
    if array.dtype == np.dtype("V2"):
        array = array.view(jnp.bfloat16).astype(np.float32)
    return array


def _load_described(file: Any) -> tuple[Shaped[np.ndarray, "..."], PromptInfo]:
    with np.load(file, allow_pickle=False) as fields:
        array, info = fields["prompt"], json.loads(str(fields["info"]))
    if info.pop("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    del info["length"]
    return array, PromptInfo(**{**info, "tasks": tuple(info["tasks"])})


def _join(
    loaded: list[tuple[Float[np.ndarray, "_ _ _"], PromptInfo]], names: list[str]
) -> tuple[Prompts, PromptInfo]:
    shapes = [list(array.shape[1:]) for array, _ in loaded]
    if not loaded or any(shape != shapes[0] for shape in shapes):
        raise UserError(
            f"prompts to be joined differ in shape: {dict(zip(names, shapes, strict=True))}"
        )
    first = dataclasses.asdict(loaded[0][1])
    alike = {
        key: value
        for key, value in first.items()
        if all(getattr(info, key) == value for _, info in loaded)
    }
    alike["tasks"] = tuple(task for _, info in loaded for task in info.tasks)
    return np.concatenate([array for array, _ in loaded]), PromptInfo(**alike)
