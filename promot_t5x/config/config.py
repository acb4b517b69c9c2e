"""The configuration of a run: gin, read in T5X's way and checked before anything starts.

`--gin_file`, `--gin.NAME=VALUE` and `--gin_search_paths` mean what they mean in T5X; later
bindings override earlier ones. What T5X lets pass is an error here, because it costs a run: a
macro that nothing uses (often a misspelt one), a binding that the run never reaches, a value
that is missing. The usual order is

    run = config.configured(train.train)
    config.parse(files, bindings, search_paths)
    config.check([train.train])
    text = config.resolved_str()
    run()
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin

import promot_t5x
from promot_t5x.config import gin_reader
from promot_t5x.config.gin_graph import Edge, Graph, Node, find_cycle, missing_parameters
from promot_t5x.config.gin_reader import CONSTANT, MACRO, Definition, Reader
from promot_t5x.errors import UserError, did_you_mean

_MAX_SHOWN = 20  # more problems than this have one cause

_definitions: list[Definition] = []


def gin_root() -> Path:
    """The directory of the shipped gin files."""
    return Path(promot_t5x.__file__).resolve().parent / "gin"


def print_gin_root(words: Sequence[str]) -> None:
    """`promot-t5x gin_path`: where the shipped gin files are, for programs that read them too."""
    argparse.ArgumentParser(
        prog="promot-t5x gin_path",
        description="Print the directory of the shipped gin files, for T5X's --gin_search_paths.",
    ).parse_args(words)
    print(gin_root())


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
    for root in graph.roots:
        if not graph.effective(root) and missing_parameters(graph, root):
            raise UserError(
                f"the configuration binds nothing of {_short(root.selector)}: it lacks a run file, "
                "or has one that was made for another verb."
            )
    circle = find_cycle(graph)
    if circle:
        names = " -> ".join(each.written for each in [*circle, circle[0]])
        raise UserError(f"{circle[0].place}: these values need each other: {names}")
    problems = [*_missing(graph), *_unused(graph)]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        shown = [f"\n- {problem}" for problem in problems[:_MAX_SHOWN]]
        more = len(problems) - len(shown)
        raise UserError(
            f"the configuration has {len(problems)} problems:{''.join(shown)}"
            + (f"\nand {more} more." if more else "")
        )
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


def _missing(graph: Graph) -> list[str]:
    """Values that gin would ask for, in the middle of the run or at its start."""
    required: set[tuple[int, str]] = set()
    problems: dict[str, None] = {}
    macros = {each.scope for each in graph.final if each.is_macro}
    for node, edge, called in graph.walk():
        bound = graph.effective(node)
        if node.selector == MACRO and not bound:
            name = "/".join(node.scope)
            problem = f"{_used_at(edge)} uses %{name}, which is not defined."
            problems[problem + did_you_mean(name, macros)] = None
        required.update((each.time, _required(each)) for each in bound.values() if each.is_required)
        if called and node.selector not in (MACRO, CONSTANT):
            for name in missing_parameters(graph, node):
                problems[_unbound(node, name, edge)] = None
    return [text for _, text in sorted(required)] + list(problems)


def _required(definition: Definition) -> str:
    given = [
        each
        for each in _definitions
        if each.key == definition.key and not each.is_required and each.time < definition.time
    ]
    if given:
        # The order of files that T5X's users trip over: the run's file before the model's.
        return (
            f"{definition.place}: {definition.written} must be given, and takes back the value "
            f"of {given[-1].place}. Name the file that gives it after the one that asks for it."
        )
    how = "--gin." if definition.is_macro else "--gin_bindings="
    equals = "=VALUE" if definition.is_macro else " = VALUE'"
    quote = "" if definition.is_macro else "'"
    return (
        f"{definition.written} must be given ({definition.place} asks for it): "
        f"{how}{quote}{definition.written}{equals}"
    )


def _unbound(node: Node, name: str, edge: Edge | None) -> str:
    called = _short(node.selector)
    where = f" ({_used_at(edge)} calls it)" if edge else ""
    scope = f" in scope {'/'.join(node.scope)!r}" if node.scope else ""
    return f"{called}{scope} has no value for {name!r}{where}: bind {called}.{name}."


def _unused(graph: Graph) -> list[str]:
    """Definitions in force that the run never reaches and that no override explains."""
    dead = [each for each in graph.final if not each.time < graph.lifetime(each)]
    # What only a dead definition refers to is explained by it: one mistake, one message.
    explained = {
        "/".join(reference.scopes)
        for each in dead
        for reference in gin_reader.references(each.value)
        if reference.configurable.selector == MACRO
    }
    live = [each for each in graph.final if graph.lifetime(each) == math.inf]
    wanted = {"/".join(node.scope) for node, _, _ in graph.walk() if node.selector == MACRO}
    wanted |= {each.scope for each in live if each.is_macro}
    problems = []
    for each in dead:
        if not each.is_macro:
            problems.append(_unused_binding(graph, each))
        elif each.scope not in explained:
            problems.append(
                f"{each.place}: nothing in this run uses the macro {each.written} "
                f"(= {each.value!r}).{did_you_mean(each.scope, wanted)}"
            )
    if dead and not problems:
        problems.append(f"{dead[0].place}: nothing but itself uses the macro {dead[0].written}.")
    return problems


def _unused_binding(graph: Graph, definition: Definition) -> str:
    start = f"{definition.place}: {definition.written} has no effect: this run "
    name = _short(definition.selector)
    scopes = graph.scopes_of(definition.selector)
    if not scopes:
        return f"{start}never calls {name}."
    shown = ", ".join(repr(scope) if scope else "no scope" for scope in scopes)
    hint = did_you_mean(definition.scope, [scope for scope in scopes if scope])
    macros = {each.scope for each in graph.final if each.is_macro}
    if not hint and macros.intersection(scopes):
        hint = " A macro's value is evaluated in the macro's own scope, not in its user's."
    return f"{start}calls {name} in {shown}, not in scope {definition.scope!r}.{hint}"


def _used_at(edge: Edge | None) -> str:
    return f"{edge.definition.place}: {edge.definition.written}" if edge else "the run"


def _short(selector: str) -> str:
    return selector.removeprefix("promot_t5x.")
