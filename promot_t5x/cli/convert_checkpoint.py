"""Converts checkpoints and shows the progress: what `promot-t5x convert` does."""

import argparse
import sys

from promot_t5x.checkpoints import adapters, hub
from promot_t5x.checkpoints.conversion import conversion
from promot_t5x.checkpoints.conversion.conversion import Conversion
from promot_t5x.checkpoints.formats import peft_lora, shape
from promot_t5x.errors import UserError
from promot_t5x.paths import user_path
from promot_t5x.progress import Progress

_MIB = 2**20


def print_macros(given: argparse.Namespace) -> None:
    """Print the shape of a checkpoint as gin macros."""
    opened = conversion.open_for_conversion(given.source, with_prompt=False)
    print(opened.model_shape().macros(), end="")


def export_adapter(given: argparse.Namespace) -> None:
    """Write the adapter of a stage for peft."""
    changes = (
        given.adapter,
        given.remove_prompt,
        given.dtype,
        given.scanned,
        given.bias,
        given.push,
    )
    if any(changes) or given.optimizer_state or given.tokenizer:
        raise UserError("--to peft writes an adapter as it was trained: it takes no other option.")
    opened = conversion.open_for_conversion(given.source, with_prompt=False)
    config = opened.model_shape().config()
    found = adapters.open_adapter(given.source, config)
    peft_lora.save(given.destination, found.lora, found.arrays, config=config)
    print(f"from {found.directory}\nto {given.destination} (peft, rank {found.lora.rank})")


def convert(given: argparse.Namespace) -> None:
    """Write the checkpoint in the format that was asked for."""
    if given.push is not None:
        if given.to != "hf":
            raise UserError(f"--push uploads Hugging Face's format: --to hf, not {given.to}.")
        hub.check_upload(given.push)
    opened = conversion.open_for_conversion(
        given.source, with_prompt=not given.remove_prompt, adapters=given.adapter
    )
    destination = conversion.destination_of(given.destination, given.to, opened)
    job = Conversion(
        opened=opened,
        to=given.to,
        destination=destination,
        dtype=given.dtype,
        remove_prompt=given.remove_prompt,
        scanned=given.scanned,
        bias_per_layer=None if given.bias is None else given.bias == "per_layer",
        optimizer_state=given.optimizer_state,
        tokenizer=None if given.tokenizer is None else user_path(given.tokenizer, "--tokenizer"),
        card=_card(given, opened, destination.name) if given.to == "hf" else None,
    )
    print(f"from {' over '.join(opened.origins)} ({opened.format}, step {opened.step})")
    if not (opened.knows_prompt or given.remove_prompt):
        print(
            f"{opened.directory} was saved by an earlier version, which did not note the prompt of "
            "its stage: no prompt comes along. `promot-t5x prompt export` writes one by itself",
            file=sys.stderr,
        )
    shown: list[Progress] = []

    def progress(done: int, total: int) -> None:
        if not shown:
            shown.append(Progress("convert", -(-total // _MIB)))
        shown[0].update(-(-done // _MIB), "MiB")

    files = job.run(progress)
    for line in shown:
        line.close()
    print(f"to {job.destination} ({job.to}, step {job.step})")
    if files:
        print(f"with {', '.join(files)}")
    elif job.to == "hf":
        print(
            "without tokenizer files: there are none beside SRC; give --tokenizer", file=sys.stderr
        )
    if job.to == "hf" and shape.activation_of(opened.described) is None:
        activation = opened.model_shape().mlp_activations[0]
        print(f"T5X does not record the MLP's activation; {activation} it is, as in all of T5")
    if given.push is not None:
        print(f"uploaded: {hub.upload(job.destination, given.push)}")


def _card(given: argparse.Namespace, opened: conversion.ConversionSource, name: str) -> str:
    from promot_t5x.report import model_card

    title = given.push or name
    return model_card.card(opened, title=title, prompt_removed=given.remove_prompt)
