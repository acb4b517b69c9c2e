"""Models on the Hugging Face hub: `hf://org/name@revision` as a base, and where exports go.

huggingface_hub keeps what it downloads (`HF_HOME`), works from that alone where
`HF_HUB_OFFLINE=1`, tries again what failed in passing, and takes the token from `HF_TOKEN` or from
`hf auth login`. No message here has it.
"""

import contextlib
import functools
import re
from collections.abc import Iterator
from types import ModuleType

from etils import epath

from promot_t5x.checkpoints.formats.hugging_face import TOKENIZER_FILES
from promot_t5x.errors import UserError

SCHEME = "hf://"
CARD = "README.md"
_NAME = r"[\w.-]+(?:/[\w.-]+)?"
_REFERENCE = re.compile(rf"{SCHEME}({_NAME})(?:@([\w./-]+))?")
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", CARD, *TOKENIZER_FILES)
_GATED, _NO_TOKEN = 403, 401


def is_reference(path: object) -> bool:
    """Whether a path names a model on the hub."""
    return isinstance(path, str) and path.startswith(SCHEME)


def parse(reference: str) -> tuple[str, str | None]:
    """Return the repository and the revision that a reference names.

    **Raises:** `UserError` for one that names none.
    """
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise UserError(
            f"{reference!r} names no model: write {SCHEME}organization/name or "
            f"{SCHEME}organization/name@revision, a branch, a tag or a commit."
        )
    return found[1], found[2]


def download(reference: str) -> epath.Path:
    """Return the local directory of a model's files, downloaded unless they are there.

    **Raises:** `UserError` where there is no such model, or it may not be read; `ConnectionError`
    where the hub does not answer as it should, which may pass.
    """
    name, revision = parse(reference)
    return _downloaded(name, revision)


@functools.cache  # a run opens its base again and again; it is one model throughout
def _downloaded(name: str, revision: str | None) -> epath.Path:
    library = _library()
    where = f"{SCHEME}{name}" + (f"@{revision}" if revision else "")
    with _explained(library, where):
        return epath.Path(
            library.snapshot_download(name, revision=revision, allow_patterns=list(_FILES))
        )


def check_upload(name: str) -> None:
    """Raise `UserError` where a repository cannot be written, before anything is converted."""
    if re.fullmatch(_NAME, name) is None:
        raise UserError(f"--push {name!r} names no repository: write organization/name.")
    library = _library()
    with _explained(library, name):
        library.HfApi().whoami()


def upload(directory: epath.Path, name: str) -> str:
    """Upload a directory's files as one commit; a repository that this makes is private.

    **Returns:** the commit's address.

    **Raises:** as `download`.
    """
    library = _library()
    api = library.HfApi()
    with _explained(library, name):
        if not api.repo_exists(name):
            api.create_repo(name, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name, folder_path=str(directory), commit_message="promot-t5x convert"
        )
    return str(commit.commit_url)


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            "the hub needs a package that is not installed: pip install 'promot-t5x[hub]'."
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _explained(library: ModuleType, where: str) -> Iterator[None]:
    """Say what the hub refused, and what to do; leave out what its messages quote."""
    errors = library.errors
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{where} is gated: accept its terms on its page, and set HF_TOKEN to a token of that "
            "account."
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{where}: there is no such revision.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{where}: the hub has no such model, or it is private and HF_TOKEN is not set to a "
            "token that may read it."
        ) from None
    except errors.LocalTokenNotFoundError:
        raise UserError(f"{where}: set HF_TOKEN to a token that may write there.") from None
    except (OSError, errors.HTTPError) as error:  # transport's errors are no OSErrors
        status = _status(error)
        if status in (_NO_TOKEN, _GATED):
            raise UserError(
                f"{where}: the hub refuses (status {status}): set HF_TOKEN to a token that may."
            ) from None
        if library.constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{where} is not in the cache ({library.constants.HF_HUB_CACHE}), and "
                "HF_HUB_OFFLINE is set: download it once without that."
            ) from None
        said = f"status {status}" if status else type(error.__cause__ or error).__name__
        raise ConnectionError(
            f"{where}: the hub did not answer as it should ({said}), tried again and again. What "
            "was downloaded is kept; give the same command again later."
        ) from None


def _status(error: BaseException | None) -> int | None:
    while error is not None:
        if response := getattr(error, "response", None):
            return int(response.status_code)
        error = error.__cause__
    return None
