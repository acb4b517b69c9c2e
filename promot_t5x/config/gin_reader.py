"""Reads gin files and command-line bindings, remembering where every value was written.

gin-config keeps neither the place nor the history of a binding, and its messages name internals.
So the statements are walked here, one by one, and bound with gin's own functions: the language
and its meaning are gin's, the places, the messages and the search for files are ours. gin's
private names are used in this module and in `gin_names`, and nowhere else.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gin
from gin import config as gin_config
from gin import config_parser

import promot_t5x
from promot_t5x import paths
from promot_t5x.config import gin_names
from promot_t5x.config.gin_names import COMMAND_LINE
from promot_t5x.errors import UserError, did_you_mean

MACRO = "gin.macro"
CONSTANT = "gin.constant"
SINGLETON = "gin.singleton"

_DYNAMIC = config_parser.ImportStatement(
    module="__gin__.dynamic_registration",
    is_from=True,
    alias=None,
    location=config_parser.Location(None, 0, None, ""),
)


@dataclass(frozen=True, kw_only=True)
class Definition:
    """One `name = value` as it was read.

    **Attributes:**

    - `scope`: gin scope, components joined by '/'; a macro's scope is its name.
    - `selector`: complete selector, such as `promot_t5x.network.T5Config`; `gin.macro` for macros.
    - `parameter`: the bound parameter; `value` for macros.
    - `written`: the left-hand side as the user wrote it.
    - `value`: Python value, in which references are `gin.config.ConfigurableReference`.
    - `place`: `file:line`, or `command line`. A shipped file goes by its name, `runs/stage.gin`.
    - `file`: the file of the place; none for the command line.
    - `named`: the file that was named on the command line, which is it or includes it.
    - `shipped`: whether the file is one of the package's own.
    - `time`: order of reading; everything on the command line has one and the same time.
    """

    scope: str
    selector: str
    parameter: str
    written: str
    value: Any
    place: str
    file: str | None = None
    named: str | None = None
    shipped: bool = False
    time: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What a later definition must share to override this one."""
        return self.scope, self.selector, self.parameter

    @property
    def is_macro(self) -> bool:
        """Whether it defines a macro."""
        return self.selector == MACRO

    @property
    def is_required(self) -> bool:
        """Whether the value is `%gin.REQUIRED`: still to be given."""
        value = self.value
        return isinstance(value, gin_config.ConfigurableReference) and value.config_key == (
            "gin.REQUIRED",
            CONSTANT,
        )


class _File(NamedTuple):
    """The file being read: what messages call it, which named file led to it, whose it is."""

    shown: str
    named: str
    shipped: bool


def gin_root() -> Path:
    """Return the directory of the shipped gin files."""
    return Path(promot_t5x.__file__).resolve().parent / "gin"


def shipped_name(path: Path) -> str | None:
    """Return the name under which a shipped gin file is included; none for a user's file."""
    root, real = gin_root().resolve(), path.resolve()
    return real.relative_to(root).as_posix() if real.is_relative_to(root) else None


