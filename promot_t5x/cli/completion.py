"""`promot-t5x completion SHELL`, and the answers to that shell while a command line is typed.

argcomplete's script starts the program at each press of TAB, with `_ARGCOMPLETE` in its environment
and the line in `COMP_LINE`. `main` hands over to `answer`, which lets the command build its parser;
`flags.Parser` then asks `complete` instead of reading words.
"""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from argcomplete.completers import FilesCompleter
from argcomplete.finders import CompletionFinder
from argcomplete.lexers import split_line
from argcomplete.shell_integration import shellcode

from promot_t5x.cli import flags
from promot_t5x.cli.commands import COMMANDS

_SHELLS = ("bash", "zsh", "fish")
_DESCRIPTION = """\
Prints a script that makes a shell complete promot-t5x: commands, flags, gin files, macros of the
gin files that were named, tasks, and the names of pretrained checkpoints. In the shell's own
start-up file:

  bash  source <(promot-t5x completion bash)
  zsh   source <(promot-t5x completion zsh), after compinit
  fish  promot-t5x completion fish | source\
"""


def main(words: Sequence[str]) -> int:
    """Print a shell's script; returns the exit status."""
    parser = flags.Parser(
        prog="promot-t5x completion",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=_SHELLS)
    print(shellcode(["promot-t5x"], shell=parser.parse_args(words).shell))
    return 0


def answer(run: Callable[[str], Any]) -> int:
    """Print what may follow the words of `COMP_LINE`, to the file that argcomplete's script names.

    **Arguments:**

    - `run`: starts the command of a name, whose parser calls `complete`, which does not return.

    **Returns:** 1, where the command has no parser or there is no such command.
    """
    words = _words()
    # What `launch` starts is a command line of its own.
    start = words.index("--") if "--" in words else 0
    known = [command.name for command in COMMANDS if command.takes_gin or not start]
    if len(words) == start + 1:
        parser = argparse.ArgumentParser()
        parser.add_argument("command", choices=known)
        parser.add_argument("--version", action="store_true")
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        complete(parser)
    if words[start + 1] in known:
        os.environ["_ARGCOMPLETE"] = str(start + 2)
        run(words[start + 1])
    return 1


def complete(parser: argparse.ArgumentParser) -> None:
    """Print what may follow, by a command's parser, and end the process."""
    words = _words()
    for action_parser in _with_actions(parser):
        for action in action_parser._actions:
            if completer := _completer(action_parser.prog, action):
                setattr(action, "completer", completer)  # noqa: B010 - argcomplete's own attribute
        if "--gin_file" in action_parser._option_string_actions:
            for name in _macros(_values(words, "--gin_file")):
                macro = action_parser.add_argument(f"--gin.{name}", dest="_", help="a macro")
                if name == "MIXTURE_OR_TASK_NAME":
                    setattr(macro, "completer", _quoted_tasks)  # noqa: B010
    _Finder()(parser, exclude=("--gin.NAME",))


class _Finder(CompletionFinder):
    """Completes a macro up to its equals sign, which it must have."""

    def filter_completions(self, completions: list[str]) -> list[str]:
        found = super().filter_completions(completions)
        macro = re.compile(r"--gin\.\w+")
        return [f"{word}=" if macro.fullmatch(word) else word for word in found]


def _words() -> list[str]:
    line = split_line(os.environ["COMP_LINE"], int(os.environ["COMP_POINT"]))
    words: list[str] = line[3]
    return words


def _values(words: Sequence[str], flag: str) -> Iterator[str]:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            yield following
        elif word.startswith(f"{flag}="):
            yield word.partition("=")[2]


def _with_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _with_actions(below)


def _completer(program: str, action: argparse.Action) -> Callable[..., Iterable[str]] | None:
    if "--gin_file" in action.option_strings:
        return _gin_files
    if program.startswith("promot-t5x tasks ") and not action.option_strings:
        return _tasks
    if program == "promot-t5x convert" and action.dest == "source":
        return _checkpoints
    return None


def _gin_files(prefix: str, **_: Any) -> list[str]:
    from promot_t5x import config

    root = config.gin_root()
    shipped = [path.relative_to(root).as_posix() for path in root.rglob("*.gin")]
    own: list[str] = FilesCompleter(("gin",))(prefix)
    return [*shipped, *own]


def _tasks(**_: Any) -> list[str]:
    from promot_t5x.tasks import registry

    return list(registry.names())


def _quoted_tasks(**_: Any) -> list[str]:
    return [repr(name) for name in _tasks()]


def _checkpoints(prefix: str, **_: Any) -> list[str]:
    from promot_t5x.checkpoints import pretrained_names

    places: list[str] = FilesCompleter()(prefix)
    return [*pretrained_names.NAMES, *places]


def _macros(files: Iterable[str]) -> list[str]:
    """Return the macros that gin files, and the files that they include, set or use."""
    from promot_t5x.config.configuration import default_search_paths

    found: set[str] = set()
    seen: set[Path] = set()
    left = list(files)
    while left:
        name = left.pop()
        for path in (place / name for place in default_search_paths()):
            if path.is_file() and path not in seen:
                seen.add(path)
                text = path.read_text(encoding="utf-8")
                found.update(
                    re.findall(r"^[A-Z][A-Z0-9_]*(?= *=)|(?<=%)[A-Z][A-Z0-9_]*\b", text, re.M)
                )
                left += re.findall(r"^include +['\"](.+)['\"]", text, re.M)
    return sorted(found)
