"""What is wrong with a configuration that could be read, as messages for its user."""

import math
from collections.abc import Iterator, Sequence

from promot_t5x.config import comments, gin_reader
from promot_t5x.config.gin_graph import Edge, Graph, Node, find_cycle, missing_parameters
from promot_t5x.config.gin_reader import CONSTANT, MACRO, Definition
from promot_t5x.errors import UserError, did_you_mean, listed

_MAX_SHOWN = 20  # more problems than this have one cause
_NAMED = 3
_MODEL = "MODEL"  # the macro that a model file defines and a run file uses
_EMBED_DIM = "EMBED_DIM"  # the first of those that files under models/sizes define
_OF_DEFAULTS = ("models", "runs", "demo", "paper")  # folders of files whose values are defaults
_BYTES = "models/byte_vocabulary.gin"  # is named for what it changes of another model


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
    _refuse_missing_model(graph, definitions)
    pairs = _overridden(graph, definitions, by_default=True).values()
    lost = {later.key for each in pairs for _, later in each}
    problems = [*_wrong_order(graph, definitions), *_missing(graph, lost), *_unused(graph)]
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        shown = listed(problems, _MAX_SHOWN, separator="\n- ")
        raise UserError(f"the configuration has {len(problems)} problems:\n- {shown}")


def _overridden(
    graph: Graph, definitions: Sequence[Definition], *, by_default: bool
) -> dict[tuple[str | None, str | None], list[tuple[Definition, Definition]]]:
    """Find values that a shipped file read later takes back, by the files named for either.

    **Arguments:**

    - `by_default`: of what the run files (and those that include them) and the models set, which
      are defaults; otherwise of files that are named for what they change, as
      `models/byte_vocabulary.gin`.
    """
    found: dict[tuple[str | None, str | None], list[tuple[Definition, Definition]]] = {}
    of_key: dict[tuple[str, str, str], list[Definition]] = {}
    for each in definitions:
        of_key.setdefault(each.key, []).append(each)
    for later in graph.final:
        if not later.shipped or _is_default(later) != by_default:
            continue
        earlier = [
            each
            for each in of_key[later.key]
            if each.time < later.time and (by_default or not each.shipped) and _is_over(later, each)
        ]
        if earlier and repr(earlier[-1].value) != repr(later.value):
            pair = earlier[-1].named, later.named
            found.setdefault(pair, []).append((earlier[-1], later))
    return found


def _is_default(definition: Definition) -> bool:
    """Whether a shipped file sets the value for want of another, not for the user's asking."""
    folder = (definition.file or "").partition("/")[0]
    return folder in _OF_DEFAULTS and definition.file != _BYTES


def _is_over(later: Definition, earlier: Definition) -> bool:
    """Whether it was not meant that a shipped file's definition replaces an earlier one."""
    if not earlier.shipped:
        return earlier.file is not None and not earlier.is_required
    # A model's file after the run's: what the run file says of the model is lost.
    model, run = ((each.file or "").partition("/")[0] for each in (later, earlier))
    return model == "models" and run != "models" and not earlier.is_required


def _wrong_order(graph: Graph, definitions: Sequence[Definition]) -> list[str]:
    """Describe what defaults of shipped files take back, one problem for each two files."""
    problems = []
    for (first, second), pairs in _overridden(graph, definitions, by_default=True).items():
        shown = [
            f"{earlier.written} ({earlier.place} says {_shown(earlier)}, {later.place} "
            f"{_shown(later)})"
            for earlier, later in pairs
        ]
        if first == second:
            order = f"In {first}, include first and set values after it."
        elif pairs[0][0].shipped:
            order = f"Name {second} before {first}."
        else:
            order = f"Name {first} after {second}."
        problems.append(
            f"Later gin files override earlier ones, and {pairs[0][1].file} is read after "
            f"{pairs[0][0].file} and takes back {listed(shown)}. {order}"
        )
    return problems


def _shown(definition: Definition) -> str:
    return "that it must be given" if definition.is_required else repr(definition.value)


def notes(graph: Graph, definitions: Sequence[Definition]) -> list[str]:
    """Return a line for each of the user's values that a shipped file replaces on purpose."""
    found = _overridden(graph, definitions, by_default=False)
    return [
        f"{later.place}: {later.written} = {_shown(later)} overrides {_shown(earlier)} of "
        f"{earlier.place}"
        for pairs in found.values()
        for earlier, later in pairs
    ]