class Reader:
    """Reads files, then the command line, into gin's configuration.

    **Attributes:**

    - `definitions`: every definition read so far, overridden ones included, in order.
    - `files`: every file read so far, included ones too, in order.
    """

    def __init__(self, search_paths: Sequence[str | Path]):
        self.definitions: list[Definition] = []
        self.files: list[Path] = []
        self._search_paths = [
            Path(paths.user_path(path, "--gin_search_paths")) for path in search_paths
        ]
        self._imports: list[config_parser.ImportStatement] = []
        self._reading: list[Path] = []
        self._file: _File | None = None
        self._clock = 0
        gin.clear_config()

    def read_file(self, name: str, wanted_at: str = COMMAND_LINE) -> None:
        """Read one gin file and what it includes.

        **Arguments:**

        - `name`: path, absolute or under one of the search paths.
        - `wanted_at`: the place that named the file, for the message when it is missing.

        **Raises** `UserError` for a missing file, a syntax error, an unknown name or parameter.
        """
        path = self._find(name, wanted_at)
        if path in self._reading:
            chain = " -> ".join(str(each) for each in [*self._reading, path])
            raise UserError(f"{wanted_at}: gin files include each other in a circle: {chain}")
        outer = self._file
        shipped = shipped_name(path)
        shown = shipped or str(path)
        self._file = _File(shown, outer.named if outer else shown, shipped is not None)
        self._reading.append(path)
        self.files.append(path)
        # A byte order mark, which some editors put in front, is no part of the text.
        with path.open(encoding="utf-8-sig") as file:
            context = gin_names.Context()
            self._read(file, context, shown)
        self._reading.pop()
        self._file = outer
        self._keep_imports(context)

    def read_command_line(self, bindings: Sequence[str]) -> None:
        """Read `NAME = VALUE` bindings; they know every module that the files import.

        **Raises** `UserError` as `read_file` does.
        """
        context = gin_names.CommandLineContext()
        for statement in [_DYNAMIC, *self._imports]:
            if statement.module != _DYNAMIC.module or not context.imports:
                context.process_import(statement)
        # The whole command line is one moment: no part of it can be overridden by another part
        # and so be excused for having no effect.
        self._clock += 1
        for binding in bindings:
            self._read(binding, context, COMMAND_LINE)
        self._keep_imports(context)

    def _find(self, name: str, wanted_at: str) -> Path:
        given = paths.user_path(name, "a gin file")
        if paths.is_remote(given):
            raise UserError(f"{wanted_at}: gin files are read from the local disk: copy {name}.")
        tried = [path / given for path in self._search_paths]
        for path in tried:
            if path.is_file():
                return Path(path)
        siblings = [near.name for path in tried for near in path.parent.glob("*.gin")]
        raise UserError(
            f"{wanted_at}: no gin file {name!r}.{did_you_mean(Path(name).name, siblings)} "
            "Looked for:" + "".join(f"\n  {path}" for path in tried)
        )

    def _keep_imports(self, context: gin_config.ParseContext) -> None:
        self._imports.extend(context.imports)
        gin_config._IMPORTS.update(context.imports)

    def _read(self, source: Any, context: gin_config.ParseContext, name: str) -> None:
        with _active(context), gin_names.located(name):
            parser = config_parser.ConfigParser(source, _Delegate(context))
        while True:
            # A reference is resolved while its statement is parsed, and names are looked up in
            # the file's own imports: includes are read in between, with theirs.
            with _active(context), gin_names.located(name):
                statement = parser.parse_statement()
            if statement is None:
                return
            self._execute(statement, context, gin_names.place_of(name, statement.location))

    def _execute(self, statement: Any, context: gin_config.ParseContext, place: str) -> None:
        if isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename, place)
            return
        with _active(context):
            if isinstance(statement, config_parser.ImportStatement):
                gin_names.import_module(statement, context, place)
            elif isinstance(statement, config_parser.BlockDeclaration):
                gin_names.resolve(context, statement.selector, place)
            else:
                self._bind(statement, context, place)

    def _bind(
        self,
        statement: config_parser.BindingStatement,
        context: gin_config.ParseContext,
        place: str,
    ) -> None:
        scope, selector, parameter = statement.scope, statement.selector, statement.arg_name
        written = (f"{scope}/" if scope else "") + selector
        if parameter:
            written = f"{written}.{parameter}"
            configurable = gin_names.resolve(context, selector, place)
        else:
            scope, selector, parameter = written, MACRO, "value"
            configurable = gin_config._REGISTRY[MACRO]
        try:
            gin.bind_parameter((scope, selector, parameter), statement.value)
        except ValueError as error:
            names = parameters(configurable.wrapped)
            if parameter in names:
                raise UserError(f"{place}: {error}") from error
            raise UserError(
                f"{place}: {selector} has no parameter {parameter!r}."
                f"{did_you_mean(parameter, names)} It has: {', '.join(names) or 'none'}."
            ) from error
        if place != COMMAND_LINE:
            self._clock += 1
        self.definitions.append(
            Definition(
                scope=scope,
                selector=configurable.selector,
                parameter=parameter,
                written=written,
                value=statement.value,
                place=place,
                file=self._file.shown if self._file else None,
                named=self._file.named if self._file else None,
                shipped=self._file is not None and self._file.shipped,
                time=self._clock,
            )
        )


class _Delegate(gin_config.ParserDelegate):  # type: ignore[misc]  # gin has no types
    """Makes references, with messages that name what is missing."""

    def __init__(self, context: gin_config.ParseContext):
        super().__init__()
        self._context = context

    def configurable_reference(self, scoped_selector: str, evaluate: bool) -> Any:
        gin_names.find(self._context, scoped_selector.rsplit("/", 1)[-1])
        return super().configurable_reference(scoped_selector, evaluate)


