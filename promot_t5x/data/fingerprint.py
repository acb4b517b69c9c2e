"""What defines a tokenized data set, as a hash: a changed definition never meets an old store.

The hash follows a task's source and preprocessors into the user's own functions: bytecode,
constants, defaults, closures, partial arguments, the globals and module attributes they read,
and the size and time of any file that a string among those names. Functions of installed
libraries count by name and by the content of their module. What a function fetches at run time
from elsewhere (a service, a file whose name it computes) cannot be seen from here.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from promot_t5x.data import slices

# An environment may see the packages of another one, too (system packages, a .pth file).
_LIBRARIES = tuple(
    os.path.realpath(path) + os.sep
    for path in (
        *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
        *(path for path in sys.path if path.endswith(("site-packages", "dist-packages"))),
    )
)
_OWN = os.path.dirname(os.path.dirname(os.path.realpath(__file__))) + os.sep
_VERSIONED = ("seqio", "sentencepiece", "tensorflow", "tensorflow-text", "tensorflow-datasets")
_LONGEST_FILE_NAME = 1024


def digest(value: Any) -> str:
    """32 hexadecimal digits that stand for `value` as described at the top of this module."""
    text = json.dumps(_Walk().describe(value), sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def vocabulary_identity(vocabulary: Any) -> dict[str, Any]:
    """Class, sizes and content of a SeqIO vocabulary; the file's path plays no part."""
    identity = {
        "class": type(vocabulary).__name__,
        "size": vocabulary.vocab_size,
        "extra_ids": vocabulary.extra_ids,
        "eos_id": vocabulary.eos_id,
    }
    model = getattr(vocabulary, "sp_model", None)
    if model is not None:
        return identity | {"model_sha256": hashlib.sha256(model).hexdigest()}
    plain = {name: value for name, value in vars(vocabulary).items() if _plain(value)}
    return identity | {"content": digest(plain)}


def task_definition(task: Any, split: str, lengths: Mapping[str, int] | None) -> dict[str, Any]:
    """Everything that decides the tokens of a SeqIO task's split, ready for `digest`."""
    features = {
        name: {
            "vocabulary": vocabulary_identity(feature.vocabulary),
            "add_eos": feature.add_eos,
            "dtype": str(feature.dtype),
        }
        for name, feature in task.output_features.items()
        if name in ("inputs", "targets")
    }
    return {
        "task": task.name,
        "split": split,
        "features": features,
        "lengths": dict(lengths) if lengths else None,
        "source": source_definition(task.source, split),
        "preprocessors": list(task.preprocessors),
        "versions": {name: _version(name) for name in _VERSIONED},
    }


def source_definition(source: Any, split: str) -> Any:
    """Return what can be known of where a split's raw examples come from."""
    split = slices.parse(split).name
    definition = {
        "source": source,
        "examples": _or_none(source.num_input_examples, split),
        "files": _or_none(source.list_shards, split),
    }
    loader = getattr(source, "tfds_dataset", None)
    if loader is not None:
        # Asked after the files, because only a loaded builder knows its full version.
        definition["tfds"] = loader.resolved_tfds_name(split)
    return definition


def _or_none(question: Any, split: str) -> Any:
    # Sources differ in what they can answer; what one cannot say cannot be part of its hash.
    try:
        return question(split)
    except (KeyError, NotImplementedError, TypeError, ValueError):
        return None


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


