"""Two-stage fine-tuning of T5-family models: train a soft prompt, then the model behind it."""

from pathlib import Path as _Path

__version__ = "0.1.0"

if not (_Path(__file__).parent / "tasks").is_dir():
    raise ImportError(
        f"{_Path(__file__).parent / 'tasks'} is no directory: this copy was unpacked without its "
        "symbolic links. Clone the repository with git (on Windows with core.symlinks=true), or "
        "unpack the archive with a program that keeps links."
    )
