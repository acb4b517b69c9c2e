"""Plans that were made before, by a hash of all that they depend on.

`key` is known at once and changes with any line of this package's code; `program_key` needs the
lowered program and changes only with what the compiler is given.
"""

import functools
import gzip
import hashlib
import json
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from etils import epath

from promot_t5x.files import write_atomically
from promot_t5x.planning import compiler

_PACKAGE = Path(__file__).resolve().parent.parent


def directory() -> epath.Path:
    """Where they are kept: `$XDG_CACHE_HOME/promot_t5x/plans`, by default below `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return epath.Path(root).expanduser() / "promot_t5x" / "plans"


def key(*parts: Any) -> str:
    """Hash `parts` (by their JSON), this package's code and the compiler."""
    return _hash(*parts, _code(), _compiler())


def program_key(lowered: Any, *parts: Any) -> str:
    """Hash a lowered program, `parts` and the compiler."""
    return _hash(lowered.as_text(), *parts, _compiler())


def load(name: str) -> dict[str, Any] | None:
    """Read what `save` kept under a key; None if there is nothing that can be read."""
    try:
        kept: dict[str, Any] = json.loads(gzip.decompress(_path(name).read_bytes()))
        return kept
    except (OSError, EOFError, ValueError):
        return None


def save(name: str, value: dict[str, Any]) -> None:
    """Keep a value that JSON can hold."""
    path = _path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, gzip.compress(json.dumps(value).encode()))


def _path(name: str) -> epath.Path:
    return directory() / f"{name}.json.gz"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    code = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        code.update(path.read_bytes())
    return code.hexdigest()


@functools.cache
def _compiler() -> list[Any]:
    library = compiler.library()
    versions = [metadata.version(name) for name in ("jax", "jaxlib")]
    return [*versions, library.stat().st_size if library else None]