def _refuse_missing_model(graph: Graph, definitions: Sequence[Definition]) -> None:
    """Raise `UserError` where no model file was named, or one of an architecture without a size.

    Whatever else is missing or unused follows from it or can wait.
    """
    undefined = dict(_undefined(graph))
    files = dict.fromkeys(each.named for each in definitions if each.named)
    sized = sorted(path.stem for path in (gin_reader.gin_root() / "models/sizes").glob("*.gin"))
    models = sorted(path.stem for path in (gin_reader.gin_root() / "models").glob("*_*.gin"))
    if _MODEL in undefined:
        families = dict.fromkeys(
            family
            for family, _, size in (name.rpartition("_") for name in models)
            if any(each.endswith(f"_{size}") for each in sized)
        )
        required = sorted(
            {(d.time, d.written) for n, _, _ in graph.calls for d in _required_of(graph, n)}
        )
        later = ", ".join(name for _, name in required)
        raise UserError(
            "no model file was named, and none defines MODEL. Name the model's file before the "
            "run's, as in\n  --gin_file=models/t5_1_1_small.gin "
            + " ".join(f"--gin_file={file}" for file in files)
            + f"\nShipped are models/<family>_<size>.gin of {', '.join(families)}, from small to "
            "xxl; demo/model.gin is small enough to try things."
            + (f" Values to give besides (--gin.NAME=VALUE): {later}." if later else "")
        )
    if _EMBED_DIM in undefined:
        named = next((file for file in files if file.startswith("models/")), None)
        stem = (named or "models/t5_1_1.gin").removeprefix("models/").removesuffix(".gin")
        sizes = [name for name in models if name.rpartition("_")[0] == stem]
        raise UserError(
            f"the model has no size: {undefined[_EMBED_DIM]} uses %{_EMBED_DIM}, which is not "
            f"defined. {named or 'The model file'} describes an architecture; name one of a size, "
            "as in "
            + " or ".join(f"models/{name}.gin" for name in (sizes or models)[:_NAMED])
            + "."
        )


def _undefined(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield the names of macros that nothing defines, and where they are used."""
    for node, edge, _ in graph.calls:
        if node.selector == MACRO and not graph.effective(node):
            yield "/".join(node.scope), _used_at(edge)


def _required_of(graph: Graph, node: Node) -> list[Definition]:
    return [each for each in graph.effective(node).values() if each.is_required]


def _missing(graph: Graph, lost: set[tuple[str, str, str]]) -> list[str]:
    """Describe values that gin would ask for, in the middle of the run or at its start.

    **Arguments:**

    - `lost`: keys of values that were given and taken back; another message has them.
    """
    required: set[tuple[int, str]] = set()
    problems: dict[str, None] = {}
    macros = {each.scope for each in graph.final if each.is_macro}
    for name, where in _undefined(graph):
        problems[f"{where} uses %{name}, which is not defined." + did_you_mean(name, macros)] = None
    for node, edge, called in graph.calls:
        required.update(
            (each.time, _required(each))
            for each in _required_of(graph, node)
            if each.key not in lost
        )
        if called and node.selector not in (MACRO, CONSTANT):
            for name in missing_parameters(graph, node):
                problems[_unbound(node, name, edge)] = None
    return [text for _, text in sorted(required)] + list(problems)


def _required(definition: Definition) -> str:
    name, meaning = definition.written, _meaning(definition)
    said = f": {meaning}." if meaning else "."
    how = f"--gin.{name}=VALUE" if definition.is_macro else f"--gin_bindings='{name} = VALUE'"
    return f"{name} must be given ({definition.place}){said} Give it by {how}"


def _meaning(definition: Definition) -> str:
    """Return what a shipped file's comment says of the macro."""
    if not (definition.is_macro and definition.shipped and definition.file):
        return ""
    described = comments.read(gin_reader.gin_root() / definition.file)
    return next((each.meaning for each in described if each.name == definition.scope), "")


def _unbound(node: Node, name: str, edge: Edge | None) -> str:
    called = _short(node.selector)
    where = f" ({_used_at(edge)} calls it)" if edge else ""
    scope = f" in scope {'/'.join(node.scope)!r}" if node.scope else ""
    return f"{called}{scope} has no value for {name!r}{where}: bind {called}.{name}."


def _unused(graph: Graph) -> list[str]:
    """Describe definitions in force that the run never reaches and that no override explains."""
    dead = [
        each
        for each in graph.final
        # Bytes take back what any of the models says of its special tokens, and few say all.
        if not each.time < graph.lifetime(each) and not (each.is_macro and each.file == _BYTES)
    ]
    # What only a dead definition refers to is explained by it: one mistake, one message.
    explained = {
        "/".join(reference.scopes)
        for each in dead
        for reference in gin_reader.references(each.value)
        if reference.configurable.selector == MACRO
    }
    live = [each for each in graph.final if graph.lifetime(each) == math.inf]
    wanted = {"/".join(node.scope) for node, _, _ in graph.calls if node.selector == MACRO}
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
