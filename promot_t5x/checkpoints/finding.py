"""From a name or a path to a checkpoint in the format that lies there."""

import contextlib
import difflib
import os
import re

from etils import epath

from promot_t5x.checkpoints import hub, pretrained_names
from promot_t5x.checkpoints.formats import hf_config, peft, read_arrays, t5x
from promot_t5x.checkpoints.formats.hugging_face import HuggingFaceCheckpoint
from promot_t5x.checkpoints.formats.reading import (
    NotACheckpointError,
    dangling_link,
    reading,
    refuse_stand_in,
)
from promot_t5x.checkpoints.formats.t5x import T5xLegacyCheckpoint, T5xOrbaxCheckpoint
from promot_t5x.checkpoints.paths import (
    MANIFEST_FILE,
    STATE_DIRECTORY,
    absolute,
    pending_marker,
    step_directory,
    step_of,
)
from promot_t5x.checkpoints.promot_checkpoint import PromotCheckpoint
from promot_t5x.checkpoints.steps import complete_steps
from promot_t5x.errors import UserError, listed
from promot_t5x.paths import user_path

StoredCheckpoint = (
    PromotCheckpoint | HuggingFaceCheckpoint | T5xLegacyCheckpoint | T5xOrbaxCheckpoint
)
_TF_MARK = b"model_checkpoint_path"


class UnfinishedCheckpointError(UserError):
    """A step is still being saved, or its run was stopped while it was."""


def find_directory(path: str | os.PathLike[str]) -> epath.Path:
    """Return the directory that a name or path means.

    **Arguments:**

    - `path`: a name of `pretrained_names`; `hf://org/name@revision`, which is downloaded; or a
      directory, local or on `gs://`.

    **Raises:** `NotACheckpointError` where there is none, `UserError` where it may not be read.
    """
    if hub.is_reference(path):
        return hub.download(str(path))
    given = pretrained_names.resolve(str(path))
    places = [absolute(user_path(place, "the checkpoint")) for place in given]
    for directory in places:
        with reading(directory):
            if directory.name == t5x.LEGACY_FILE and directory.is_file():
                return directory.parent
            if directory.is_dir():
                return directory
    directory = places[0]
    if len(places) > 1:
        raise NotACheckpointError(f"{path} is at none of {', '.join(map(str, places))}.")
    raise NotACheckpointError(f"{path} {_what_is_there(directory)}.{_nearest(directory)}")


def check_reference(path: object, source: str) -> None:
    """Raise `UserError` for what names no checkpoint, without looking for it.

    **Arguments:**

    - `path`: what was given.
    - `source`: where it is from, for messages, such as `CHECKPOINT_PATH`.
    """
    if isinstance(path, str) and hub.is_reference(path):
        hub.parse(path)
    else:
        user_path(path, source)


def open_stored(path: str | os.PathLike[str]) -> StoredCheckpoint:
    """Detect the format of a checkpoint and open it as it is stored.

    **Arguments:**

    - `path`: as `find_directory` takes it. Of a stage's directory the newest complete checkpoint is
      opened.

    **Raises:** `UserError`, which names the path, what was found there and the nearest checkpoint.
    """
    directory = find_directory(path)
    if steps := complete_steps(directory):
        directory = step_directory(directory, steps[-1])
    if (directory / MANIFEST_FILE).exists():
        return PromotCheckpoint(directory)
    _refuse_unfinished(directory)
    _refuse_tensorflow(directory)
    orbax = [
        place
        for place in (directory / STATE_DIRECTORY, directory)
        if (place / read_arrays.ORBAX_TREE_FILE).exists()
    ]
    legacy = (directory / t5x.LEGACY_FILE).is_file()
    hugging_face = (directory / hf_config.CONFIG_FILE).is_file()
    if bool(orbax) + legacy + hugging_face > 1:
        raise UserError(
            f"{directory} holds checkpoints of several formats: it should have one of "
            f"{STATE_DIRECTORY}/{read_arrays.ORBAX_TREE_FILE}, {t5x.LEGACY_FILE} and "
            f"{hf_config.CONFIG_FILE}. Remove what is not meant."
        )
    if orbax:
        return T5xOrbaxCheckpoint(orbax[0])
    if legacy:
        return T5xLegacyCheckpoint(directory)
    if hugging_face:
        return HuggingFaceCheckpoint(directory)
    for file in (hf_config.CONFIG_FILE, t5x.LEGACY_FILE):
        refuse_stand_in(directory / file)
    raise NotACheckpointError(f"{path} {_what_is_there(directory)}.{_nearest(directory)}")


def _refuse_unfinished(directory: epath.Path) -> None:
    step = step_of(directory.name)
    if step is not None and pending_marker(directory.parent, step).exists():
        raise UnfinishedCheckpointError(
            f"{directory} is still being written, or its run was cut short while it "
            "was. Wait for the run, or start it again, or take an earlier checkpoint."
        )


def _refuse_tensorflow(directory: epath.Path) -> None:
    index = directory / t5x.LEGACY_FILE
    if index.is_file():
        with index.open("rb") as file:
            if file.read(len(_TF_MARK)) == _TF_MARK:
                raise NotACheckpointError(
                    f"{directory} is a TensorFlow (Mesh TensorFlow) checkpoint. Take "
                    "the model's T5X checkpoint, or convert it with T5X."
                )


def _looks_like_checkpoint(directory: epath.Path) -> bool:
    return any(
        (directory / name).exists()
        for name in (
            MANIFEST_FILE,
            t5x.LEGACY_FILE,
            read_arrays.ORBAX_TREE_FILE,
            f"{STATE_DIRECTORY}/{read_arrays.ORBAX_TREE_FILE}",
            hf_config.CONFIG_FILE,
        )
    )


def _what_is_there(path: epath.Path) -> str:
    if path.is_file():
        return "is a file, not a checkpoint directory"
    if not path.exists():
        target = dangling_link(path)
        return "does not exist" if target is None else f"is a link to {target}, which is not there"
    names = sorted(entry.name for entry in path.iterdir())
    if peft.CONFIG_FILE in names:
        return (
            "is an adapter of peft, not a model: `promot-t5x prompt import` makes a prompt file of "
            "it"
        )
    return f"is not a checkpoint: it holds {listed(names)}" if names else "is an empty directory"


def _last_number(path: epath.Path) -> int:
    match = re.search(r"(\d+)$", path.name)
    return int(match[1]) if match else -1


def _nearest(path: epath.Path) -> str:
    """Point at the checkpoint most likely meant: below the path, or beside it by name."""
    with contextlib.suppress(OSError):
        if path.is_dir():
            levels = [sorted(path.glob("*")), sorted(path.glob("*/*"))]
            for entries in levels:
                if found := [e for e in entries if _looks_like_checkpoint(e)]:
                    return f" Did you mean {max(found, key=_last_number)}?"
            return ""
        if path.is_file() or path.parent.is_dir():
            beside = [e for e in sorted(path.parent.iterdir()) if _looks_like_checkpoint(e)]
            near = difflib.get_close_matches(path.name, [e.name for e in beside], n=1, cutoff=0.3)
            return f" Did you mean {path.parent / near[0]}?" if near else ""
        return f" Nor does {path.parent}."
    return ""
