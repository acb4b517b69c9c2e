"""What is wrong with a configuration that could be read, as messages for its user."""

import math
from collections.abc import Sequence

from promot_t5x.config import gin_reader
from promot_t5x.config.gin_graph import Edge, Graph, Node, find_cycle, missing_parameters
from promot_t5x.config.gin_reader import CONSTANT, MACRO, Definition
from promot_t5x.errors import UserError, did_you_mean

_MAX_SHOWN = 20  # more problems than this have one cause


def refuse(graph: Graph, definitions: Sequence[Definition]) -> None:
    """Raise `UserError` for what is wrong with a configuration, all of it in one message.

    **Arguments:**

    - `graph`: of the definitions, from the functions that the run calls.
    - `definitions`: every definition that was read, in order, overridden ones included.
    """
    for root in graph.roots:
        if not graph.effective(root) and missing_parameters(graph, root):
            raise UserError(
                f"the configuration binds nothing of {_short(root.selector)}: it lacks a run file, "
                "or has one that was made for another command."
            )
    circle = find_cycle(graph)
    if circle:
        names = " -> ".join(each.written for each in [*circle, circle[0]])
        raise UserError(f"{circle[0].place}: these values need each other: {names}")
    problems = [*_missing(graph, definitions), *_unused(graph)]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        shown = [f"\n- {problem}" for problem in problems[:_MAX_SHOWN]]
        more = len(problems) - len(shown)
        raise UserError(
            f"the configuration has {len(problems)} problems:{''.join(shown)}"
            + (f"\nand {more} more." if more else "")
        )


def _missing(graph: Graph, definitions: Sequence[Definition]) -> list[str]:
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
        required.update(
            (each.time, _required(each, definitions)) for each in bound.values() if each.is_required
        )
        if called and node.selector not in (MACRO, CONSTANT):
            for name in missing_parameters(graph, node):
                problems[_unbound(node, name, edge)] = None
    return [text for _, text in sorted(required)] + list(problems)


def _required(definition: Definition, definitions: Sequence[Definition]) -> str:
    given = [
        each
        for each in definitions
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
