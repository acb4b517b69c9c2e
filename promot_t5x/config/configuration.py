"""The configuration of this process: parse gin files, check them, print them."""

import contextlib
import copy
import math
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

from promot_t5x.config import gin_reader, problems
from promot_t5x.config.gin_graph import Graph
from promot_t5x.config.gin_reader import Definition, Reader, gin_root

_definitions: list[Definition] = []
_files: list[Path] = []


def default_search_paths() -> list[Path]:
    """Return where gin files are looked for after the user's own paths: here, then the shipped.

    Both `models/x.gin` and `gin/models/x.gin` name the shipped file.
    """
    return [Path("."), gin_root(), gin_root().parent]


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function as gin calls it: what is not passed comes from its bindings.

    Works whether or not a gin file names the function. Call it before `parse`, so that the
    command line can name the function too.
    """
    called: Callable[..., Any] = gin.get_configurable(gin_reader.register_root(function))
    return called


def parse(
    files: Sequence[str],
    bindings: Sequence[str] = (),
    search_paths: Sequence[str | Path] = (),
    *,
    stand_ins: Mapping[str, str] | None = None,
) -> None:
    """Replace the configuration by the one in gin files and bindings.

    **Arguments:**

    - `files`: gin files, the later ones overriding the earlier ones.
    - `bindings`: `NAME = VALUE` statements of the command line, overriding all files.
    - `search_paths`: directories to look in before `default_search_paths`.
    - `stand_ins`: gin text of values for macros that the files define, in place of theirs.

    **Raises** `UserError` for a missing file, a syntax error, an unknown module, function or
    parameter.

    """
    reader = Reader([*search_paths, *default_search_paths()])
    for file in files:
        reader.read_file(file)
    macros = {each.scope for each in reader.definitions if each.is_macro}
    replaced = [f"{n} = {value}" for n, value in (stand_ins or {}).items() if n in macros]
    reader.read_command_line(replaced)
    reader.read_command_line(bindings)
    _definitions[:] = reader.definitions
    _files[:] = reader.files


def files_read() -> list[Path]:
    """Return the gin files that `parse` read, included ones too, in order."""
    return list(_files)


def check(roots: Sequence[Callable[..., Any]]) -> None:
    """Check what `parse` read against the functions that the run calls, and tidy it.

    Definitions that an override has left without use are dropped, so that `resolved_str` holds
    what the run uses and nothing else.

    A user's value that a shipped file replaces on purpose is said on stderr.

    **Arguments:**

    - `roots`: the functions that the run calls through `configured`, with no arguments.

    **Raises** `UserError`, one message with every problem: values that are missing or that a
    default read later takes back, macros that are not defined, macros and bindings that have no
    effect, definitions in a circle.

    """
    graph = Graph(_definitions, [gin_reader.register_root(root) for root in roots])
    problems.refuse(graph, _definitions)
    for note in problems.notes(graph, _definitions):
        print(note, file=sys.stderr)
    for definition in graph.final:
        if graph.lifetime(definition) < math.inf:
            gin_reader.forget(definition)


def macros() -> frozenset[str]:
    """Return the names of the macros that what `parse` read defines."""
    return frozenset(each.scope for each in _definitions if each.is_macro)


def resolved_str() -> str:
    """Return the configuration as gin text: imports, macros, bindings, each sorted by name.

    Reading it back gives the same configuration. It is what a run writes as
    `config.gin`.
    """
    text: str = gin.config_str(max_line_length=100)
    return text


def explained_str() -> str:
    """Return `resolved_str` with the place of each value behind it, as a comment.

    Reading it back gives the same configuration; `--dry_run` prints it.
    """
    graph = Graph(_definitions, [])
    places = {each.written: each.place for each in graph.final}
    # gin may write less of a name than the user did.
    places |= {gin_reader.shortest(each): each.place for each in graph.final if not each.is_macro}
    lines: list[str] = []
    owner: str | None = None
    for line in [*resolved_str().splitlines(), ""]:
        starts = re.match(r"(?P<name>[\w./]+) = ?", line)
        if (starts or not line or line.startswith(("#", "import", "from"))) and owner:
            lines[-1] += f"  # {places[owner]}" if owner in places else ""
            owner = None
        if starts:
            owner = starts["name"]
        lines.append(line)
    return "\n".join(lines)


def bound(selector: str) -> bool:
    """Whether what `parse` read binds anything of a function.

    **Arguments:**

    - `selector`: its module and name, such as `promot_t5x.runs.train.train`.
    """
    return any(each.selector == selector for each in _definitions)


def arguments(
    root: Callable[..., Any],
    *,
    without: Collection[str] = (),
    stand_ins: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the values that gin would call a function with, every object in them made.

    **Arguments:**

    - `root`: one of the roots of `check`.
    - `without`: parameters that are left out, such as those that need the run's devices.
    - `stand_ins`: objects for macros, in place of those that the configuration defines for them.

    **Raises** what the objects raise: `UserError` for values that they refuse.
    """
    graph = Graph(_definitions, [gin_reader.register_root(root)])
    replaced = [each for each in graph.final if each.is_macro and each.scope in (stand_ins or {})]
    with contextlib.ExitStack() as stack:
        for each in replaced:
            stack.enter_context(gin_reader.replaced(each, (stand_ins or {})[each.scope]))
        # gin calls the references in a value when it copies the value.
        return {
            name: copy.deepcopy(definition.value)
            for name, definition in graph.effective(graph.roots[0]).items()
            if name not in without
        }


# The patterns that shipped files had before there were names; without adapters they mean the same.
_EARLIER_TRAINABLE = {
    "['.*']": "['all']",
    "['(?!encoder/prompt/).*']": "['model']",
    "['encoder/prompt/.*']": "['prompt']",
}


def describe_difference(old: str, new: str) -> list[str]:
    """Describe what differs between two `resolved_str` texts, one line per name, macros first.

    **Arguments:**

    - `old`: for example the `config.gin` that a directory holds.
    - `new`: the configuration now.

    **Raises** `UserError` if one of them is not gin text.

    """
    before = gin_reader.plain_bindings(old, "the old configuration")
    after = gin_reader.plain_bindings(new, "the new configuration")
    for name in before:
        if name.endswith("Stage.trainable"):
            before[name] = _EARLIER_TRAINABLE.get(before[name], before[name])
    lines = []
    for name in sorted(before | after, key=lambda name: ("." in name, name)):
        if name not in after:
            lines.append(f"{name}: was {before[name]}, now not set")
        elif name not in before:
            lines.append(f"{name}: was not set, now {after[name]}")
        elif before[name] != after[name]:
            lines.append(f"{name}: was {before[name]}, now {after[name]}")
    return lines
