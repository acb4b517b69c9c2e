"""`promot-t5x tasks list`: the registered tasks and mixtures, a line each."""

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> int:
    """Print the tasks whose names match; exit status 1 if none does."""
    parser = argparse.ArgumentParser(
        prog="promot-t5x tasks",
        description="Lists what MIXTURE_OR_TASK_NAME can be. Reads no data.",
    )
    parser.add_argument("action", choices=["list"])
    parser.add_argument("pattern", nargs="?", help="names to show, as in 'tiny_*'; default all")
    arguments = parser.parse_args(argv)

    from promot_t5x.tasks import registry

    names = registry.names(arguments.pattern)
    width = max((len(name) for name in names), default=0)
    for name in names:
        find = registry.get_task if registry.is_task(name) else registry.get_mixture
        print(f"{name:{width}}  {find(name).description}")
    return 0 if names else 1
