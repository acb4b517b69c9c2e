"""Command-line flags that several commands take, and the parser that reads them.

Bad flags are a `UserError`, as all bad input is. Imports nothing heavy.
"""

import argparse
import importlib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from promot_t5x.errors import UserError

COMPLETING = "_ARGCOMPLETE"  # in the environment while a shell completes a command line


class Parser(argparse.ArgumentParser):
    """An `argparse` parser whose errors are `UserError`s that name the help page.

    While a shell completes a command line, it answers that shell instead of reading words.
    """

    def parse_args(self, *arguments: Any, **named: Any) -> Any:
        """Read words as `argparse` does."""
        self.answer_shell()
        return super().parse_args(*arguments, **named)

    def answer_shell(self) -> None:
        """Print what may follow, and end the process, where a shell asks for it."""
        if COMPLETING in os.environ:
            from promot_t5x.cli import completion

            completion.complete(self)

    def error(self, message: str) -> NoReturn:
        """Raise `UserError` with the message and where to find help."""
        raise UserError(f"{message}. See `{self.prog} --help`.")


def add_gin_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--gin_file`, `--gin.NAME`, `--gin_bindings`, `--gin_search_paths`."""
    add = parser.add_argument
    add(
        "--gin_file",
        action="append",
        default=[],
        metavar="FILE",
        help="a gin file; may be repeated, later files override earlier ones. Shipped files are "
        "named as models/… or runs/…",
    )
    add(
        "--gin.NAME",
        dest="_",
        metavar="VALUE",
        help="set a macro, as in --gin.BATCH_SIZE=16; a string needs quotes that the shell "
        "leaves alone: --gin.MODEL_DIR='\"/data/run\"'",
    )
    add(
        "--gin_bindings",
        action="append",
        default=[],
        metavar="'X = VALUE'",
        help="set anything, as in 'network.T5Config.scan_layers = True'; may be repeated",
    )
    add(
        "--gin_search_paths",
        type=_paths,
        default=[],
        metavar="DIR,…",
        help="look for gin files here first, then in the current directory and what is shipped",
    )


def add_tfds_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--tfds_data_dir`."""
    parser.add_argument(
        "--tfds_data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets"
    )


def rewrite_gin_flags(words: Sequence[str]) -> list[str]:
    """Rewrite T5X's `--gin.NAME=VALUE` as `--gin_bindings=NAME = VALUE`."""
    rewritten = []
    for word in words:
        if word.startswith("--gin."):
            name, equals, value = word.removeprefix("--gin.").partition("=")
            if not equals or not value:
                raise UserError(f"{word!r} sets nothing: write --gin.{name}=VALUE.")
            word = f"--gin_bindings={name} = {value}"
        rewritten.append(word)
    return rewritten


def _paths(text: str) -> list[str]:
    return [path for path in text.split(",") if path]


def run_action(arguments: argparse.Namespace) -> int:
    """Import and run the action of a command that was parsed; return the exit status.

    **Arguments:**

    - `arguments`: what was parsed; `run` is the action as `module:function`, so that parsing, help
      and completion import nothing heavy.
    """
    module, _, name = arguments.run.partition(":")
    status: int = getattr(importlib.import_module(module), name)(arguments)
    return status
