"""The names in a gin file: finding what they stand for, and saying why one stands for nothing."""

import contextlib
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

from gin import config as gin_config
from gin import config_parser

from promot_t5x.errors import UserError, did_you_mean

COMMAND_LINE = "command line"
# Modules that gin files of version 0.1 import, and where they are now.
MOVED = {
    "promot_t5x.adafactor": "promot_t5x.training.adafactor",
    "promot_t5x.alignment": "promot_t5x.training.alignment",
    "promot_t5x.eval": "promot_t5x.runs.eval",
    "promot_t5x.evaluate": "promot_t5x.evaluation.evaluator",
    "promot_t5x.infer": "promot_t5x.runs.infer",
    "promot_t5x.layers": "promot_t5x.network.layers",
    "promot_t5x.partitioning": "promot_t5x.distributed.partitioning",
    "promot_t5x.promot": "promot_t5x.runs.promot",
    "promot_t5x.prompt_init": "promot_t5x.network.prompt_init",
    "promot_t5x.schedules": "promot_t5x.training.schedules",
    "promot_t5x.stages": "promot_t5x.runs.stages",
    "promot_t5x.train": "promot_t5x.runs.train",
    "promot_t5x.vocabularies": "promot_t5x.data.vocabularies",
}


class UnresolvedError(Exception):
    """A name that no import provides; gin re-raises it wrapped, but lends the attribute."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class Context(gin_config.ParseContext):  # type: ignore[misc]  # gin has no types
    """The names that one file can use."""

    def _register(self, attr_names: list[str], attr_values: list[Any]) -> Any:
        if not callable(attr_values[-1]):
            raise AttributeError(f"{'.'.join(attr_names)} cannot be called")
        return super()._register(attr_names, attr_values)


class CommandLineContext(Context):
    """Names come from the files' imports, or are any unambiguous tail of a known selector."""

    def get_configurable(self, selector: str) -> Any:
        """Find what a name stands for; None if nothing does."""
        try:
            return super().get_configurable(selector)
        except (NameError, AttributeError):
            known = gin_config._REGISTRY.get_match(selector)
            if known is None:
                raise
            return known


@contextlib.contextmanager
def located(name: str) -> Iterator[None]:
    """Turn what the parser raises into one line that starts with the place."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not a text file.") from error
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise UserError(f"{at(name, line)}: cannot be read: {message}.") from error
    except SyntaxError as error:
        message = (error.msg or "").splitlines()[-1].strip().rstrip(".")
        shown = (error.text or "").strip()
        raise UserError(
            f"{at(name, error.lineno)}: {message}: {shown}{_quoting_hint(name, shown)}"
        ) from error
    except UnresolvedError as error:
        # gin appends the location to the text of its wrapper; only the line number is wanted.
        tail = str(error).removeprefix(error.message)
        line = tail.rpartition(" line ")[2].split("\n")[0]
        raise UserError(f"{at(name, line)}: {error.message}") from error


def _quoting_hint(name: str, shown: str) -> str:
    left, equals, right = (part.strip() for part in shown.partition("="))
    if not equals or not right or right[0] in "\"'[({":
        return ""
    if name == COMMAND_LINE:
        return f"\nA string needs quotes that the shell leaves alone: --gin.{left}='\"{right}\"'"
    return f'\nA string needs quotes: {left} = "{right}"'


def at(name: str, line: object) -> str:
    """Return the place `file:line`; the command line has no lines."""
    return name if name == COMMAND_LINE else f"{name}:{line}"


def place_of(name: str, location: config_parser.Location) -> str:
    """Return the place of a statement that gin has parsed."""
    return at(name, location.line_num)


def import_module(
    statement: config_parser.ImportStatement, context: gin_config.ParseContext, place: str
) -> None:
    """Import a module for a file; one that has moved is found where it is now.

    **Raises** `UserError` for a module that cannot be imported.
    """
    if statement.is_from and statement.module in MOVED:
        statement = _current(statement, place)
    try:
        context.process_import(statement)
    except SyntaxError as error:
        raise UserError(f"{place}: {error.msg}") from error
    except ImportError as error:
        parent, _, last = statement.module.rpartition(".")
        hint = ""
        # What surprises whoever writes `from module import function`.
        if error.name == statement.module and hasattr(sys.modules.get(parent), last):
            hint = f" gin imports modules: write `import {parent}` and `{parent}.{last}`."
        raise UserError(f"{place}: cannot import {statement.module}: {error}.{hint}") from error


def _current(statement: config_parser.ImportStatement, place: str) -> config_parser.ImportStatement:
    """Return the import of a module that has moved, bound to its old name, and say so."""
    now = MOVED[statement.module]
    name = statement.alias or statement.module.rpartition(".")[2]
    parent, _, last = now.rpartition(".")
    alias = None if name == last else name
    suggested = f"from {parent} import {last}" + (f" as {alias}" if alias else "")
    print(f"{place}: {statement.module} is now {now}: write `{suggested}`", file=sys.stderr)
    return statement._replace(module=now, alias=alias)


def resolve(context: gin_config.ParseContext, selector: str, place: str) -> Any:
    """Find what a name stands for. **Raises** `UserError`, with the place, if nothing does."""
    try:
        return find(context, selector)
    except UnresolvedError as error:
        raise UserError(f"{place}: {error.message}") from error


def find(context: gin_config.ParseContext, selector: str) -> Any:
    """Find what a name stands for. **Raises** `UnresolvedError` if nothing does."""
    try:
        found = context.get_configurable(selector)
    except (NameError, AttributeError) as error:
        raise UnresolvedError(_why_unresolved(context, selector)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UnresolvedError(f"{selector}: {error.args[0]}") from error
    if found is None:
        raise UnresolvedError(
            f"nothing is called {selector!r} here. A file that names a function or class starts "
            "with `from __gin__ import dynamic_registration` and imports its module."
        )
    return found


def _why_unresolved(context: gin_config.ParseContext, selector: str) -> str:
    first, *rest = selector.split(".")
    symbols = context._symbol_table
    if first not in symbols:
        return f"{first!r} is not imported here.{did_you_mean(first, symbols)}"
    owner, path = symbols[first], first
    for name in rest:
        if not hasattr(owner, name):
            return f"{path} has no {name!r}.{did_you_mean(name, _bindable(owner, name))}"
        owner, path = getattr(owner, name), f"{path}.{name}"
    return f"{selector} is of type {type(owner).__name__}, not a function or a class."


def _bindable(owner: Any, name: str) -> list[str]:
    """Return what a user may have meant by a name: a class where it is written like one.

    What a module imports from elsewhere for its own use is nothing to bind.
    """
    package = getattr(owner, "__name__", "").partition(".")[0]
    public = [
        each
        for each, value in vars(owner).items()
        if not each.startswith("_")
        and callable(value)
        and getattr(value, "__module__", "").partition(".")[0] == package
    ]
    alike = [each for each in public if each[0].isupper() == name[0].isupper()]
    return alike or public
