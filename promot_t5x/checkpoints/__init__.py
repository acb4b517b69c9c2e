"""Checkpoints: opening any model's weights, saving and restoring training, converting.

To read a model's weights, `open_checkpoint` is the one way: `opening` (the result, `Parameters`)
over `finding` (from a path or a name of `pretrained_names` to a format), `formats` and
`promot_checkpoint` (this project's own format), with `sharded_reading` for arrays that are spread
over devices. To save and restore training, read `paths` (where things lie), `manifest`, `checksums`
and `finite` (what makes a step count), `state_tree`, `steps` (which steps there are, and the best),
`saving` and `restoring`; `stage_result` marks a finished stage. `hashing` has the digests,
`prompt_file` the files of trained prompts, `adapters` trained adapters of kernels, `conversion`
copies between formats.

Public are the names below; they are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promot_t5x.checkpoints.hashing import content_hash as content_hash
    from promot_t5x.checkpoints.opening import Parameters as Parameters
    from promot_t5x.checkpoints.opening import open_checkpoint as open_checkpoint
    from promot_t5x.checkpoints.prompt_file import PromptInfo as PromptInfo
    from promot_t5x.checkpoints.prompt_file import load_prompt as load_prompt
    from promot_t5x.checkpoints.prompt_file import save_prompt as save_prompt
    from promot_t5x.checkpoints.restoring import restore as restore
    from promot_t5x.checkpoints.saving import Checkpoints as Checkpoints
    from promot_t5x.checkpoints.steps import best_step as best_step
    from promot_t5x.checkpoints.steps import complete_steps as complete_steps

_MODULES = {
    "Checkpoints": "saving",
    "Parameters": "opening",
    "PromptInfo": "prompt_file",
    "best_step": "steps",
    "complete_steps": "steps",
    "content_hash": "hashing",
    "load_prompt": "prompt_file",
    "open_checkpoint": "opening",
    "restore": "restoring",
    "save_prompt": "prompt_file",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_MODULES)
