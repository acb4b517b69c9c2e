"""`promot-t5x paper run NAME`: the run of one of the paper's configurations."""

import argparse

from promot_t5x.cli import main
from promot_t5x.report import printed


def run(arguments: argparse.Namespace) -> int:
    """Start `promot-t5x promot` with the configuration's files; return its exit status."""
    files = printed.files_of(arguments.name)
    words = [*(f"--gin_file={file}" for file in files), *arguments.flags]
    return main.run_command(main.find_command("promot"), words)
