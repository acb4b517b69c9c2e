"""`promot-t5x lm_eval`: the Language Model Evaluation Harness, with `--model promot_t5x`."""

import importlib.util
import sys
from collections.abc import Sequence

from promot_t5x import quiet
from promot_t5x.errors import UserError


def main(words: Sequence[str]) -> int:
    """Run one command line of the harness; returns the exit status."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "the Language Model Evaluation Harness is not installed: "
            "pip install 'promot-t5x[lm-eval]'."
        )
    with quiet.imports():
        from lm_eval.__main__ import cli_evaluate

        from promot_t5x.runs import harness
    harness.register()
    sys.argv = ["lm_eval", *words]
    cli_evaluate()
    return 0