def parameters(function: Callable[..., Any]) -> list[str]:
    """Names that can be bound on a function or class, in the order of its signature."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, each in signature.parameters.items() if each.kind not in variadic]


def configurable(selector: str) -> gin_config.Configurable:
    """Return what gin knows about a complete selector: `wrapped`, `import_source` and more."""
    return gin_config._REGISTRY[selector]


_ROOTS: set[str] = set()


def register_root(function: Callable[..., Any]) -> str:
    """Make a function configurable that no gin file may have named; returns its selector."""
    known = gin_config._inverse_lookup(function)
    if known is None:
        gin.external_configurable(function, module=function.__module__)
        known = gin_config._inverse_lookup(function)
        _ROOTS.add(known.selector)
    selector: str = known.selector
    return selector


def shortest(definition: Definition) -> str:
    """Return a binding's name as `gin.config_str` writes it."""
    scope = f"{definition.scope}/" if definition.scope else ""
    selector = gin_config._REGISTRY.minimal_selector(definition.selector)
    return f"{scope}{selector}.{definition.parameter}"


def is_root(selector: str) -> bool:
    """Whether `register_root` made it configurable: then nothing calls it but the run."""
    return selector in _ROOTS


def forget(definition: Definition) -> None:
    """Take a definition out of gin's configuration."""
    bindings = gin_config._CONFIG[definition.scope, definition.selector]
    del bindings[definition.parameter]
    if not bindings:
        del gin_config._CONFIG[definition.scope, definition.selector]


@contextlib.contextmanager
def replaced(definition: Definition, value: Any) -> Iterator[None]:
    """Give a definition another value in the body."""
    key = (definition.scope, definition.selector, definition.parameter)
    gin.bind_parameter(key, value)
    try:
        yield
    finally:
        gin.bind_parameter(key, definition.value)


def references(value: Any) -> Iterator[gin_config.ConfigurableReference]:
    """Every `@reference` and `%macro` inside a value, however deeply nested."""
    yield from gin_config.iterate_references({"value": value})


class _Plain:
    """A reference as text: stands for itself where nothing is to be resolved."""

    def __init__(self, text: str):
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _PlainDelegate(config_parser.ParserDelegate):  # type: ignore[misc]  # as above
    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Plain:
        return _Plain(f"@{scoped_configurable_name}" + ("()" if evaluate else ""))

    def macro(self, macro_name: str) -> _Plain:
        return _Plain(f"%{macro_name}")


def plain_bindings(text: str, name: str) -> dict[str, str]:
    """Left-hand side to value, both as text, without importing or resolving anything.

    **Arguments:**

    - `text`: gin statements, such as the `config.gin` of a run.
    - `name`: what to call the text in a message.

    **Raises** `UserError` for a syntax error.
    """
    with gin_names.located(name):
        found = {}
        for statement in config_parser.ConfigParser(text, _PlainDelegate()):
            if isinstance(statement, config_parser.BindingStatement):
                scope, selector, parameter, value, _ = statement
                owner = "/".join(part for part in (scope, selector) if part)
                found[f"{owner}.{parameter}" if parameter else owner] = repr(value)
        return found


def plain_values(text: str, name: str) -> tuple[str, list[str]]:
    """Return the name that a statement binds, and the values in its list, as text.

    **Arguments:**

    - `text`: a gin statement, such as `LEARNING_RATE = [0.001, 0.003]`.
    - `name`: what to call the text in a message.

    **Raises:** `UserError` for a syntax error and for anything but a list with values.
    """
    with gin_names.located(name):
        statements = list(config_parser.ConfigParser(text, _PlainDelegate()))
    for statement in statements:
        if isinstance(statement, config_parser.BindingStatement):
            scope, selector, parameter, value, _ = statement
            owner = "/".join(part for part in (scope, selector) if part)
            if isinstance(value, list | tuple) and value and len(statements) == 1:
                return f"{owner}.{parameter}" if parameter else owner, [repr(v) for v in value]
    raise UserError(f"{name}: {text!r} is no list of values; write NAME=[VALUE, VALUE].")


@contextlib.contextmanager
def _active(context: gin_config.ParseContext) -> Iterator[None]:
    gin_config._PARSE_CONTEXTS.append(context)
    try:
        yield
    finally:
        gin_config._PARSE_CONTEXTS.pop()