class _Walk:
    """Turns a value into plain data, following the user's own code; cycles are named once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []

    def describe(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int):
            return value
        if isinstance(value, float | complex):
            return [type(value).__name__, repr(value)]
        if isinstance(value, str | Path):
            return _text(str(value))
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, np.ndarray):
            return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
        if id(value) in self._seen:
            return f"seen {self._seen[id(value)]}"
        # Kept alive, so that no later object can take this one's id.
        self._kept.append(value)
        self._seen[id(value)] = len(self._seen)
        return self._composite(value)

    def _composite(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): self.describe(item) for key, item in value.items()}
        if isinstance(value, set | frozenset):
            return sorted(json.dumps(self.describe(item)) for item in value)
        if isinstance(value, list | tuple):
            return [self.describe(item) for item in value]
        if isinstance(value, functools.partial):
            return [self.describe(part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, MethodType):
            return [self.describe(value.__func__), self.describe(value.__self__)]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType | BuiltinFunctionType):
            return _name(value)
        return self._instance(value)

    def _function(self, function: FunctionType) -> Any:
        file = function.__code__.co_filename
        if _from_library(file):
            wrapped = self.describe(getattr(function, "__wrapped__", None))
            return [_name(function), _content(file), wrapped, self._closure(function)]
        return [
            _name(function),
            self._code(function.__code__),
            self.describe(function.__defaults__),
            self.describe(function.__kwdefaults__),
            self._closure(function),
            self._globals(function),
        ]

    def _closure(self, function: FunctionType) -> list[Any]:
        cells = function.__closure__ or ()
        return [self.describe(cell.cell_contents) for cell in cells if _filled(cell)]

    def _code(self, code: CodeType) -> Any:
        constants = [
            self._code(item) if isinstance(item, CodeType) else self.describe(item)
            for item in code.co_consts
        ]
        return [hashlib.sha256(code.co_code).hexdigest(), list(code.co_names), constants]

    def _globals(self, function: FunctionType) -> dict[str, Any]:
        found = {}
        names = sorted(_names(function.__code__))
        for name in names:
            value = function.__globals__.get(name)
            if value is None:
                continue
            found[name] = self.describe(value)
            if isinstance(value, ModuleType) and not _from_library(_file(value)):
                used = [other for other in names if hasattr(value, other)]
                found |= {f"{name}.{other}": self.describe(getattr(value, other)) for other in used}
        return found

    def _instance(self, value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif hasattr(value, "vocab_size"):
            fields = vocabulary_identity(value)
        elif hasattr(value, "tfds_dataset"):
            fields = {"repr": repr(value)}
        elif _from_library(_file(type(value))) and not hasattr(value, "list_shards"):
            fields = {}
        else:
            fields = getattr(value, "__dict__", {})
        return [_name(value), self.describe(type(value)), self.describe(dict(fields))]

    def _class(self, value: type) -> Any:
        own = [base for base in value.__mro__ if not _from_library(_file(base))]
        return [_name(value), [self._members(base) for base in own]]

    def _members(self, value: type) -> dict[str, Any]:
        members = {
            name: getattr(member, "__func__", member) for name, member in vars(value).items()
        }
        return {
            name: self.describe(member)
            for name, member in members.items()
            if isinstance(member, FunctionType) or (not name.startswith("__") and _plain(member))
        }


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | tuple | list | dict)


def _text(text: str) -> Any:
    if len(text) > _LONGEST_FILE_NAME or "\0" in text or not os.path.isfile(text):
        return text
    state = os.stat(text)
    return [text, state.st_size, state.st_mtime_ns]


def _name(value: Any) -> str:
    module = getattr(value, "__module__", "")
    return f"{module}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _names(code: CodeType) -> set[str]:
    inner = (item for item in code.co_consts if isinstance(item, CodeType))
    return set(code.co_names).union(*(_names(item) for item in inner))


def _file(value: Any) -> str:
    if not isinstance(value, ModuleType) and value.__module__ not in sys.modules:
        return "unknown"
    module = value if isinstance(value, ModuleType) else sys.modules[value.__module__]
    return getattr(module, "__file__", None) or ""


@functools.cache
def _from_library(file: str) -> bool:
    path = os.path.realpath(file) if file else ""
    return not path or (path.startswith(_LIBRARIES) and not path.startswith(_OWN))


@functools.cache
def _content(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if os.path.isfile(file) else file


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
