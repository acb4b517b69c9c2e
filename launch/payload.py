"""The command that a launcher runs elsewhere, and the local files that it needs.

Gin files, Python modules and data files below the working directory travel under their relative
names; what cannot travel is refused before anything is asked for or paid.
"""

import argparse
import ast
import dataclasses
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from promot_t5x import config
from promot_t5x.config import gin_reader
from promot_t5x.distributed.devices import Requirement
from promot_t5x.errors import UserError

_OUTPUT_PARAMETERS = ("model_dir", "output_dir")
_MODULE_PARAMETER = "module"
_SITE = ("site-packages", "dist-packages")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """A text in the configuration: where it stands, and the text."""

    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.name} = {self.text!r}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command whose configuration has been read and checked.

    **Attributes:**

    - `words`: the command and its arguments.
    - `parsed`: its flags.
    - `values`: every text in its configuration.
    - `output`: the directory of its results; None where it writes to standard output.
    """

    words: tuple[str, ...]
    parsed: argparse.Namespace
    values: tuple[Value, ...]
    output: Value | None

    def requiring(self, requirement: Requirement) -> list[str]:
        """Return the words of the command, to run on these devices and on no others.

        A `--require_devices` of the user's own comes later, and takes precedence.
        """
        return [self.words[0], requirement.flag, *self.words[1:]]


def read(words: Sequence[str], parsed: argparse.Namespace, function: str) -> Command:
    """Describe a command whose configuration has just been read and checked.

    **Arguments:**

    - `words`: the name of the command and its arguments.
    - `parsed`: its flags.
    - `function`: the name of the function that its configuration configures.
    """
    bindings = gin_reader.plain_bindings(config.resolved_str(), "the resolved configuration")
    values = tuple(
        Value(name=name, text=text)
        for name, value in bindings.items()
        for text in _texts(_literal(value))
    )
    return Command(
        words=tuple(words), parsed=parsed, values=values, output=_output(function, bindings)
    )


def _literal(value: str) -> Any:
    """Return a bound value without its references, which mean nothing outside of gin."""
    try:
        return ast.literal_eval(re.sub(r"[@%][\w./]+(?:\(\))?", "None", value))
    except (ValueError, SyntaxError):
        return None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _texts(each)


def _output(function: str, bindings: dict[str, str]) -> Value | None:
    for parameter in _OUTPUT_PARAMETERS:
        for name, value in bindings.items():
            if name.endswith(f"{function}.{parameter}"):
                while value.startswith("%"):
                    name = value.removeprefix("%")
                    value = bindings.get(name, "None")
                text = _literal(value)
                return Value(name=name, text=text) if isinstance(text, str) else None
    return None


def check_output(command: Command, *, shared_disk: bool) -> None:
    """Refuse results in a directory that the run's other machines do not reach.

    **Arguments:**

    - `shared_disk`: whether machines share a file system, as those of Slurm clusters do; then only
      directories that are known to be of one machine are refused.

    **Raises:** `UserError`.
    """
    output = command.output
    if output is None or "://" in output.text:
        return
    if not shared_disk:
        raise UserError(
            f"{output} is a directory of one machine, which the others do not see and which is "
            "gone with it: give a bucket, as in gs://my-bucket/run."
        )
    directory = Path(output.text).expanduser().resolve()
    own = {Path(place).resolve() for place in ("/tmp", "/var/tmp", "/dev/shm", "/run")}
    own.add(Path(tempfile.gettempdir()).resolve())
    for place in sorted(own):
        if directory.is_relative_to(place):
            raise UserError(
                f"{output} lies in {place}, which each machine has for itself: give a directory of "
                "the shared file system, or a bucket."
            )


def traveling(command: Command, *, may_be_there: bool = False) -> dict[str, Path]:
    """Return the local files that a command needs, by the names under which it finds them.

    **Arguments:**

    - `may_be_there`: whether an absolute path that does not exist here may exist there, as in a
      container's image.

    **Returns:** relative name -> file.

    **Raises:** `UserError` for a file outside the working directory, and for a directory.
    """
    here = Path.cwd().resolve()
    found: dict[str, Path] = {}

    def add(path: Path, wanted_by: str) -> None:
        if not path.resolve().is_relative_to(here) or path.is_absolute():
            raise UserError(
                f"{wanted_by}: {path} cannot travel to other machines, because only relative names "
                f"below the working directory ({here}) are the same there. Copy it below, and name "
                "it by its relative path, or use a bucket."
            )
        found[str(path.resolve().relative_to(here))] = path.resolve()

    for path in config.files_read():
        if gin_reader.shipped_name(path) is None:
            add(path, "--gin_file")
    for value in (*command.values, *_flag_values(command)):
        if value == command.output or "://" in value.text:
            continue
        path = Path(value.text).expanduser()
        looks_like_path = "/" in value.text or path.suffix != ""
        if value.text == "-" and value.name == "INPUT_FILE":
            raise UserError(f"{value}: standard input does not travel to other machines.")
        if looks_like_path and path.is_file():
            add(path, str(value))
        elif "/" in value.text and path.is_dir():
            raise UserError(
                f"{value} is a directory of this machine, and directories do not travel: copy it "
                "to a bucket, and name it by its gs://… path."
            )
        elif path.is_absolute() and not may_be_there:
            raise UserError(
                f"{value} does not exist here, and nothing is at that path on a new machine: give "
                "a gs://… path."
            )
    for name, path in _modules(command, here):
        add(path, f"module {name}")
    for name, path in _data_files(command):
        add(path, f"task {name}")
    return found


def _flag_values(command: Command) -> list[Value]:
    directory = command.parsed.tfds_data_dir
    return [Value(name="--tfds_data_dir", text=directory)] if directory else []


def _task_modules(command: Command) -> set[str]:
    return {
        value.text
        for value in command.values
        if value.name.rpartition(".")[2] == _MODULE_PARAMETER
        or value.name == "MIXTURE_OR_TASK_MODULE"
    }


def _modules(command: Command, here: Path) -> Iterator[tuple[str, Path]]:
    """Find the user's own Python modules that the configuration imports, directly or not."""
    from promot_t5x.data import sources

    named = _task_modules(command)
    for each in sorted(named):
        sources.import_task_module(each)
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name.partition(".")[0] in ("promot_t5x", "__main__"):
            continue
        path = Path(file).resolve()
        if path.is_relative_to(here) and not any(part in _SITE for part in path.parts):
            yield name, path.relative_to(here)
        elif name in named:
            if any(part in _SITE for part in path.parts):
                reason = "is an installed package, which the new machines do not have"
            else:
                reason = f"is {path}, which lies outside the working directory"
            raise UserError(
                f"MIXTURE_OR_TASK_MODULE = {name!r} {reason}: copy it below the working directory."
            )


def _data_files(command: Command) -> Iterator[tuple[str, Path]]:
    """Find the files of the user's own tasks."""
    if not _task_modules(command):
        return
    from promot_t5x.tasks import registry
    from promot_t5x.tasks.sources import Files

    for name in registry.names():
        if registry.is_task(name):
            source = registry.get_task(name).source
            if isinstance(source, Files):
                for path in (path for _, paths in source.resolved().paths for path in paths):
                    if "://" not in path:
                        if not Path(path).is_file():
                            raise UserError(f"task {name}: there is no file {path}.")
                        yield name, Path(path)
