"""Writes prompts for other programs, and takes theirs: `promot-t5x prompt export`, `import`."""

import argparse
import dataclasses

from promot_t5x.checkpoints import prompt_file
from promot_t5x.checkpoints.formats import peft
from promot_t5x.errors import UserError


def export(arguments: argparse.Namespace) -> int:
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
    return 0


def import_(arguments: argparse.Namespace) -> int:
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
    return 0


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"prompt_{number}" for number in range(count))
