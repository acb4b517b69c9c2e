"""Which definitions of a gin configuration a run can reach from its root functions.

gin calls a root function, fills in its bindings, follows the references in them, and so on.
A definition that this walk never meets has no effect; gin accepts it silently, misspelled or not.
The walk follows gin's own rules of scope:

- a binding with scope `a/b` applies to calls in scope `a/b` and in any deeper `a/b/…`;
- `@a/f()` is called in scope `a`, whatever the caller's; `@f()` keeps the caller's scope;
- `%NAME` is evaluated in the scope `NAME`: the caller's scope does not pass through a macro.
"""

import functools
import heapq
import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from promot_t5x.config import gin_reader
from promot_t5x.config.gin_reader import CONSTANT, MACRO, SINGLETON, Definition

Scope = tuple[str, ...]


class Node(NamedTuple):
    """A call that gin makes: of what, and in which scope."""

    selector: str
    scope: Scope


class Edge(NamedTuple):
    """A reference met on the way: where it leads, and whether gin itself calls the target."""

    target: Node
    evaluated: bool
    definition: Definition


class Graph:
    """The definitions of a configuration and the calls that they lead to.

    **Attributes:**

    - `final`: the definitions in force: for every key the last one read.
    - `roots`: the nodes that the run calls itself.
    """

    def __init__(self, definitions: Sequence[Definition], roots: Sequence[str]):
        self._end = _ends(definitions)
        self._of: dict[str, list[int]] = defaultdict(list)
        for index, definition in enumerate(definitions):
            self._of[definition.selector].append(index)
        self._definitions = definitions
        self.final = [
            each for each, end in zip(definitions, self._end, strict=True) if end == math.inf
        ]
        self.roots = [Node(root, ()) for root in roots]
        # A graph does not change, and the checks of a configuration ask the same many times.
        self._effective: dict[Node, dict[str, Definition]] = {}
        self._edges: dict[Node, list[Edge]] = {}
        self._methods: dict[str, list[str]] = defaultdict(list)  # of a class: those with bindings
        for selector in self._of:
            if gin_reader.configurable(selector).is_method:
                self._methods[selector.rpartition(".")[0]].append(selector)
        self._starts = [*self.roots, *self._called_from_anywhere(roots)]
        self._lifetimes = self._reach_over_time()

    def lifetime(self, definition: Definition) -> float:
        """Until when a definition is used: infinity in a run's final configuration.

        A reference that a later binding overrides leads nowhere from that moment on, but what
        was bound for it earlier was not written in vain: a model file's vocabulary has its
        bindings, and whoever overrides the vocabulary need not unwrite them. Returns -infinity
        for what nothing ever reaches.
        """
        scope = _parts(definition.scope)
        return max(
            (
                time
                for node, time in self._lifetimes.items()
                if node.selector == definition.selector and node.scope[: len(scope)] == scope
            ),
            default=-math.inf,
        )

    def scopes_of(self, selector: str) -> list[str]:
        """Return the scopes in which the run calls a configurable; '' is no scope."""
        return sorted(
            "/".join(node.scope)
            for node, time in self._lifetimes.items()
            if node.selector == selector and time == math.inf
        )

    def effective(self, node: Node) -> dict[str, Definition]:
        """Parameter to the definition that gin uses in one call."""
        if node in self._effective:
            return self._effective[node]
        chosen = self._effective[node] = {}
        indices = [i for i in self._of.get(node.selector, ()) if self._end[i] == math.inf]
        for index in sorted(indices, key=lambda i: len(_parts(self._definitions[i].scope))):
            definition = self._definitions[index]
            scope = _parts(definition.scope)
            if node.scope[: len(scope)] == scope:
                chosen[definition.parameter] = definition
        return chosen

    @functools.cached_property
    def calls(self) -> list[tuple[Node, Edge | None, bool]]:
        """Every node of the final configuration, with the reference that first led to it.

        The last value says whether gin makes the call itself, with no argument of a caller's:
        true of the roots and of evaluated references.
        """
        met: list[tuple[Node, Edge | None, bool]] = []
        seen: set[tuple[Node, bool]] = set()
        waiting: list[tuple[Node, Edge | None, bool]] = [
            (node, None, node in self.roots) for node in self._starts
        ]
        while waiting:
            node, edge, called = waiting.pop(0)
            if (node, called) not in seen:
                seen.add((node, called))
                met.append((node, edge, called))
                waiting.extend((each.target, each, each.evaluated) for each in self.edges(node))
        return met

    def edges(self, node: Node) -> list[Edge]:
        """Return the references that gin resolves in one call of the final configuration."""
        if node not in self._edges:
            self._edges[node] = [
                edge
                for selector in [node.selector, *self._methods.get(node.selector, ())]
                for definition in self.effective(Node(selector, node.scope)).values()
                for edge in _edges_of(definition, node)
            ]
        return self._edges[node]

    def _called_from_anywhere(self, roots: Sequence[str]) -> Iterator[Node]:
        """Yield what is decorated in its own module: it is configured however it is called."""
        for selector, indices in self._of.items():
            known = gin_reader.configurable(selector)
            builtin = selector in (MACRO, CONSTANT, SINGLETON)
            if known.import_source is None and not builtin and not gin_reader.is_root(selector):
                for index in indices:
                    yield Node(selector, _parts(self._definitions[index].scope))

    def _reach_over_time(self) -> dict[Node, float]:
        """Node to its lifetime: over all paths, the largest of the path's smallest ends."""
        lifetimes: dict[Node, float] = {}
        heap = [(-math.inf, node) for node in self._starts]
        while heap:
            time, node = heapq.heappop(heap)
            if node in lifetimes:
                continue
            lifetimes[node] = -time
            for selector in self._methods.get(node.selector, ()):
                heapq.heappush(heap, (time, Node(selector, node.scope)))
            for index in self._of.get(node.selector, ()):
                definition = self._definitions[index]
                scope = _parts(definition.scope)
                if node.scope[: len(scope)] == scope:
                    for edge in _edges_of(definition, node):
                        heapq.heappush(heap, (max(time, -self._end[index]), edge.target))
        return lifetimes


