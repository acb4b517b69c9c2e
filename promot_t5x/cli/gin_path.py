"""Print where the shipped gin files are: `promot-t5x gin_path`, for programs that read them too."""

from collections.abc import Sequence

from promot_t5x import config
from promot_t5x.cli.flags import Parser


def main(words: Sequence[str]) -> None:
    """Print the directory of the shipped gin files."""
    Parser(
        prog="promot-t5x gin_path",
        description="Print the directory of the shipped gin files, for T5X's --gin_search_paths.",
    ).parse_args(words)
    print(config.gin_root())
