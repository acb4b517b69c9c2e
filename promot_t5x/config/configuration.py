"""The configuration of this process: parse gin files, check them, print them."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

import promot_t5x
from promot_t5x.config import gin_reader, problems
from promot_t5x.config.gin_graph import Graph
from promot_t5x.config.gin_reader import Definition, Reader

_definitions: list[Definition] = []


def gin_root() -> Path:
    """The directory of the shipped gin files."""
    return Path(promot_t5x.__file__).resolve().parent / "gin"


def default_search_paths() -> list[Path]:
    """Where gin files are looked for after the user's own paths: here, then what is shipped.

    Both `models/x.gin` and `gin/models/x.gin` name the shipped file.
    """
    return [Path("."), gin_root(), gin_root().parent]


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as gin calls it: every parameter that is not passed comes from its bindings.

    Works whether or not a gin file names the function. Call it before `parse`, so that the
    command line can name the function too.
    """
    return gin.get_configurable(gin_reader.register_root(function))


def parse(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str | Path] = (),
    *,
    stand_ins: Mapping[str, str] | None = None,
) -> None:
    """Replace the configuration by the one in gin files and bindings.

    Args:
        files: gin files, the later ones overriding the earlier ones.
        bindings: `NAME = VALUE` statements of the command line, overriding all files.
        search_paths: directories to look in before `default_search_paths`.
        stand_ins: gin text of values for macros that the files define, in place of theirs.

    Raises:
        UserError: a missing file, a syntax error, an unknown module, function or parameter.
    """
    reader = Reader([*search_paths, *default_search_paths()])
    for file in files:
        reader.read_file(file)
    macros = {each.scope for each in reader.definitions if each.is_macro}
    replaced = [f"{n} = {value}" for n, value in (stand_ins or {}).items() if n in macros]
    reader.read_command_line(replaced)
    reader.read_command_line(bindings)
    _definitions[:] = reader.definitions


def check(roots: Sequence[Callable[..., Any]]) -> None:
    """Check what `parse` read against the functions that the run calls, and tidy it.

    Definitions that an override has left without use are dropped, so that `resolved_str` holds
    what the run uses and nothing else.

    Args:
        roots: the functions that the run calls through `configured`, with no arguments.

    Raises:
        UserError: one message with every problem: values that are missing, macros that are not
            defined, macros and bindings that have no effect, definitions in a circle.
    """
    graph = Graph(_definitions, [gin_reader.register_root(root) for root in roots])
    problems.refuse(graph, _definitions)
    for definition in graph.final:
        if graph.lifetime(definition) < math.inf:
            gin_reader.forget(definition)


def macros() -> frozenset[str]:
    """Names of the macros that what `parse` read defines."""
    return frozenset(each.scope for each in _definitions if each.is_macro)


def resolved_str() -> str:
    """The configuration as gin text: imports, macros, bindings, each sorted by name.

    Reading it back gives the same configuration. It is what `--dry_run` prints and what a run
    writes as `config.gin`.
    """
    return gin.config_str(max_line_length=100)


def describe_difference(old: str, new: str) -> list[str]:
    """What differs between two `resolved_str` texts, one line a name, macros first.

    Args:
        old: for example the `config.gin` that a directory holds.
        new: the configuration now.

    Raises:
        UserError: one of them is not gin text.
    """
    before = gin_reader.plain_bindings(old, "the old configuration")
    after = gin_reader.plain_bindings(new, "the new configuration")
    lines = []
    for name in sorted(before | after, key=lambda name: ("." in name, name)):
        if name not in after:
            lines.append(f"{name}: was {before[name]}, now not set")
        elif name not in before:
            lines.append(f"{name}: was not set, now {after[name]}")
        elif before[name] != after[name]:
            lines.append(f"{name}: was {before[name]}, now {after[name]}")
    return lines