def find_cycle(graph: Graph) -> list[Definition]:
    """Return the definitions along a circle of evaluated references, or an empty list."""
    finished: set[Node] = set()

    def visit(node: Node, path: list[Node], along: list[Definition]) -> list[Definition]:
        if node in path:
            return along[path.index(node) :]
        if node in finished:
            return []
        for edge in graph.edges(node):
            if edge.evaluated:
                found = visit(edge.target, [*path, node], [*along, edge.definition])
                if found:
                    return found
        finished.add(node)
        return []

    for node, _, _ in graph.calls:
        found = visit(node, [], [])
        if found:
            return found
    return []


def missing_parameters(graph: Graph, node: Node) -> list[str]:
    """Parameters without a default that nothing binds in a call that gin makes."""
    function: Callable[..., object] = gin_reader.configurable(node.selector).wrapped
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    bound = graph.effective(node)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in kinds
        and parameter.default is inspect.Parameter.empty
        and name not in bound
    ]


def _ends(definitions: Sequence[Definition]) -> list[float]:
    """When each definition is overridden, in the time of reading; infinity if never."""
    ends = [math.inf] * len(definitions)
    last: dict[tuple[str, str, str], int] = {}
    for index, definition in enumerate(definitions):
        if definition.key in last:
            ends[last[definition.key]] = float(definition.time)
        last[definition.key] = index
    return ends


def _edges_of(definition: Definition, node: Node) -> Iterator[Edge]:
    for reference in gin_reader.references(definition.value):
        selector = reference.configurable.selector
        if selector == CONSTANT:
            continue
        scope = tuple(reference.scopes) or node.scope
        yield Edge(Node(selector, scope), reference.evaluate, definition)
        if not reference.evaluate and not reference.scopes:
            # Handed over as a function: it may be called later, outside the caller's scope.
            yield Edge(Node(selector, ()), False, definition)


def _parts(scope: str) -> Scope:
    return tuple(scope.split("/")) if scope else ()
